"""params.yaml as one typed model a stage.

The file is read as DVC reads and writes it, by ruamel.yaml: `1e-05` is a number there, `on` is text.
"""

import difflib
import re
import reprlib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError

from petals import architectures
from petals.errors import PetalsError


def known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("should be auto, cpu, mps, cuda, or one GPU of several such as cuda:1")
    return name


def plain_path(path: str) -> str:
    # dvc.yaml puts it between quotes into a shell's command.
    if not path or set(path) & set('"$`\\\n'):
        raise ValueError('should be a path without " $ ` \\ or line ends')
    return path


def launcher(command: str) -> str:
    # dvc.yaml puts the name of a stage after it, and a shell runs that.
    if not re.fullmatch(r"[\w./:=,@+ -]*(?<!\S)-m", command, re.ASCII):
        raise ValueError('should be a command that ends in -m, such as "torchrun --nproc-per-node 2 -m"')
    return command


def weights_to_start_from(value: object) -> object:
    # dvc.yaml names data/weights/${pretrained} as an input, so that a run depends on the file it uses and no other.
    if not isinstance(value, bool) and not re.fullmatch(r"[\w.+-]+\.safetensors", str(value), re.ASCII):
        raise ValueError("should be true, false, or the name of a .safetensors file that you dvc add in data/weights")
    return value


def fitted_or_given(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "fit" and not (number and 0.25 <= value <= 100):  # the coldest that `fit` gives
        raise ValueError("should be fit, or a number from 0.25 to 100")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=256)]
Device = Annotated[str, AfterValidator(known_device)]
Temperature = Annotated[float | str, BeforeValidator(fitted_or_given)]


