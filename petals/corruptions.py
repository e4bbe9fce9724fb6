"""Common corruptions of photographs: seven kinds, each at five severities, on Kornia.

Kinds and scale follow Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, who work at 224 px; light, contrast and fog stop where a person can still tell the flower.
What counts in pixels is given for 224 px and follows the side of the image, so that a flower suffers alike.
"""

import math
from collections.abc import Callable, Sequence

import kornia.enhance as KE
import numpy as np
import torch
from kornia.contrib import diamond_square
from kornia.filters import filter2d_separable, get_gaussian_erf_kernel1d
from kornia.geometry.transform import resize, scale
from kornia_rs.io import decode_image_jpegturbo, encode_image_jpegturbo
from torch import Tensor

from petals.augmentation import to_bytes, to_floats
from petals.seeding import seed_for

SIDE = 224  # px, at which the strengths are given
CLOUD = 65  # px, side of a cloud before it is stretched over the image


def blur(image: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Out of focus: a Gaussian of `sigma` px, cut at three of them."""
    sigma *= image.shape[-1] / SIDE  # less than a pixel, maybe: so the kernel integrates, and does not sample
    kernel = get_gaussian_erf_kernel1d(2 * math.ceil(3 * sigma) + 1, sigma)
    return filter2d_separable(image, kernel, kernel)


def noise(image: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    """Too little light: Gaussian noise; less of it in a small image, each pixel of which is the mean of several."""
    grain = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
    return image + grain * (deviation * min(image.shape[-1] / SIDE, 1))


def brightness(image: Tensor, shift: float, rng: np.random.Generator) -> Tensor:
    """Too much light: all values rise by `shift`."""
    return KE.adjust_brightness(image, shift)


def contrast(image: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Flat: `share` is left of each value's distance to the mean grey."""
    return KE.adjust_contrast_with_mean_subtraction(image, share)


def jpeg(image: Tensor, quality: float, rng: np.random.Generator) -> Tensor:
    """Compressed to `quality` (below 50) by libjpeg-turbo; to more in a small image, which has less to lose."""
    # The steps of the quantiser are 50 / quality times the standard table's, or 2 − quality / 50 above 50.
    steps = 50 / quality * min(image.shape[-1] / SIDE, 1)
    quality = round(50 / steps if steps > 1 else 100 - 50 * steps)
    file = encode_image_jpegturbo(to_bytes(image)[0], quality, "4:2:0")
    return to_floats(torch.from_numpy(decode_image_jpegturbo(file, "rgb"))[None])


def fog(image: Tensor, density: float, rng: np.random.Generator) -> Tensor:
    """Behind a white cloud, a plasma fractal that hides from half of `density` to all of it."""

    def draw(shape: Sequence[int], **_: object) -> Tensor:
        return torch.from_numpy(rng.random(shape, np.float32))

    cloud = diamond_square((1, 1, CLOUD, CLOUD), random_fn=draw, normalize_range=(0.5, 1.0))
    return image + (1 - image) * density * resize(cloud, image.shape[-2:], align_corners=True)


def zoom(image: Tensor, reach: float, rng: np.random.Generator) -> Tensor:
    """Zoomed with the shutter open: the mean of 16 enlargements, from 1 to `reach` in equal ratios."""
    for enlargements in (1, 2, 4, 8):  # averaged so far; as many again, each that much larger, double them
        image = (image + scale(image, torch.tensor([reach ** (enlargements / 15)]))) / 2
    return image


Corruption = Callable[[Tensor, float, np.random.Generator], Tensor]  # of float32 1 × 3 × H × W in 0…1
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "blur": (blur, (1, 2, 3, 4, 6)),
    "noise": (noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "brightness": (brightness, (0.08, 0.16, 0.24, 0.32, 0.4)),
    "contrast": (contrast, (0.5, 0.4, 0.3, 0.2, 0.12)),
    "jpeg": (jpeg, (25, 18, 15, 10, 7)),
    "fog": (fog, (0.4, 0.5, 0.6, 0.7, 0.8)),
    "zoom": (zoom, (1.11, 1.16, 1.21, 1.26, 1.33)),
}


@torch.inference_mode()
def corrupt(images: np.ndarray, ids: Sequence[str], name: str, severity: int) -> np.ndarray:
    """Corrupt images (uint8 N × H × W × 3, in and out) by the kind `name` at severity 1…5.

    The random numbers of an image depend on (name, id) alone: severities share grain and cloud, and differ in strength.
    """
    function, strengths = CORRUPTIONS[name]
    corrupted = np.empty_like(images)
    for row, each in enumerate(ids):  # one by one, since torch may round otherwise in a batch
        rng = np.random.Generator(np.random.Philox(seed_for(name, each)))
        image = to_floats(torch.from_numpy(images[row : row + 1]))
        corrupted[row] = to_bytes(function(image, strengths[severity - 1], rng))[0]
    return corrupted
