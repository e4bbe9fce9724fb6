"""The data card: what a data set holds and what to beware of in it."""

from typing import NamedTuple

import numpy as np

from petals.dataset import SPLITS
from petals.duplicates import near_duplicates
from petals.packing import Packed


class Pair(NamedTuple):
    """Two near-duplicates by split and id, their correlation, and the row of the first in its split."""

    split_a: str
    id_a: str
    split_b: str
    id_b: str
    correlation: float
    row_a: int

    @property
    def across(self) -> bool:
        return self.split_a != self.split_b


def find_duplicates(packed: dict[str, Packed]) -> list[Pair]:
    """Near-duplicate pairs of all splits: of each image the nearest of each split, as near_duplicates lists them."""
    where = [(split, row) for split in SPLITS for row in range(len(packed[split].ids))]
    thumbnails = np.concatenate([packed[split].thumbnails for split in SPLITS])
    groups = np.repeat(np.arange(len(SPLITS)), [len(packed[split].ids) for split in SPLITS])
    pairs = []
    for i, j, correlation in near_duplicates(thumbnails, groups=groups):
        (split_a, row_a), (split_b, row_b) = where[i], where[j]
        ids = packed[split_a].ids[row_a], packed[split_b].ids[row_b]
        pairs.append(Pair(split_a, ids[0], split_b, ids[1], round(float(correlation), 3), row_a))
    return pairs


def most_alike(pairs: list[Pair], most: int) -> list[Pair]:
    """`most` of `pairs`, as they stand there: those across splits first, then those that correlate most."""
    order = sorted(range(len(pairs)), key=lambda row: (pairs[row].across, pairs[row].correlation), reverse=True)
    return [pairs[row] for row in sorted(order[:most])]


def data_card(classes: list[str], packed: dict[str, Packed], pairs: list[Pair], dropped: int) -> dict:
    """Counts by split, imbalance (largest class over smallest, of those in train) and near-duplicates, for JSON."""
    train = class_counts(packed["train"].labels, classes)
    across = sum(pair.across for pair in pairs)
    return {
        "images": {split: len(packed[split].ids) for split in SPLITS},
        "classes": len(classes),
        "imbalance": round(float(train.max() / train[train > 0].min()), 2),
        "near_duplicates": {"within_splits": len(pairs) - across, "across_splits": across},
        "dropped_from_train": dropped,
    }


def class_counts(labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """The number of images of each class, in label order."""
    return np.bincount(labels[labels >= 0], minlength=len(classes))
