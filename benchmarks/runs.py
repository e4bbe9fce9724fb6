"""Runs of the pipeline in copies of the working tree, for the scores of a recipe."""

import csv
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click

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
        "-S", "--set", "settings", multiple=True, metavar="KNOB=VALUE", callback=_knobs,
        help="As for dvc exp run; repeatable. Robustness is left out unless it is set.",
    )  # fmt: skip
    return knobs(jobs(command))


def _knobs(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    if malformed := [each for each in values if "=" not in each]:
        raise click.BadParameter(f"{malformed[0]} is not KNOB=VALUE", param_hint="-S")
    return dict(each.split("=", 1) for each in values)


def told(settings: Mapping[str, str]) -> str:
    """The settings as they are given to dvc exp run."""
    return " ".join(f"-S {knob}={value}" for knob, value in settings.items()) or "the defaults"


def run_all(recipes: Sequence[Mapping[str, str]], jobs: int) -> Iterator[Outcome]:
    """What came of each of `recipes`, in order; `jobs` of them run at once."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(run, recipes)
        finally:
            pool.shutdown(cancel_futures=True)


def run(settings: Mapping[str, str]) -> Outcome:
    """Run the stages up to evaluate with `settings`; raises ClickException with what a stage that fails said.

    What git does not know, the data and weights from files, is taken from the working tree where it is.
    """
    with tempfile.TemporaryDirectory(prefix="petals-run-") as scratch:
        root = make_workspace(Path(scratch) / "petals", {"robustness": "0", **settings})
        data = read_mapping(root / "params.yaml")["data"]
        if not (root / data).exists():
            (root / data).parent.mkdir(parents=True, exist_ok=True)
            (root / data).symlink_to((REPOSITORY / data).resolve())
        for path in (REPOSITORY / "data" / "weights").glob("*.safetensors"):
            (root / "data" / "weights" / path.name).symlink_to(path.resolve())
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
            return Outcome(scores, list(csv.DictReader(file)), seconds)
