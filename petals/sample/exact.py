"""Arithmetic that gives the same bits on every machine.

The sample's bytes are under test, so the renderer computes with + − × ÷ √, comparisons and whole-number
indexing only: IEEE 754 rounds those the same way on every processor, with or without SIMD. NumPy's sin, cos,
exp, pow and arctan2, its sums of floats and its normal draws may differ in the last bit from one CPU to the
next; what is needed of them is a table here. Angles are in turns (1 = a full circle).
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

_STEPS = 4096
# Rounded coarsely enough that two maths libraries cannot disagree.
_COS = [round(math.cos(2 * math.pi * i / _STEPS) * 65536) / 65536 for i in range(_STEPS)]
_COS_ARRAY = np.array(_COS, np.float32)


def cos(turns: float) -> float:
    """Cosine of an angle in turns, to about three decimals."""
    return _COS[math.floor(turns * _STEPS + 0.5) % _STEPS]


def sin(turns: float) -> float:
    """Sine of an angle in turns, to about three decimals."""
    return cos(turns - 0.25)


def waves(turns: np.ndarray) -> np.ndarray:
    """Cosine of an array of angles in turns, float32."""
    return _COS_ARRAY[np.floor(turns * _STEPS).astype(np.int32) & (_STEPS - 1)]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform draw. (Generator.uniform multiplies and adds in C, which some compilers fuse.)"""
    return low + (high - low) * float(rng.random())


def around(rng: np.random.Generator, spread: float) -> float:
    """A bell-shaped draw about 0 that never leaves ±1.5 × `spread`."""
    return spread * (float(rng.random()) + float(rng.random()) + float(rng.random()) - 1.5)


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(rng.random() * len(items))]


def smooth(x: np.ndarray) -> np.ndarray:
    """Clip to 0…1 and ease both ends."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def blur(image: np.ndarray, passes: Sequence[int]) -> np.ndarray:
    """Blur the last two axes with the kernel (1, 2, 1) / 4, once for each stride in `passes`."""
    for stride in passes:
        for axis in (-2, -1):
            pad = [(0, 0)] * image.ndim
            pad[axis] = (stride, stride)
            wide = np.moveaxis(np.pad(image, pad, "edge"), axis, 0)
            mean = 0.25 * (wide[: -2 * stride] + 2 * wide[stride:-stride] + wide[2 * stride :])
            image = np.moveaxis(mean, 0, axis)
    return np.ascontiguousarray(image)


def enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch the last two axes of a square image to `size`, bilinearly."""
    small = image.shape[-1]
    place = (np.arange(size, dtype=np.float32) + 0.5) * (small / size) - 0.5
    place = np.clip(place, 0, small - 1)
    low = np.minimum(place.astype(np.int32), small - 2)
    weight = place - low.astype(np.float32)
    image = image[..., low, :] * (1 - weight)[:, None] + image[..., low + 1, :] * weight[:, None]
    return image[..., low] * (1 - weight) + image[..., low + 1] * weight
