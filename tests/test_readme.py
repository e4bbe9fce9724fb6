"""The README says what is so."""

import re

import yaml
from conftest import REPOSITORY

from petals.models import MODELS
from petals.params import check, parse

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


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
