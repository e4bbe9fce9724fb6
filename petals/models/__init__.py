"""The registry of models: what each is called, how it is built, and what its weights expect of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from petals import architectures
from petals.devices import memory_format
from petals.models import efficientnet_lite, transformers

Triple = tuple[float, float, float]
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
LEAST_TO_TRAIN = 128  # pixels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """A model by name: `build(image_size, pretrained)` gives its backbone, with `width` and `stages()`.

    `mean` and `std` are in units of pixels in [0, 1]; one network takes `any_size` that petals.architectures allows
    it, or only the one it was built for; it is mostly `attention`, or convolutions; `dropout` is the head's.
    """

    name: str
    build: Callable[[int, bool], nn.Module]
    mean: Triple
    std: Triple
    any_size: bool = False
    attention: bool = False
    dropout: float = 0.0


def _lite(variant: int, dropout: float) -> ModelSpec:
    def build(image_size: int, pretrained: bool) -> nn.Module:
        return efficientnet_lite.build(variant, pretrained)

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return ModelSpec(f"efficientnet_lite{variant}", build, mean, std, any_size=True, dropout=dropout)


def _vit(size: str, patch: int) -> ModelSpec:
    build = partial(transformers.patch_vit, f"vit_{size}/{patch}")
    return ModelSpec(f"vit_{size}_{patch}", build, (0.5,) * 3, (0.5,) * 3, attention=True)


def _conv_vit(size: str) -> ModelSpec:
    def build(image_size: int, pretrained: bool) -> nn.Module:
        return transformers.conv_vit(size, image_size)

    return ModelSpec(f"vit_{size}_conv", build, IMAGENET_MEAN, IMAGENET_STD, attention=True)


def _tiny_vit(size: str) -> ModelSpec:
    build = partial(transformers.TinyViTBackbone, size)
    return ModelSpec(f"tiny_vit_{size}", build, IMAGENET_MEAN, IMAGENET_STD, attention=True)


def _mobilevit(size: str) -> ModelSpec:
    def build(image_size: int, pretrained: bool) -> nn.Module:
        return transformers.MobileViTBackbone(size)

    return ModelSpec(f"mobilevit_{size}", build, IMAGENET_MEAN, IMAGENET_STD)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        *(_lite(variant, dropout) for variant, dropout in ((0, 0.2), (1, 0.2), (2, 0.3))),
        *(_vit(*size) for size in (("ti", 16), ("s", 16), ("s", 32), ("b", 16), ("b", 32), ("l", 16))),
        *(_conv_vit(size) for size in ("ti", "s")),
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
        self.register_buffer("temperature", torch.tensor(1.0), persistent=False)
        self.backbone = backbone
        self.frozen: list[nn.Module] = []
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(backbone.width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(images)))

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give probabilities, float32 (N, classes): the softmax of the logits / `temperature`; and the features."""
        features = self.features(images)
        logits = self.head(self.dropout(features))
        return (logits.float() / self.temperature).softmax(1), features.float()

    def features(self, images: Tensor) -> Tensor:
        """Give the pooled features (N, D) that the head sees."""
        return self.backbone(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """Give (images - mean) / std, channels last in memory, but on MPS."""
        if torch.compiler.is_exporting():
            return (images - self.mean) / self.std
        rows = images.permute(0, 2, 3, 1).flatten(2)  # over three channels torch would broadcast three times as slowly
        mean, std = (each.flatten().repeat(images.shape[3]) for each in (self.mean, self.std))
        images = (rows - mean).div_(std).unflatten(2, (-1, 3)).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=memory_format(images.device))

    def freeze(self, share: float, stats: bool) -> None:
        """Keep what was pretrained: the first `share` of the backbone's stages, and the `stats` of all batch norms.

        A frozen stage neither learns nor costs a backward pass; a batch norm whose statistics are kept still learns
        its scale and shift.
        """
        stages = self.backbone.stages()
        self.frozen = stages[: round(share * len(stages))]
        for stage in self.frozen:
            stage.requires_grad_(False)
        if stats:
            self.frozen += [each for each in self.backbone.modules() if isinstance(each, BATCH_NORMS)]
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Change to training mode; what is frozen stays as in evaluation."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def train_size(spec: ModelSpec, image_size: int, share: float) -> int:
    """The side in pixels at which to train a model that is evaluated at `image_size`: `share` of it, in steps of 16.

    Objects look smaller in whole photographs than in the crops that training shows, so that a network is right more
    often when it is evaluated at a larger size than it learned at (Touvron et al., "Fixing the train-test resolution
    discrepancy", NeurIPS 2019). What is lost of small images costs more than that, so none is made smaller than
    LEAST_TO_TRAIN. A model that takes one size only is trained at that.
    """
    if share == 1 or not spec.any_size:
        return image_size
    return min(max(16 * round(share * image_size / 16), LEAST_TO_TRAIN), image_size)


def create(name: str, num_classes: int, image_size: int, pretrained: bool) -> Classifier:
    """Build a classifier in training mode; what is not pretrained is drawn from torch's random state.

    So the caller seeds: `torch.manual_seed` before it makes the same weights. Raises PetalsError for a name that
    is not registered, an image size that the model cannot take, and weights that cannot be had.
    """
    architectures.check(name, image_size, pretrained)
    spec = MODELS[name]
    return Classifier(spec, spec.build(image_size, pretrained), num_classes, image_size).train()
