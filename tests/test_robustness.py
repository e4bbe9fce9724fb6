"""What a classifier scores on corrupted images, told by classifiers whose answers are known."""

import numpy as np
import pytest

from petals.corruptions import CORRUPTIONS, corrupt
from petals.packed import PackedSplit
from petals.robustness import SEVERITIES, CorruptedSplit, Trial, curves, measure, summarise

LABELS = [0, 0, 1, 1, 1]
IMAGES = np.random.default_rng(0).integers(40, 200, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, make_split):
    return make_split(tmp_path / "val", IMAGES, LABELS, "ab")


def answers(*labels: int) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[list(labels)]


def test_batches_are_the_splits_own_corrupted_for_any_size(folder):
    split = CorruptedSplit(folder, "noise", 3)
    whole = corrupt(IMAGES, split.ids, "noise", 3)
    for size in (1, 2, 5, 64):
        assert np.array_equal(np.concatenate(list(split.batches(size))), whole)
    for first in (0, 1):  # of two processes
        assert np.array_equal(np.concatenate(list(split.batches(1, first, 2))), whole[first::2])
    assert np.array_equal(np.concatenate(list(PackedSplit(folder).batches(2))), IMAGES)


def test_known_answers_give_known_scores(folder):
    """Right but for jpeg, where all is taken for b: F1 0 and 3/4, macro 3/8."""
    asked = []

    def predict(split, name):
        asked.append(name)
        return answers(*LABELS) if split.corruption != "jpeg" else answers(1, 1, 1, 1, 1)

    trials = measure(folder, 2, predict)
    assert asked == [f"{name} {severity}" for name in CORRUPTIONS for severity in (1, 5)]
    assert {trial.macro_f1 for trial in trials if trial.corruption != "jpeg"} == {1.0}
    result = summarise(trials)
    assert result["mean_macro_f1"] == pytest.approx((6 + 3 / 8) / 7, abs=1e-6)
    assert result["severities"] == [1, 5]
    assert result["by_corruption"][0] == {"corruption": "jpeg", "mean_macro_f1": 0.375, "macro_f1": [0.375, 0.375]}
    assert {each["corruption"] for each in result["by_corruption"]} == set(CORRUPTIONS)


def test_zero_asks_for_nothing(folder):
    trials = measure(folder, 0, lambda *_: pytest.fail("asked"))
    assert trials == [] and summarise(trials) == {"severities": []} and list(curves(trials, None)) == []


def test_severities_are_as_many_as_asked_from_mild_to_strong_about_the_middle():
    for number, chosen in enumerate(SEVERITIES):
        assert len(chosen) == number and list(chosen) == sorted(set(chosen)) and set(chosen) <= {1, 2, 3, 4, 5}
        assert not chosen or np.mean(chosen) == 3


def test_curves_start_at_the_clean_score():
    trials = [Trial("fog", 1, 0.8), Trial("fog", 5, 0.25), Trial("zoom", 1, 0.7), Trial("zoom", 5, 1 / 3)]
    assert list(curves(trials, 0.9)) == [
        ("fog", 0, "0.9000"),
        ("fog", 1, "0.8000"),
        ("fog", 5, "0.2500"),
        ("zoom", 0, "0.9000"),
        ("zoom", 1, "0.7000"),
        ("zoom", 5, "0.3333"),
    ]
