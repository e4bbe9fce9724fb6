"""Which photographs are set aside for validation where the data have no split of their own."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petals.holdout import set_aside

# Eight roses, three irises, one tulip.
IDS = [*[f"r{n}" for n in range(8)], "i0", "i1", "i2", "t0"]
LABELS = np.array([1] * 8 + [0] * 3 + [2])


def aside(ids: list[str] = IDS, labels: np.ndarray = LABELS, groups=None, fraction: float = 0.25) -> list[str]:
    groups = np.arange(len(ids)) if groups is None else np.asarray(groups)
    rows = set_aside(labels, ids, groups, fraction)
    assert rows.tolist() == sorted(set(rows.tolist()))
    return [ids[row] for row in rows]


def test_a_share_of_each_class_at_least_one_image_never_the_only_one():
    assert sorted(name[0] for name in aside()) == ["i", "r", "r"]
    assert sorted(name[0] for name in aside(fraction=0.99)) == ["i"] * 2 + ["r"] * 7


def test_the_choice_hangs_on_names_alone():
    shuffled = np.random.default_rng(0).permutation(len(IDS))
    assert sorted(aside([IDS[row] for row in shuffled], LABELS[shuffled])) == sorted(aside())
    # Another class, or a name that occurs twice and so makes paths of all ids, moves nothing.
    assert aside([*IDS, "a0"], np.append(LABELS, 3)) == aside()
    paths = [f"train/CLASS/{name}" for name in IDS]
    assert aside(paths) == [f"train/CLASS/{name}" for name in aside()]


def test_near_duplicates_stay_together():
    bursts = [0, 0, 1, 1, 2, 2, 3, 3, 8, 9, 10, 11]
    roses = [IDS.index(name) for name in aside(groups=bursts) if name.startswith("r")]
    assert len(roses) == 2 and bursts[roses[0]] == bursts[roses[1]]


def test_a_burst_that_goes_beyond_the_share_is_taken_where_that_comes_nearer_to_it():
    """Two roses are wanted, and the first burst has three: one too many is better than two too few."""
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 8, 9, 10, 11]
    assert [name for name in aside(groups=groups) if name.startswith("r")] == ["r0", "r1", "r2"]


def test_a_class_of_large_bursts_sets_its_smallest_aside():
    groups = [0, 0, 0, 0, 0, 1, 1, 1, 8, 9, 10, 11]
    for fraction in (0.25, 0.1):  # of which the smaller is met by neither burst
        assert [name for name in aside(groups=groups, fraction=fraction) if name[0] == "r"] == ["r5", "r6", "r7"]


def test_a_class_that_is_one_burst_goes_without_no_validation():
    groups = [0] * 8 + [8, 9, 10, 11]
    assert sorted(name[0] for name in aside(groups=groups)) == ["i", "r", "r"]


@pytest.mark.parametrize("alike", [99, 95, 91])
def test_the_few_that_are_like_none_are_not_all_the_validation_of_a_class(alike: int):
    """Parts before one background: thumbnails of nearly all of them are alike, and the others are the odd ones out."""
    groups = np.maximum(np.arange(100), alike - 1)
    ids = [f"{n:03}" for n in range(200)]
    rows = set_aside(np.repeat([0, 1], 100), ids, np.concatenate([groups, groups + 100]), 0.2)
    assert np.bincount(rows // 100).tolist() == [20, 20]
    odd = {row for row in range(200) if row % 100 >= alike}
    assert odd <= set(rows), "what has no twin that was learnt from comes first"


def test_half_of_its_share_is_enough_for_a_class():
    groups = [89] * 90 + list(range(90, 110))
    rows = set_aside(np.repeat([0, 1], [100, 10]), [f"{n:03}" for n in range(110)], np.array(groups), 0.2)
    assert rows[rows < 100].tolist() == list(range(90, 100)), "none is torn"


def test_classes_that_look_like_one_another_are_not_left_out_for_one_that_does_not():
    labels = np.repeat([0, 1, 2], 10)
    rows = set_aside(labels, [f"{n}" for n in range(30)], np.array([0] * 20 + list(range(20, 30))), 0.2)
    assert np.bincount(labels[rows]).tolist() == [2, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_every_class_of_two_images_is_on_both_sides_and_groups_are_torn_for_that_alone(images, fraction: float):
    labels, groups = np.array(images).T
    rows = set_aside(labels, [f"{n}" for n in range(len(images))], groups, fraction)
    left = np.setdiff1d(np.arange(len(images)), rows)
    assert set(labels[left]) == set(labels)
    assert set(labels[rows]) == {label for label in labels if (labels == label).sum() > 1}
    torn = set(groups[rows]) & set(groups[left])
    whole = Counter(label for row, label in enumerate(labels) if row in rows and groups[row] not in torn)
    for label in {label for row, label in zip(rows, labels[rows], strict=True) if groups[row] in torn}:
        size = (labels == label).sum()
        wanted = min(size - 1, max(1, int(size * fraction + 0.5)))
        assert 2 * whole[label] < wanted == (labels[rows] == label).sum()


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_as_many_as_asked_for_where_no_two_are_alike(fraction: float):
    labels = np.repeat(np.arange(5), 30)
    rows = set_aside(labels, [f"{n}" for n in range(150)], np.arange(150), fraction)
    assert np.bincount(labels[rows]).tolist() == [30 * fraction] * 5


def test_twins_by_name_are_told_apart_by_their_folder():
    ids = [f"{kind}/{number}" for kind in "ab" for number in range(10)]
    labels, alone = np.zeros(20, int), np.arange(20)
    there = [ids[row] for row in set_aside(labels, ids, alone, 0.25)]
    back = [ids[::-1][row] for row in set_aside(labels, ids[::-1], alone, 0.25)]
    assert sorted(there) == sorted(back)
