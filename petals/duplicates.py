"""Near-duplicate photographs, found by the correlation of their thumbnails.

Two pictures of one flower a moment apart, one in train and one in validation, make a score look better than it is.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

THUMBNAIL = 16
# Among the Oxford photographs 68 of the 69 near-duplicate pairs correlate at 0.99 or more, one at 0.959, and no other
# pair at more than 0.943.
THRESHOLD = 0.95
BLOCK = 256
COARSE = 4
ROUNDING = 1e-4  # of float32, so that no pair is lost to it
MOST = 5


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Average uint8 N × H × W × 3 images over a grid of 16 × 16; gives uint8 N × 16 × 16 × 3."""
    count, height, width, _ = images.shape
    rows, columns = (np.linspace(0, side, THUMBNAIL + 1).astype(int) for side in (height, width))
    lines = images.reshape(count, height, -1)  # of bytes, whose sums are twice as fast as those over all four axes
    narrow = np.min_scalar_type(255 * int(np.diff(rows).max()))  # uint16 for most, in half the time of uint32
    sums = np.stack([lines[:, top:bottom].sum(1, dtype=narrow) for top, bottom in pairwise(rows)], axis=1)
    sums = np.add.reduceat(sums.reshape(count, THUMBNAIL, width, 3), columns[:-1], axis=2, dtype=np.uint32)
    areas = np.outer(np.diff(rows), np.diff(columns))
    return (sums // areas[:, :, None]).astype(np.uint8)


def near_duplicates(
    thumbnails: np.ndarray, threshold: float = THRESHOLD, groups: np.ndarray | None = None, most: int = MOST
) -> list[tuple[int, int, float]]:
    """Pairs (i, j, correlation) with i < j whose thumbnails correlate at `threshold` or more, in order.

    `thumbnails` is uint8 N × 16 × 16 × 3. Brightness, contrast and a cast of colour do not matter, since each channel
    is centred, and the picture scaled. One of a plain colour has nothing to compare and matches none. Of each image the
    `most` nearest in each of `groups` (int, N; all one group if not given) are listed, so that a thousand pictures that
    are all alike do not give half a million pairs.
    """
    groups = np.zeros(len(thumbnails), int) if groups is None else groups
    pairs = []
    for i, later, correlations in alike(thumbnails, threshold):
        for group in np.unique(groups[later]):
            among = groups[later] == group
            nearest = np.argsort(-correlations[among], kind="stable")[:most]
            found = zip(later[among][nearest], correlations[among][nearest], strict=True)
            pairs.extend((i, int(j), float(correlation)) for j, correlation in found)
    return sorted(pairs)


def groups_of(thumbnails: np.ndarray) -> np.ndarray:
    """A number for each of `thumbnails` (int, N), the same for near-duplicates, and for what is linked by these."""
    numbers = np.arange(len(thumbnails))
    for i, later, _ in alike(thumbnails, THRESHOLD):
        numbers[np.isin(numbers, numbers[later])] = numbers[i]
    return numbers


def alike(thumbnails: np.ndarray, threshold: float) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each image that has any, in order: the later ones that correlate with it at `threshold` or more, and how."""
    parts = (thumbnails[start : start + BLOCK] for start in range(0, len(thumbnails), BLOCK))
    bounds = np.concatenate([np.empty((0, COARSE**2 * 3 + 1), np.float32), *(bounding(units(each)) for each in parts)])
    for top in range(0, len(bounds), BLOCK):
        rows, others = above(bounds, thumbnails, top, threshold - ROUNDING)
        for i in np.unique(rows):
            later = others[rows == i]
            correlations = units(thumbnails[later]) @ units(thumbnails[i : i + 1])[0]
            later, correlations = later[correlations >= threshold], correlations[correlations >= threshold]
            if len(later):
                yield int(i), later, correlations


def above(bounds: np.ndarray, thumbnails: np.ndarray, top: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The pairs i < j, with i among the BLOCK rows from `top`, whose `bounds` have a product of `least` or more.

    Fine textures have little in their short vectors, so that these rule hardly a pair out: such squares are compared in
    full at once, which is much faster than image by image.
    """
    found = [np.empty((0, 2), int)]
    buffer = np.empty((BLOCK, BLOCK), np.float32)
    # Squares that stay in the processor's cache, and mostly hold nothing: in half the time of the whole width at once.
    for left in range(top, len(bounds), BLOCK):
        a, b = bounds[top : top + BLOCK], bounds[left : left + BLOCK]
        products = np.matmul(a, b.T, out=buffer[: len(a), : len(b)])
        if left == top:
            products[np.tri(len(a), dtype=bool)] = -1  # each with itself, and pairs the other way round
        if products.max() >= least:
            near = products >= least
            if np.count_nonzero(near) > BLOCK:
                near &= units(thumbnails[top : top + BLOCK]) @ units(thumbnails[left : left + BLOCK]).T >= least
            found.append(np.argwhere(near) + np.array([top, left]))
    return tuple(np.concatenate(found).T)


def units(thumbnails: np.ndarray) -> np.ndarray:
    """Each channel centred, all scaled to length 1, so that products are correlations; float32 N × 768.

    Centred together, pictures of one colour would be alike for that alone, such as all those with a blue sky.
    """
    unit = thumbnails.reshape(len(thumbnails), THUMBNAIL * THUMBNAIL, 3).astype(np.float32)
    unit -= unit.mean(axis=1, keepdims=True)
    unit = unit.reshape(len(unit), THUMBNAIL * THUMBNAIL * 3)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-6)
    return unit


def bounding(unit: np.ndarray) -> np.ndarray:
    """Short vectors, float32 N × 49, whose products are at least those of the long ones (Cauchy and Schwarz).

    The first 48 numbers are the part of each that a thumbnail of 4 × 4 keeps, the last is the length of the rest. So
    the products of all pairs cost a fifteenth, and no pair is missed.
    """
    side = THUMBNAIL // COARSE
    cells = unit.reshape(len(unit), COARSE, side, COARSE, side, 3).sum(axis=(2, 4))
    kept = cells.reshape(len(unit), COARSE**2 * 3) / side
    rest = np.sqrt(np.maximum(np.square(unit).sum(1) - np.square(kept).sum(1), 0))
    return np.column_stack([kept, rest])
