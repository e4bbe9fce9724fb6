"""tune.yaml: which knobs are searched, where, and for what; held to the types and ranges of params.yaml."""

import datetime
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from petals import params
from petals.errors import PetalsError
from petals.inputs import dvc_files, inputs
from petals.params import check_knob, parse, read_mapping, reason

CURVES = "plots/train"  # where train leaves the curves at its end
# The way a curve, or the last part of a metric's key, should go.
BETTER = {"val/macro_f1": "maximize", "val/nll": "minimize", "train/loss": "minimize"}
BETTER |= dict.fromkeys(("macro_f1", "mean_macro_f1", "accuracy", "top5_accuracy", "top1_agreement"), "maximize")
BETTER |= dict.fromkeys(("nll", "ece", "loss", "bytes"), "minimize")
Value = bool | int | float | str
Settings = dict[str, Value]


def same(one: Value, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)  # to Python, 1 is true


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Range(Strict):
    log: bool = False

    @model_validator(mode="after")
    def ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError("low should be less than high")
        if self.log and self.low <= 0:
            raise ValueError("low should be more than 0 where log is true")
        return self

    def ends(self) -> list[Value]:
        return [self.low, self.high]

    def holds(self, value: Value) -> bool:
        return not isinstance(value, bool | str) and self.low <= value <= self.high


class FloatRange(Range):
    """Real numbers, rounded so that they can be read and said: to three digits, and more in a narrow range."""

    type: Literal["float"]
    low: float
    high: float

    def suggest(self, trial: optuna.Trial, knob: str) -> float:
        value = trial.suggest_float(knob, self.low, self.high, log=self.log)
        digits = max(2 - _magnitude(value), 2 - _magnitude(self.high - self.low))
        return min(max(round(value, digits), self.low), self.high)


def _magnitude(value: float) -> int:
    """The power of ten of the first digit of `value`."""
    return math.floor(math.log10(abs(value) or 1))


class IntRange(Range):
    type: Literal["int"]
    low: int
    high: int

    def holds(self, value: Value) -> bool:
        return super().holds(value) and value == int(value)

    def suggest(self, trial: optuna.Trial, knob: str) -> int:
        return trial.suggest_int(knob, self.low, self.high, log=self.log)


class Choice(Strict):
    type: Literal["choice"]
    values: Annotated[list[Value], Field(min_length=1)]

    def ends(self) -> list[Value]:
        return self.values

    def holds(self, value: Value) -> bool:
        return any(same(value, each) for each in self.values)

    def suggest(self, trial: optuna.Trial, knob: str) -> Value:
        return trial.suggest_categorical(knob, self.values)


class Search(Strict):
    """What tune.yaml says."""

    # FILE:KEY of a metric in git; dots in the key lead inwards
    objective: Annotated[str, Field(pattern=r"^[^:]+\.json:[^:]+$")]
    direction: Literal["maximize", "minimize"] = "maximize"
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)] = [1]
    sampler_seed: Annotated[int, Field(ge=0)] = 1
    startup: Annotated[int, Field(ge=1)] = 5
    curve: str | None = None
    curve_from: Annotated[int, Field(ge=1)] = 1
    space: Annotated[
        dict[str, Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]], Field(min_length=1)
    ]

    def suggest(self, trial: optuna.Trial) -> Settings:
        return {knob: each.suggest(trial, knob) for knob, each in self.space.items()}

    def outside(self, values: Settings) -> list[str]:
        """The searched knobs whose value in `values` is not in the space."""
        return [knob for knob, each in self.space.items() if not each.holds(values[knob])]


