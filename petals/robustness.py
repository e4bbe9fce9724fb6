"""How robust a classifier is: macro F1 on a labelled split whose images are corrupted."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from petals.corruptions import CORRUPTIONS, corrupt
from petals.packed import PackedSplit
from petals.parallel import cores, in_threads
from petals.scores import macro_f1

# Which of the five are tried, by how many: spread evenly about the middle. Means compare only for the same ones.
SEVERITIES = ((), (3,), (1, 5), (1, 3, 5), (1, 2, 4, 5), (1, 2, 3, 4, 5))


class Trial(NamedTuple):
    corruption: str
    severity: int
    macro_f1: float


class CorruptedSplit(PackedSplit):
    """A packed split whose batches come corrupted; threads make the next ones while one is looked at."""

    def __init__(self, folder: str | Path, corruption: str, severity: int) -> None:
        super().__init__(folder)
        self.corruption, self.severity = corruption, severity

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[np.ndarray]:
        def corrupted(batch: tuple[int, np.ndarray]) -> np.ndarray:
            start, images = batch
            return corrupt(images, self.ids[start : start + size], self.corruption, self.severity)

        starts = range(first * size, self.count, every * size)
        batches = zip(starts, super().batches(size, first, every), strict=True)
        yield from in_threads(corrupted, batches, workers=min(8, cores() // torch.get_num_threads()) or 1)


def measure(folder: str | Path, severities: int, predict: Callable[[PackedSplit, str], np.ndarray]) -> list[Trial]:
    """Score the split in `folder` under each corruption, from mild to strong; none for `severities` 0.

    `predict` gives the probabilities (float, N × C) of a split's images, told also what to call it.
    """
    trials = []
    for name in CORRUPTIONS:
        for severity in SEVERITIES[severities]:
            split = CorruptedSplit(folder, name, severity)
            predicted = predict(split, f"{name} {severity}").argmax(1)
            trials.append(Trial(name, severity, macro_f1(split.labels, predicted)))
    return trials


def summarise(trials: Sequence[Trial]) -> dict[str, object]:
    """The mean macro F1 of all trials, rounded to 6 digits, and each corruption's, the worst first.

    As in petals.scores, lists hold what DVC should make no column of. Without trials there is no mean.
    """
    if not trials:
        return {"severities": []}
    by_name: dict[str, list[float]] = {}
    for trial in trials:
        by_name.setdefault(trial.corruption, []).append(trial.macro_f1)
    means = sorted((mean(scores), name) for name, scores in by_name.items())
    return {
        "mean_macro_f1": mean([trial.macro_f1 for trial in trials]),
        "severities": sorted({trial.severity for trial in trials}),
        "by_corruption": [
            {"corruption": name, "mean_macro_f1": each, "macro_f1": [round(score, 6) for score in by_name[name]]}
            for each, name in means
        ],
    }


def mean(scores: Sequence[float]) -> float:
    return round(float(np.mean(scores)), 6)


def curves(trials: Sequence[Trial], clean: float | None) -> Iterator[tuple[str, int, str]]:
    """Rows of (corruption, severity, macro F1); each corruption starts at severity 0, the score of `clean` images."""
    started = set()
    for name, severity, score in trials:
        if name not in started:
            started.add(name)
            yield name, 0, f"{clean:.4f}"
        yield name, severity, f"{score:.4f}"
