"""The data card, on splits small enough to count by eye."""

import numpy as np
import pytest

from petals.card import class_counts, data_card, find_duplicates
from petals.packing import Packed

NOISE = np.random.default_rng(5).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def packed() -> dict[str, Packed]:
    """In train 1 and 4 are the same, and as a of val; b of val is c of test; d and e of test are the same."""
    return {
        "train": Packed(list("012345"), [""] * 6, np.array([0, 0, 0, 0, 1, 1]), NOISE[[0, 1, 2, 3, 1, 5]]),
        "val": Packed(["a", "b"], [""] * 2, np.array([0, 1]), NOISE[[1, 6]]),
        "test": Packed(["c", "d", "e"], [""] * 3, np.array([-1, -1, -1]), NOISE[[6, 7, 7]]),
    }


def test_pairs_inside_and_across_splits(packed: dict[str, Packed]):
    pairs = find_duplicates(packed)
    assert pairs == [
        ("train", "1", "train", "4", 1.0, 1),
        ("train", "1", "val", "a", 1.0, 1),
        ("train", "4", "val", "a", 1.0, 4),
        ("val", "b", "test", "c", 1.0, 1),
        ("test", "d", "test", "e", 1.0, 1),
    ]


def test_the_card_counts(packed: dict[str, Packed]):
    card = data_card(["iris", "rose"], packed, find_duplicates(packed), dropped=2)
    assert card["images"] == {"train": 6, "val": 2, "test": 3}
    assert card["classes"] == 2
    assert card["imbalance"] == 2.0
    assert card["near_duplicates"] == {"within_splits": 2, "across_splits": 3}
    assert card["dropped_from_train"] == 2


def test_a_class_without_images_does_not_divide_by_zero(packed: dict[str, Packed]):
    assert data_card(["iris", "rose", "moss"], packed, [], 0)["imbalance"] == 2.0


def test_counts_leave_unlabelled_images_out():
    assert class_counts(np.array([2, 0, 2, -1]), list("abcd")).tolist() == [1, 0, 2, 0]
    assert class_counts(np.array([], np.int64), list("ab")).tolist() == [0, 0]
