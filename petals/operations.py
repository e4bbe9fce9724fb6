"""Operations of Kornia's with the same draws and the same pixels, in less time."""

import math

import kornia.augmentation as K
import torch
from kornia.color import rgb_to_hsv
from kornia.enhance.adjust import adjust_hue_raw
from torch import Tensor, nn


class DrawnOnly(nn.Module):
    """An operation that changes some images of a batch: it computes those alone, in place.

    Kornia itself computes a new batch, to keep the drawn ones of it.
    """

    def __init__(self, operation: K.RandomGaussianBlur) -> None:
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
        rows = drawn.to(images.device)
        changed = self.operation.apply_transform(images[rows], own, self.operation.flags)
        return images.index_copy_(0, rows, changed)


class RandomErasing(nn.Module):
    """Kornia's, in place: only the rectangles are written."""

    def __init__(self, scale: tuple[float, float], share: float) -> None:
        super().__init__()
        self.operation = K.RandomErasing(scale=scale, p=share)

    def forward(self, images: Tensor) -> Tensor:
        params = self.operation.forward_parameters(images.shape)
        rectangles = torch.stack([params[name] for name in ("xs", "ys", "widths", "heights")], 1).long().tolist()
        for row in (params["batch_prob"] > 0.5).nonzero()[:, 0].tolist():
            left, top, width, height = rectangles[row]
            images[row, :, top : top + height, left : left + width] = self.operation.value
        return images


class RandomResizedCrop(K.RandomResizedCrop):
    """Kornia's, all images of a batch at once where that is not on a processor.

    Image by image, a GPU would be sent many small kernels, most of all with deterministic algorithms, for which torch
    resizes in many steps. The pixels are the same but for rounding.
    """

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict, transform: Tensor | None = None
    ) -> Tensor:
        if not input.is_cpu:
            flags = flags | {"cropping_mode": "resample"}
            transform = self.compute_transformation(input, params, flags)
        return super().apply_transform(input, params, flags, transform)


class HorizontalFlip(nn.Module):
    """Kornia's RandomHorizontalFlip, in place; an image at a time on a processor, where torch is fastest at that."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.operation = K.RandomHorizontalFlip(p=share)

    def forward(self, images: Tensor) -> Tensor:
        drawn = (self.operation.forward_parameters(images.shape)["batch_prob"] > 0.5).nonzero()[:, 0]
        for rows in drawn.tolist() if images.is_cpu else [drawn.to(images.device)]:
            images[rows] = images[rows].flip(-1)
        return images


class MixUp(K.RandomMixUpV2):
    """Kornia's MixUp of all images, with fewer copies of them."""

    def transform_input(self, input: Tensor, params: dict[str, Tensor], flags: dict) -> Tensor:
        share = params["mixup_lambdas"].to(input.device, input.dtype).view(-1, 1, 1, 1)
        partners = input[params["mixup_pairs"].to(input.device)]
        return (input * (1 - share)).add_(partners.mul_(share))


class CutMix(K.RandomCutMixV2):
    """Kornia's CutMix of all images, which copies rectangles and looks at no other pixel."""

    def transform_input(self, input: Tensor, params: dict[str, Tensor], flags: dict) -> Tensor:
        mixed = input.clone()
        for pairs, corners in zip(params["mix_pairs"].tolist(), params["crop_src"][:, :, ::2].tolist(), strict=True):
            for row, (other, ((left, top), (right, bottom))) in enumerate(zip(pairs, corners, strict=True)):
                down = slice(max(0, math.ceil(top)), max(0, math.floor(bottom) + 1))
                across = slice(max(0, math.ceil(left)), max(0, math.floor(right) + 1))
                mixed[row, :, down, across] = input[other, :, down, across]
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