class StageParams(BaseModel):
    """The knobs that one stage reads; the names are those of its `params:` in dvc.yaml."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class PipelineParams(StageParams):
    """Read by dvc.yaml itself, which makes commands of them."""

    data: Annotated[str, AfterValidator(plain_path)]
    launch: Annotated[str, AfterValidator(launcher)]


class PrepareParams(StageParams):
    image_size: Annotated[int, Field(ge=16, le=1024)]
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    drop_leaks: bool
    final: bool


class AugmentParams(StageParams):
    seed: Annotated[int, Field(ge=0)]
    views: Annotated[int, Field(ge=0, le=1000)]
    crop_min: Annotated[float, Field(gt=0, le=1)]
    rotation: Annotated[float, Field(ge=0, le=180)]
    brightness: Annotated[float, Field(ge=0, lt=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]
    saturation: Annotated[float, Field(ge=0, lt=1)]
    hue: Annotated[float, Field(ge=0, le=0.5)]
    blur: Share


class TrainParams(StageParams):
    seed: Annotated[int, Field(ge=0)]
    model: str
    pretrained: Annotated[bool | str, BeforeValidator(weights_to_start_from)]
    epochs: Count
    min_steps: Annotated[int, Field(ge=0)]
    balance: Share
    batch_size: Annotated[int, Field(ge=2)]  # the batch norm of one image is not defined
    accumulate: Count
    train_size: Annotated[float, Field(gt=0, le=1)]
    finish: Share
    frozen: Share
    freeze_stats: bool
    lr: Annotated[float, Field(gt=0, le=10)]
    head_lr: Annotated[float, Field(gt=0, le=1000)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    warmup_epochs: Annotated[float, Field(ge=0, le=1000)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    adjust: Share
    temperature: Temperature
    flip: Share
    erasing: Share
    mixup: Share
    cutmix: Share
    precision: Literal["fp32", "bf16", "auto"]
    compile: bool
    device: Device
    threads: Threads

    @field_validator("compile")
    @classmethod
    def batches_are_whole(cls, compiled: bool, info: ValidationInfo) -> bool:
        if compiled and info.data.get("accumulate", 1) > 1:
            raise ValueError("should be false where accumulate is more than 1")
        return compiled

    @field_validator("cutmix")
    @classmethod
    def shares_fit(cls, cutmix: float, info: ValidationInfo) -> float:
        if cutmix + info.data.get("mixup", 0) > 1:
            raise ValueError("mixup and cutmix should add up to 1 at most")
        return cutmix


class EvaluateParams(StageParams):
    temperature: Temperature
    robustness: Annotated[int, Field(ge=0, le=5)]
    device: Device
    threads: Threads


class ExportParams(StageParams):
    max_f1_drop: Share
    threads: Threads


STAGES: dict[str, type[StageParams]] = {
    "prepare": PrepareParams,
    "augment": AugmentParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "export": ExportParams,
}
SHOWN = reprlib.Repr()  # of a value in a message; nothing of a list's depth
SHOWN.maxstring = SHOWN.maxother = 200
KNOBS = frozenset().union(*(model.model_fields for model in (PipelineParams, *STAGES.values())))
Params = TypeVar("Params", bound=StageParams)


def load_params(model: type[Params], path: str | Path = "params.yaml") -> Params:
    """Read what one stage needs; the whole file is checked, so that a mistake shows before any work is done.

    Raises PetalsError for a file that is absent, is not a flat mapping, has a key twice or one that nobody reads,
    lacks one, or holds a value of the wrong type or out of range, or a model with a size that it cannot take.
    """
    values = read_mapping(path)
    for knob in sorted(values):
        check_knob(knob, path, "remove it")
    check(values, path)
    return model.model_validate(values)


def check_knob(knob: str, where: str | Path, advice: str = "the knobs are those of params.yaml") -> None:
    """Raise PetalsError, which starts with `where`, if no stage reads `knob`."""
    if knob not in KNOBS:
        near = difflib.get_close_matches(knob, KNOBS, n=1)
        raise PetalsError(f"{where}: no stage reads {knob!r}; {f'did you mean {near[0]}?' if near else advice}")


def check(values: dict[str, object], path: str | Path) -> None:
    """Raise PetalsError, which starts with `path`, for the first knob that will not do, alone or beside the others."""
    for each in (PipelineParams, *STAGES.values()):
        check_stage(each, values, path)
    try:
        architectures.check(values["model"], values["image_size"], values["pretrained"] is True)
    except PetalsError as error:
        raise PetalsError(f"{path}: {error}") from None


def check_stage(model: type[StageParams], values: dict[str, object], path: str | Path) -> None:
    try:
        model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = problem["loc"][0]
        if problem["type"] == "missing":
            raise PetalsError(f"{path}: {key} is missing; add a line '{key}: …'") from None
        raise PetalsError(f"{path}: {key}: {reason(problem)}, but is {SHOWN.repr(values[key])}") from None


def reason(problem: ErrorDetails) -> str:
    """What pydantic says of a problem, to go after the name of what has it."""
    said = problem["msg"].replace("Input should", "should").replace("String should", "should")
    return said.removeprefix("Value error, ")


def read_mapping(path: str | Path) -> dict[str, object]:
    """Read a YAML file that is a mapping from text to values."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PetalsError(f"{path}: not found; run from the top folder of the repository") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PetalsError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    values = parse(text, path)
    if not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise PetalsError(f"{path}: should be a mapping of one 'knob: value' a line, but is {found}")
    odd = [key for key in values if not isinstance(key, str)]
    if odd:
        raise PetalsError(f"{path}: {odd[0]!r} is not a name; put a knob's name before each colon")
    return values


def parse(text: str, where: str | Path) -> object:
    """What YAML 1.2 reads in `text`; raises PetalsError, which starts with `where`, for what is not YAML."""
    try:
        return YAML(typ="safe").load(text)
    # The others: a number of 5,000 digits, `!!bool foo` and `!!int`, a thousand brackets.
    except (YAMLError, ValueError, LookupError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}: line {mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise PetalsError(f"{line}: not valid YAML: {problem}") from None
