"""One side of the comparison: what git keeps of a run, parsed, and what of it is missing or damaged."""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent

from petals.report.revisions import Revision, Unreadable
from petals.scores import EPSILON

ROBUSTNESS = "metrics/robustness.json"
EXPORT = "metrics/export.json"
CURVES = "plots/train"
MOST_CURVES = 8
DEEPEST = 20  # levels of a file; ours have three
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Prediction:
    actual: str
    predicted: str
    confidence: str
    likelihood: float  # the probability of the actual class; NaN in older runs


@dataclass(frozen=True)
class Stage:
    """A stage as dvc.lock has it; deps and outs map a path to its hash."""

    cmd: str
    deps: dict[str, str]
    params: dict[str, Any]
    outs: dict[str, str]
    sizes: dict[str, int]  # bytes of each out


@dataclass(frozen=True)
class Side:
    """A run at one revision. What could not be read is None, and `problems` says why."""

    revision: Revision
    scores: dict[str, Any] | None
    robustness: dict[str, Any] | None  # None, without a problem, for older runs; so is int8
    int8: dict[str, Any] | None
    predictions: dict[str, Prediction] | None  # by id
    params: dict[str, Any] | None
    card: dict[str, Any] | None
    stages: dict[str, Stage] | None
    curves: dict[str, list[tuple[float, float]]]  # by name: (step, value), as far as these are finite
    diverged: list[str]  # curves with values that are not
    problems: list[Unreadable]
    final: bool  # the model has learnt from the validation images too, so nothing is scored


def read_side(revision: Revision) -> Side:
    """Read all that the report needs of `revision`; never raises for what a file holds."""
    problems: list[Unreadable] = []

    def read(path: str, parse: Callable[[str], Parsed]) -> Parsed | None:
        try:
            return parsed(revision, path, parse)
        except Unreadable as problem:
            problems.append(problem)
            return None

    scores = read("metrics/evaluate.json", _json_mapping)
    there = revision.files("metrics")
    robustness = read(ROBUSTNESS, _json_mapping) if ROBUSTNESS in there else None
    export = read(EXPORT, _json_mapping) if EXPORT in there else None
    int8 = (export or {}).get("int8")
    final = (scores or {}).get("final") is True  # predictions.csv is empty then, which is no fault
    predictions = None if final else read("plots/predictions.csv", _predictions)
    params = read("params.yaml", yaml_mapping)
    card = read("metrics/prepare.json", _json_mapping)
    stages = read("dvc.lock", _stages)
    curves, diverged = {}, []
    for path in _curve_paths(revision):
        name, points = path.removeprefix(f"{CURVES}/").removesuffix(".tsv"), read(path, _curve) or []
        if finite := [(step, value) for step, value in points if math.isfinite(value)]:
            curves[name] = finite
        if len(finite) < len(points):
            diverged.append(name)
    return Side(
        revision=revision,
        scores=scores,
        robustness=robustness,
        int8=int8 if isinstance(int8, dict) else None,
        predictions=predictions,
        params=params,
        card=card,
        stages=stages,
        curves=curves,
        diverged=diverged,
        problems=problems,
        final=final,
    )


def number(value: Any) -> float | None:
    """`value` as a finite float, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def parsed(revision: Revision, path: str, parse: Callable[[str], Parsed]) -> Parsed:
    text = revision.text(path)
    try:
        return parse(text)
    except _Damaged as damage:
        raise Unreadable(path, str(damage)) from None
    except Exception:  # whatever a parser makes of a damaged file: a pull request may hold anything
        raise Unreadable(path, "is damaged: it does not parse") from None


class _Damaged(Exception):
    """What is wrong with a file that parses; our own words alone, nothing quoted from the file."""


def _json_mapping(text: str) -> dict[str, Any]:
    return _mapping(json.loads(text))


def yaml_mapping(text: str) -> dict[str, Any]:
    yaml = YAML(typ="safe", pure=True)  # YAML 1.2 as DVC reads it: 1e-4 is a number
    if any(isinstance(event, AliasEvent) for event in yaml.parse(text)):
        raise _Damaged("uses YAML aliases, which the report does not follow")
    return {str(key): value for key, value in _mapping(YAML(typ="safe", pure=True).load(text)).items()}


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Damaged("is damaged: it does not hold a mapping of names to values")
    level = [value]
    for _ in range(DEEPEST):
        if any(isinstance(item, int) and item.bit_length() > 1000 for item in level):
            raise _Damaged("holds a number that is too large")  # Python refuses to print it
        nests = [item for item in level if isinstance(item, dict | list | set)]
        folders = [chain.from_iterable(item.items()) if isinstance(item, dict) else item for item in nests]
        level = [child for folder in folders for child in folder]
    if level:
        raise _Damaged(f"is nested more than {DEEPEST} deep")
    return value


def _predictions(text: str) -> dict[str, Prediction]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if not {"id", "actual", "predicted"} <= set(rows.fieldnames or ()):
        raise _Damaged("is damaged: its header is not id,actual,predicted,confidence")
    predictions = {}
    for row in rows:
        key, actual, predicted = row["id"], row["actual"], row["predicted"]
        if actual is None or predicted is None:
            raise _Damaged(f"is damaged: line {rows.line_num} is too short")
        if key in predictions:
            raise _Damaged(f"is damaged: line {rows.line_num} repeats an id")
        predictions[key] = Prediction(actual, predicted, row.get("confidence") or "", _likelihood(row))
    if not predictions:
        raise _Damaged("holds no predictions")
    return predictions


def _likelihood(row: dict[str, str | None]) -> float:
    try:
        value = float(row.get("likelihood") or "nan")
    except ValueError:
        return math.nan
    return max(value, EPSILON) if 0 <= value <= 1 else math.nan


def _stages(text: str) -> dict[str, Stage]:
    stages = {}
    for name, entry in yaml_mapping(text).get("stages", {}).items():
        deps, outs = entry.get("deps") or [], entry.get("outs") or []
        files = entry.get("params") or {}
        stages[str(name)] = Stage(
            cmd=str(entry.get("cmd")),
            deps={str(dep["path"]): str(dep.get("md5")) for dep in deps},
            params={str(key): value for values in files.values() for key, value in values.items()},
            outs={str(out["path"]): str(out.get("md5")) for out in outs},
            sizes={str(out["path"]): _size(out["size"]) for out in outs if "size" in out},
        )
    return stages


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _Damaged("is damaged: a size in it is no number of bytes")
    return value


def _curve_paths(revision: Revision) -> list[str]:
    """The curves worth a chart, validation first: what a reader looks at before anything else."""
    paths = [path for path in revision.files(CURVES) if path.endswith(".tsv")]
    return sorted(paths, key=lambda path: (not path.startswith(f"{CURVES}/val/"), path))[:MOST_CURVES]


def _curve(text: str) -> list[tuple[float, float]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    if next(rows, ["nothing"])[0] != "step":
        raise _Damaged("is damaged: its first column is not step")
    points = {}  # a run that was resumed may have logged a step twice: the last counts
    for row in rows:
        step, value = float(row[0]), float(row[1])
        if math.isfinite(step):
            points[step] = value
    return sorted(points.items())
