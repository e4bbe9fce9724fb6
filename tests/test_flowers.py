"""The competition's facts, compared with the competition's own files where they are at hand."""

import json
from pathlib import Path

import pytest

from petals.flowers import CLASS_NAMES, SPLIT_SIZES, TRAIN_COUNTS


def test_there_are_104_kinds_and_12753_training_images():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(TRAIN_COUNTS) == 104
    assert all(name == name.strip() for name in CLASS_NAMES)
    assert sum(TRAIN_COUNTS) == SPLIT_SIZES["train"] == 12_753


@pytest.mark.real
def test_names_and_counts_are_the_competitions(shared_data: Path):
    published = (shared_data / "petals" / "classes.txt").read_text().splitlines()
    assert [name.strip() for name in published] == list(CLASS_NAMES)
    assert json.loads((shared_data / "petals" / "train_counts.json").read_text()) == list(TRAIN_COUNTS)
    submission = (shared_data / "petals" / "sample_submission.csv").read_text().splitlines()
    assert len(submission) - 1 == SPLIT_SIZES["test"]
