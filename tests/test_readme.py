"""The README says what is so."""

import json
import re

import yaml
from conftest import REPOSITORY

from petals.models import MODELS
from petals.params import check, parse

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ADVICE = "git restore benchmarks/results.json, or write its figures into README"


def test_every_knob_stands_there_with_a_default_that_will_do():
    """It need not be the value in params.yaml, which an experiment changes."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| (.+) \|$", README, re.MULTILINE)
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    assert [(knob, words) for knob, _, words in rows] == re.findall(r"^(\w+):.* # (.+)$", text, re.MULTILINE)
    check({knob: parse(default, "README.md") for knob, default, _ in rows}, "README.md")


def test_every_model_is_named():
    assert not [name for name in MODELS if f"`{name}`" not in README]


def test_every_target_of_make_and_every_file_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets
    missing = [name for name in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README) if not (REPOSITORY / name).exists()]
    assert not missing


def test_the_stages_are_those_of_the_pipeline():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert list(stages) == re.findall(r"^\| (prepare|augment|train|evaluate|export) \|", README, re.MULTILINE)


def test_the_speeds_are_those_of_the_last_measurement():
    measured = json.loads((REPOSITORY / "benchmarks/results.json").read_text())["rows"].values()
    section = README.partition("\n## Speed\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(measured), ADVICE
    for row, (what, ours, _, ratio, _) in zip(measured, rows, strict=True):
        said = re.findall(r"\d+(?:\.\d+)?", f"{ours} {ratio}".replace(",", ""))
        known = [row["ours"]]
        if row.get("limit"):
            known += [row[name] for name in ("median", "least", "most", "pairs")][: 1 if row["pairs"] == 1 else 4]
        same = len(known) == len(said) and all(map(written_as, known, said))
        assert same, f"{what}: {known}, and not {said}; {ADVICE}"


def test_every_module_has_its_place_on_the_page_for_those_who_extend():
    page = (REPOSITORY / "docs/extend.md").read_text(encoding="utf-8")
    section = page.partition("\n## What is where in petals/\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", "".join(line for line in section.splitlines() if line.startswith("|")))
    modules = [*(REPOSITORY / "petals").glob("[a-z]*.py"), *(REPOSITORY / "petals").glob("*/__init__.py")]
    assert sorted(named) == sorted((each.parent if each.stem == "__init__" else each).stem for each in modules)


def written_as(value: float, text: str) -> bool:
    """Whether `text` is `value`, rounded to the digits that it has."""
    digits = len(text.partition(".")[2]) if "." in text else len(text.rstrip("0")) - len(text)
    return abs(value - float(text)) <= 0.5 / 10**digits + 1e-9
