"""Both sides' predictions for the same images, and what they say about the change."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from petals.report import statistics
from petals.report.sides import Prediction, Side
from petals.scores import accuracy, macro_f1


@dataclass(frozen=True)
class Comparison:
    """Labels of the same N images, in the order of `ids`, as indices into `classes`."""

    ids: list[str]
    classes: list[str]
    actual: np.ndarray
    base: np.ndarray
    head: np.ndarray

    @cached_property
    def intervals(self) -> dict[str, statistics.Interval]:
        """Of the differences of `macro_f1` and `accuracy`; empty where there is too much to resample."""
        if self.same:  # so is every resample of it
            return dict.fromkeys(("macro_f1", "accuracy"), statistics.Interval(0.0, 0.0))
        return statistics.bootstrap(self.actual, self.base, self.head, len(self.classes))

    @property
    def same(self) -> bool:
        return bool(np.array_equal(self.base, self.head))


def compare(base: Side, head: Side) -> Comparison | None:
    """Pair the predictions of both sides; None where one has none or the images or their labels differ."""
    if base.predictions is None or head.predictions is None or set_difference(base, head):
        return None
    ids = sorted(base.predictions)
    return Comparison(ids, *_indices(ids, base.predictions, head.predictions))


def set_difference(base: Side, head: Side) -> dict[str, int]:
    """How many images only base has, only head has, and both have under another label; empty if none."""
    before, after = base.predictions or {}, head.predictions or {}
    relabelled = sum(before[key].actual != after[key].actual for key in before.keys() & after.keys())
    counts = {
        "only in base": len(before.keys() - after.keys()),
        "only in head": len(after.keys() - before.keys()),
        "labelled differently": relabelled,
    }
    return {where: count for where, count in counts.items() if count}


def own_scores(side: Side) -> dict[str, float]:
    """Macro F1 and accuracy of one side, worked out from its predictions; empty where it has none."""
    if side.predictions is None:
        return {}
    _, actual, predicted, _ = _indices(sorted(side.predictions), side.predictions, side.predictions)
    return {"macro_f1": macro_f1(actual, predicted), "accuracy": accuracy(actual, predicted)}


def _indices(ids: list[str], base: dict[str, Prediction], head: dict[str, Prediction]):
    """Class names in sorted order, then actual, base's and head's labels as indices into them."""
    columns = (
        [base[key].actual for key in ids],
        [base[key].predicted for key in ids],
        [head[key].predicted for key in ids],
    )
    classes = sorted(set().union(*columns))
    index = {name: position for position, name in enumerate(classes)}
    return classes, *(np.array([index[name] for name in column]) for column in columns)
