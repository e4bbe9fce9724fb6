"""The registry of models: what each is called, how it is built, and what its weights expect of an image."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from petals.errors import PetalsError
from petals.models import efficientnet_lite, transformers

Triple = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """A model by name: `build(image_size, pretrained)` gives its backbone, with `width` and `stages()`.

    `mean` and `std` are in units of pixels in [0, 1]; image sizes are multiples of `size_multiple` from
    `min_size` pixels; `dropout` is the head's.
    """

    name: str
    build: Callable[[int, bool], nn.Module]
    mean: Triple
    std: Triple
    size_multiple: int = 1
    min_size: int = 32
    dropout: float = 0.0


def _lite(variant: int, dropout: float) -> ModelSpec:
    def build(image_size: int, pretrained: bool) -> nn.Module:
        return efficientnet_lite.build(variant, pretrained)

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return ModelSpec(f"efficientnet_lite{variant}", build, mean, std, dropout=dropout)


def _vit(size: str, patch: int) -> ModelSpec:
    build = partial(transformers.ViT, f"vit_{size}/{patch}")
    return ModelSpec(f"vit_{size}_{patch}", build, (0.5,) * 3, (0.5,) * 3, patch, 2 * patch)


def _tiny_vit(size: str) -> ModelSpec:
    build = partial(transformers.TinyViTBackbone, size)
    return ModelSpec(f"tiny_vit_{size}", build, IMAGENET_MEAN, IMAGENET_STD, size_multiple=32)


def _mobilevit(size: str) -> ModelSpec:
    def build(image_size: int, pretrained: bool) -> nn.Module:
        return transformers.MobileViTBackbone(size, pretrained)

    return ModelSpec(f"mobilevit_{size}", build, IMAGENET_MEAN, IMAGENET_STD, size_multiple=64, min_size=64)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        *(_lite(variant, dropout) for variant, dropout in ((0, 0.2), (1, 0.2), (2, 0.3))),
        *(_vit(*size) for size in (("ti", 16), ("s", 16), ("s", 32), ("b", 16), ("b", 32), ("l", 16))),
        *(_tiny_vit(size) for size in ("5m", "11m", "21m")),
        *(_mobilevit(size) for size in ("xxs", "xs", "s")),
    )
}


class Classifier(nn.Module):
    """Normalisation, backbone and head: float32 images (N, 3, H, W) in [0, 1] to logits (N, classes).

    The parameters of `head` are new in every fine-tuning; those of `backbone` may be pretrained.
    """

    def __init__(self, spec: ModelSpec, backbone: nn.Module, num_classes: int, image_size: int):
        super().__init__()
        self.name = spec.name
        self.image_size = image_size
        # Not among the weights: model.json and the registry say them.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = backbone
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(backbone.width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """Give the pooled features (N, D) that the head sees."""
        return self.backbone((images - self.mean) / self.std)

    def groups(self) -> list[list[nn.Parameter]]:
        """List the parameters by depth, from the stem to the head: for learning rates that fall by layer."""
        return [list(stage.parameters()) for stage in (*self.backbone.stages(), self.head)]


def find(name: str) -> ModelSpec:
    """Look a model up; raises PetalsError with the nearest name where there is none."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]
    raise PetalsError(f"model: there is no '{name}'; did you mean {near}? There are {', '.join(MODELS)}")


def check_image_size(spec: ModelSpec, image_size: int) -> None:
    """Raise PetalsError, with the nearest sizes, for an `image_size` that the model cannot take."""
    step, least = spec.size_multiple, spec.min_size
    if image_size >= least and image_size % step == 0:
        return
    below = image_size // step * step
    near = [str(size) for size in (below, below + step) if size >= least] or [str(least)]
    sizes = f"multiples of {step} from {least}" if step > 1 else f"{least} and more"
    raise PetalsError(
        f"image_size: {spec.name} cannot take {image_size}, but takes {sizes}; nearest: {' or '.join(near)}"
    )


def create(name: str, num_classes: int, image_size: int, pretrained: bool) -> Classifier:
    """Build a classifier in training mode; what is not pretrained is drawn from torch's random state.

    So the caller seeds: `torch.manual_seed` before it makes the same weights. Raises PetalsError for a name that
    is not registered, an image size that the model cannot take, and weights that cannot be had.
    """
    spec = find(name)
    check_image_size(spec, image_size)
    return Classifier(spec, spec.build(image_size, pretrained), num_classes, image_size).train()