def load_search(
    path: str | Path, settings: Iterable[str], knobs: str | Path = "params.yaml"
) -> tuple[Search, Settings]:
    """Read `path` (tune.yaml) and the values of all knobs in `knobs`, with `settings` (KNOB=VALUE) in their place.

    Raises PetalsError, one line, for a file that is no search, for a knob that no stage reads, and for an end of a
    range or a choice that the stage which reads it would refuse; for an objective that is no metric of dvc.yaml, or
    not in its file, where that is there already; and for a curve elsewhere than in plots/train.
    """
    params.load_params(params.PipelineParams, knobs)
    values = read_mapping(knobs)
    for setting in settings:
        knob, given, text = setting.partition("=")
        if not given:
            raise PetalsError(f"-S {setting}: is not KNOB=VALUE")
        check_knob(knob, "-S")
        if knob == "seed":
            raise PetalsError(f"-S {setting}: the search sets it, to each of seeds: in {path}; write it there")
        try:
            value = parse(text, "-S")
        except PetalsError:
            value = text
        values[knob] = text if isinstance(value, datetime.date) else value  # dvc exp run has no dates either
    params.check(values, f"-S {' '.join(settings)}" if settings else knobs)
    try:
        search = Search.model_validate(read_mapping(path))
    except ValidationError as error:
        raise PetalsError(f"{path}: {explain(error)}") from None
    if len(set(search.seeds)) < len(search.seeds):
        raise PetalsError(f"{path}: seeds: each should be there once, but is {search.seeds}")
    for seed in search.seeds:
        params.check(values | {"seed": seed}, f"{path}: seeds")
    for knob, each in search.space.items():
        check_knob(knob, f"{path}: space")
        if knob == "seed":
            raise PetalsError(f"{path}: space: seed is chance, not a setting to be found; list several under seeds:")
        for value in each.ends():
            params.check(values | {knob: value}, f"{path}: space")
    if search.curve and (PurePosixPath(search.curve).is_absolute() or ".." in PurePosixPath(search.curve).parts):
        found = sorted(each.relative_to(CURVES).with_suffix("").as_posix() for each in Path(CURVES).rglob("*.tsv"))
        hint = f"; there is {', '.join(found)}" if found else ""
        raise PetalsError(f"{path}: curve: should be one of {CURVES}, but is {search.curve!r}{hint}")
    key = search.objective.partition(":")[2].rpartition(".")[2]
    if BETTER.get(key, search.direction) != search.direction:
        raise PetalsError(f"{path}: objective: {key} should be {BETTER[key]}d; write direction: {BETTER[key]}")
    if BETTER.get(search.curve, search.direction) != search.direction:
        raise PetalsError(
            f"{path}: curve: {search.curve} is to {BETTER[search.curve]}, but the objective to {search.direction},"
            " and the worst trials would be kept; take another curve, or none"
        )
    file, files = search.objective.partition(":")[0], metric_files()
    if file not in files:
        raise PetalsError(f"{path}: objective: the pipeline has no metrics {file}; there is {', '.join(files)}")
    if Path(file).is_file():
        try:
            metric(Path(file).read_text(encoding="utf-8"), search.objective)
        except (OSError, PetalsError) as error:
            raise PetalsError(f"{path}: objective: {error}") from None
    return search, values


def stages_of(whole: dict, pipeline: str | Path) -> dict[str, dict]:
    stages = whole.get("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise PetalsError(f"{pipeline}: stages: should be a mapping of names to stages; dvc status says what is amiss")
    return stages


def metric_files(pipeline: str | Path = "dvc.yaml") -> list[str]:
    """The metrics that `pipeline` names, of its stages and of its own."""
    whole = read_mapping(pipeline)
    parts = [whole, *stages_of(whole, pipeline).values()]
    named = [each for part in parts for each in part.get("metrics") or ()]
    return list(dict.fromkeys(each if isinstance(each, str) else next(iter(each)) for each in named))


def metric(text: str, objective: str) -> float:
    """The number KEY of FILE:KEY in `text`, what the file holds; PetalsError where there is none."""
    file, _, key = objective.partition(":")
    try:
        values = json.loads(text)
    except ValueError:
        raise PetalsError(f"{file} is not JSON") from None
    numbers = dict(numbers_of(values, ""))
    if key not in numbers:
        near = difflib.get_close_matches(key, numbers, n=3) or list(numbers)[:3]
        hint = f"; there is {', '.join(near)}" if near else ""
        raise PetalsError(f"{file} has no number {key!r}{hint}")
    return numbers[key]


def numbers_of(value: object, key: str) -> Iterator[tuple[str, float]]:
    """Every number in what JSON holds, with its key; dots in it lead inwards."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers_of(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, float(value)


def explain(error: ValidationError) -> str:
    """The first problem that pydantic found, as `key: what should be, but is …`."""
    problem = error.errors()[0]
    place = [str(each) for each in problem["loc"] if each not in ("float", "int", "choice")]
    if problem["type"] == "missing":
        return f"{'.'.join(place)} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{'.'.join(place)}: there is no such key"
    if problem["type"].startswith("union_tag"):
        return f"{'.'.join(place)}: should be {{type: float, int or choice, …}}, but is {problem['input']!r}"
    given = problem["input"]
    return f"{'.'.join(place)}: {reason(problem)}" + ("" if isinstance(given, dict) else f", but is {given!r}")


def fingerprint(search: Search, values: Settings, pipeline: str | Path = "dvc.yaml") -> str:
    """Hash what makes trials comparable: search, knobs it leaves alone, dvc.yaml, the code it names, DVC's data.

    What a search sets is left out of the knobs, so that the best trial may be applied and the search still go on.
    """
    rest = {knob: value for knob, value in sorted(values.items()) if knob not in {*search.space, "seed"}}
    digest = hashlib.blake2b(json.dumps([search.model_dump(), rest], sort_keys=True).encode(), digest_size=16)
    stages = stages_of(read_mapping(pipeline), pipeline)
    data = [each for path in inputs(values).values() for each in dvc_files(path)]
    code = [Path(dep) for stage in stages.values() for dep in stage.get("deps", [])]
    for path in sorted({Path(pipeline), *code, *data}):
        if path.is_file():
            digest.update(repr(path.parts).encode() + hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()
