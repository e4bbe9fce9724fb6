"""Runs of the pipeline in copies of the working tree, for the scores of a recipe."""

import csv
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click

from benchmarks import workspace
from benchmarks.workspace import REPOSITORY, make_workspace
from petals.isolation import dvc, isolate
from petals.params import read_mapping

STAGES = ("prepare", "augment", "train", "evaluate")


class Outcome(NamedTuple):
    """`scores` is the content of evaluate.json, `answers` the rows of predictions.csv, `seconds` those of train."""

    scores: dict[str, float]
    answers: list[dict[str, str]]
    seconds: float


def recipe_options(command: Callable) -> Callable:
    """The options that say which recipe, and how many of its runs go beside one another."""
    jobs = click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs at once.")
    knobs = click.option(
        "-S", "--set-param", "settings", multiple=True, metavar="KNOB=VALUE", callback=_scored,
        help="As for dvc exp run; repeatable. Robustness is left out unless it is set.",
    )  # fmt: skip
    return knobs(jobs(command))


def given(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """The knobs that an option -S sets."""
    if malformed := [each for each in values if "=" not in each]:
        raise click.BadParameter(f"{malformed[0]} is not KNOB=VALUE", param_hint="-S")
    return dict(each.split("=", 1) for each in values)


def _scored(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    knobs = given(context, option, values)
    if str(knobs.get("final", read_mapping(workspace.PARAMS)["final"])).lower() == "true":
        raise click.BadParameter("final: true leaves nothing unseen to score; set final=false", param_hint="-S")
    return knobs


def told(settings: Mapping[str, str]) -> str:
    """The settings as they are given to dvc exp run."""
    return " ".join(f"-S {knob}={value}" for knob, value in settings.items()) or "the defaults"


def run_all(recipes: Sequence[Mapping[str, str]], jobs: int) -> Iterator[Outcome]:
    """What came of each of `recipes`, in order; `jobs` of them run at once.

    All run on copies of the working tree as it is at the beginning, whatever is edited meanwhile; what git does not
    know, data and weights, is linked and not copied.
    """
    with tempfile.TemporaryDirectory(prefix="petals-runs-") as scratch, ThreadPoolExecutor(jobs) as pool:
        roots = [copy(Path(scratch) / f"{number}", settings) for number, settings in enumerate(recipes)]
        yield from pool.map(run, roots)


def copy(root: Path, settings: Mapping[str, str]) -> Path:
    """Copy the working tree to `root` with `settings`; data and weights that git does not know are links there.

    Raises BadParameter for a knob or data that are not there.
    """
    make_workspace(root, {"robustness": "0", **settings})
    data = read_mapping(root / "params.yaml")["data"]
    if not (REPOSITORY / data).exists():
        raise click.BadParameter(f"data: there is no {data}", param_hint="-S")
    if not (root / data).exists():
        (root / data).parent.mkdir(parents=True, exist_ok=True)
        (root / data).symlink_to((REPOSITORY / data).resolve())
    for path in (REPOSITORY / "data" / "weights").glob("*.safetensors"):
        (root / "data" / "weights" / path.name).symlink_to(path.resolve())
    return root


def run(root: Path) -> Outcome:
    """Run the stages up to evaluate in `root`, and remove it; raises ClickException with what one that fails said."""
    environment, seconds = isolate(root), 0.0
    for stage in STAGES:
        began = time.monotonic()
        done = dvc(root, environment, "repro", "--single-item", stage, capture_output=True)
        if done.returncode:
            raise click.ClickException(f"{stage} failed:\n{(done.stdout + done.stderr)[-2000:]}")
        if stage == "train":
            seconds = time.monotonic() - began
    scores = json.loads((root / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    with (root / "plots" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    shutil.rmtree(root)
    return Outcome(scores, answers, seconds)
