"""A trained classifier on disk: weights as safetensors, and the JSON that says how to use them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from petals.errors import PetalsError
from petals.files import replacing
from petals.models import Classifier, create, transformers
from petals.tables import write_json

FORMAT = 2
FIELDS = {
    "format": int,
    "architecture": str,
    "image_size": int,
    "mean": list,
    "std": list,
    "temperature": float,
    "final": bool,
    "classes": list,
}

LEARNT_BIAS = "head.learnt_bias"  # a tensor of the file alone, not of the model
POSITIONS = "backbone.network.patch_embedding.positions"


def save(
    model: Classifier,
    classes: list[str],
    path: str | Path,
    *,
    offsets: np.ndarray | None = None,
    temperature: float = 1.0,
    final: bool = False,
) -> None:
    """Write the weights to `path` (.safetensors), and all that is needed to use them to the .json beside it.

    The JSON holds `format` (2), `architecture`, `classes` in label order, `image_size` in pixels, `mean` and `std`
    of the pixels in [0, 1], by channel, the `temperature` that the logits are divided by, and `final`: whether the
    model has learnt from the validation images too. The head's bias is written with `offsets` (float, C) for rare
    classes added. For `warm_start` the weights name the classes as well, and hold the bias without them. The same
    weights give the same bytes.
    """
    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if offsets is not None:
        state[LEARNT_BIAS] = state["head.bias"]
        state["head.bias"] = state["head.bias"] + torch.from_numpy(offsets).float()
    with replacing(path) as partial:
        partial.write_bytes(to_safetensors(state, metadata={"classes": json.dumps(classes)}))
    info = {
        "format": FORMAT,
        "architecture": model.name,
        "image_size": model.image_size,
        "mean": numbers_of(model.mean),
        "std": numbers_of(model.std),
        "temperature": numbers_of(torch.tensor(temperature))[0],
        "final": final,
        "classes": list(classes),
    }
    write_json(path.with_suffix(".json"), info)


def load(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """Read what `save` wrote: the classifier in evaluation mode, and the content of the JSON.

    Raises PetalsError where a file is missing or broken, or where the two do not belong together.
    """
    path = Path(path)
    info = read_info(path.with_suffix(".json"))
    state = read_state(path)
    state.pop(LEARNT_BIAS, None)
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are thrown away; so is the trace of drawing them
            model = create(info["architecture"], len(info["classes"]), info["image_size"], pretrained=False)
    except PetalsError as error:
        raise PetalsError(f"{path.with_suffix('.json')}: {error}") from None
    if problem := mismatch(model.state_dict(), state):
        wanted = f"{info['architecture']} of {len(info['classes'])} classes at {info['image_size']} px"
        raise PetalsError(f"{path}: {problem}, but {path.with_suffix('.json').name} says {wanted}; train again")
    model.load_state_dict(state)
    model.mean.copy_(torch.tensor(info["mean"]).view_as(model.mean))
    model.std.copy_(torch.tensor(info["std"]).view_as(model.std))
    model.temperature.fill_(info["temperature"])
    return model.eval(), info


def warm_start(model: Classifier, path: str | Path, classes: list[str]) -> str:
    """Put the weights of `path` into `model`, whose head tells `classes` apart; say in a line what was taken.

    The file is one that `save` wrote, or holds the tensors of a backbone alone, their names with or without
    `backbone.` before them. A head is taken where the file names the same classes in the same order, as it was before
    it was adjusted for rare classes, which a training does at its end; else `model` keeps its own. The position
    embeddings of a ViT are resized to the grid of `model`, and floats of another precision become those of `model`.
    Raises PetalsError where the file is missing or broken, or holds another architecture.
    """
    path = Path(path)
    state, own = read_state(path), model.state_dict()
    if LEARNT_BIAS in state:
        state["head.bias"] = state.pop(LEARNT_BIAS)
    heads = {name: tensor for name, tensor in own.items() if name.startswith("head.")}
    same = read_classes(path) == classes
    found = {name: tensor for name, tensor in state.items() if name in heads} if same else heads
    found |= {f"backbone.{name.removeprefix('backbone.')}": state[name] for name in state if name not in heads}
    if POSITIONS in own and POSITIONS in found:
        tokens = model.backbone.network.patch_embedding
        found[POSITIONS] = transformers.resized_positions(found[POSITIONS], tokens.grid_size[0])
    for name, tensor in own.items():
        if name.endswith(".num_batches_tracked"):
            found.setdefault(name, tensor)  # some files leave out this count, which nothing here reads
        elif name in found and tensor.is_floating_point() and found[name].is_floating_point():
            found[name] = found[name].to(tensor.dtype)
            if not torch.isfinite(found[name]).all():
                raise PetalsError(f"pretrained: {path} holds numbers in {name} that are not finite; take another file")
    if problem := mismatch(own, found):
        raise PetalsError(f"pretrained: {path} does not fit {model.name} at {model.image_size} px: {problem}")
    model.load_state_dict(found)
    if same:
        return f"pretrained: weights and head from {path}"
    return f"pretrained: weights from {path}; the head is new, as the file has none for these classes"


def read_info(path: Path) -> dict[str, Any]:
    """Read and check the JSON beside the weights; raises PetalsError."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PetalsError(f"{path} is missing: it says how to use the weights; train again") from None
    except ValueError as error:
        raise PetalsError(f"{path} is not JSON ({error}); train again") from None
    for key, kind in FIELDS.items():
        if not isinstance(info, dict) or not isinstance(info.get(key), kind):
            raise PetalsError(f"{path}: '{key}' is missing or not of type {kind.__name__}; train again")
    if info["format"] != FORMAT:
        raise PetalsError(f"{path}: format {info['format']} is not known here, only {FORMAT}; train again")
    if not info["classes"] or not all(isinstance(name, str) for name in info["classes"]):
        raise PetalsError(f"{path}: 'classes' should be names in label order; train again")
    for key in ("mean", "std"):
        numbers = [value for value in info[key] if isinstance(value, int | float)]
        if len(numbers) != 3 or len(info[key]) != 3 or (key == "std" and min(numbers) <= 0):
            raise PetalsError(f"{path}: '{key}' should be three numbers, one a channel; train again")
    if not 0 < info["temperature"] < math.inf:
        raise PetalsError(f"{path}: 'temperature' should be more than 0; train again")
    return info


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name; raises PetalsError."""
    try:
        return parse_safetensors(path.read_bytes())
    except FileNotFoundError:
        raise PetalsError(f"{path} is missing; train, or fetch it with `dvc pull`") from None
    except OSError as error:
        raise PetalsError(f"{path} cannot be read ({error.strerror}); give a .safetensors file") from None
    except SafetensorError as error:
        raise PetalsError(f"{path} is broken or cut short ({error}); train again, or `dvc pull`") from None


def read_classes(path: Path) -> list[str] | None:
    """Read which classes the head in a safetensors file tells apart; None where the file does not say."""
    with safe_open(path, "pt") as file:
        named = (file.metadata() or {}).get("classes", "null")
    try:
        return json.loads(named)
    except ValueError:
        return None


def mismatch(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """Say what is wrong with the first tensor that differs in presence, shape or type; None where all fit."""
    for name, tensor in wanted.items():
        if name not in found:
            return f"tensor {name} is missing"
        for kind, ours, theirs in (
            ("shape", tuple(tensor.shape), tuple(found[name].shape)),
            ("type", tensor.dtype, found[name].dtype),
        ):
            if ours != theirs:
                return f"tensor {name} has {kind} {theirs}, not {ours}"
    extra = next((name for name in found if name not in wanted), None)
    return f"tensor {extra} is not expected" if extra else None


def numbers_of(buffer: Tensor) -> list[float]:
    """Give a buffer's float32 numbers, each with as few digits as lead back to it."""
    return [float(str(value)) for value in buffer.flatten().cpu().numpy()]
