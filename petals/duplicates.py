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
RULED_OUT = -2.0  # less than any correlation
MOST = 5
_cell = np.kron(np.eye(COARSE, dtype=np.float32), np.ones((THUMBNAIL // COARSE, 1), np.float32))
POOLING = np.kron(np.kron(_cell, _cell), np.eye(3, dtype=np.float32)) * COARSE / THUMBNAIL  # 768 × 48


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
    is centred, and the picture scaled. One of a plain colour has nothing to compare and matches none. Of each image
    the `most` nearest of those after it in each of `groups` (int, N; all one group if not given) are listed, so that a
    thousand pictures that are all alike do not give half a million pairs.
    """
    groups = np.zeros(len(thumbnails), int) if groups is None else groups
    pairs = []
    for i, later, correlations in alike(thumbnails, threshold):
        for group in np.unique(groups[later]):
            among = groups[later] == group
            nearest = np.argsort(-correlations[among].round(5), kind="stable")[:most]  # copies tie
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
        rows, others, correlations = pairs_from(top, thumbnails, bounds, threshold)
        begins = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
        for begin, end in pairwise([*begins, len(rows)]):
            yield int(rows[begin]), others[begin:end], correlations[begin:end]


def pairs_from(top: int, thumbnails: np.ndarray, bounds: np.ndarray, threshold: float) -> tuple[np.ndarray, ...]:
    """The pairs i < j that correlate at `threshold` or more, with i among the BLOCK images from `top`, and how.

    As (int, M), (int, M) and (float32, M), in the order of i. Only those that `bounds` allow are compared in full.
    """
    least, buffer = threshold - ROUNDING, np.empty((BLOCK, BLOCK), np.float32)
    found = [(np.empty(0, int), np.empty(0, int), np.empty(0, np.float32))]
    # Squares that stay in the processor's cache, and mostly hold nothing: in half the time of the whole width at once.
    for left in range(top, len(bounds), BLOCK):
        a, b = bounds[top : top + BLOCK], bounds[left : left + BLOCK]
        products = np.matmul(a, b.T, out=buffer[: len(a), : len(b)])
        if left == top:
            products[np.tri(len(a), dtype=bool)] = RULED_OUT  # each with itself, and pairs the other way round
        if products.max() < least:
            continue
        rows, columns = np.nonzero(products >= least)
        if len(rows) > BLOCK:  # as of fine textures, or of one scene: all at once takes less time than so many pairs
            square = units(thumbnails[top : top + BLOCK]) @ units(thumbnails[left : left + BLOCK]).T
            correlations = square[rows, columns]
        else:
            correlations = np.einsum("ij,ij->i", units(thumbnails[top + rows]), units(thumbnails[left + columns]))
        near = correlations >= threshold
        found.append((top + rows[near], left + columns[near], correlations[near]))
    pairs = [np.concatenate(each) for each in zip(*found, strict=True)]
    order = np.argsort(pairs[0], kind="stable")
    return tuple(each[order] for each in pairs)


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
    kept = unit @ POOLING  # in a third of the time of sums over cells
    whole, part = (np.einsum("ij,ij->i", each, each) for each in (unit, kept))
    return np.column_stack([kept, np.sqrt(np.maximum(whole - part, 0))])
