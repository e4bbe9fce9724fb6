"""Both sides' predictions for the same images, and what they say about the change."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from petals.report import statistics
from petals.report.sides import Prediction, Side
from petals.scores import accuracy, macro_f1

SHARED = 0.9  # share of each side's images that both must have to be compared


@dataclass(frozen=True)
class Comparison:
    """Labels of the same N images, in the order of `ids`, as indices into `classes`.

    `nll` (float64, N) is by how much the negative log-likelihood of each is larger in head; None where a side does not
    have it. `whole` says whether these are all images of both sides.
    """

    ids: list[str]
    classes: list[str]
    actual: np.ndarray
    base: np.ndarray
    head: np.ndarray
    nll: np.ndarray | None
    whole: bool

    @cached_property
    def intervals(self) -> dict[str, statistics.Interval]:
        """Of the differences, head − base; those of labels are left out where there is too much to resample."""
        of_nll = statistics.mean_interval(self.nll) if self.nll is not None and self.nll.any() else None
        intervals = {"nll": of_nll} if of_nll else {}
        if self.same:  # so is every resample of it
            return intervals | dict.fromkeys(("macro_f1", "accuracy"), statistics.Interval(0.0, 0.0))
        return intervals | statistics.bootstrap(self.actual, self.base, self.head, len(self.classes))

    @cached_property
    def scores(self) -> dict[str, tuple[float, float]]:
        """Of these images: base's and head's `macro_f1` and `accuracy`."""
        sides = self.base, self.head
        return {
            name: tuple(score(self.actual, each) for each in sides)
            for name, score in (("macro_f1", macro_f1), ("accuracy", accuracy))
        }

    @property
    def differences(self) -> dict[str, float]:
        found = {name: head - base for name, (base, head) in self.scores.items()}
        return found if self.nll is None else found | {"nll": float(self.nll.mean())}

    @property
    def same(self) -> bool:
        return bool(np.array_equal(self.base, self.head))


def compare(base: Side, head: Side) -> Comparison | None:
    """Pair the predictions of the images that both sides have under the same label.

    None where one has none, or where these are too few of its images. Those that both validate with are in neither's
    training images, whatever was added to validation since, or taken out of it.
    """
    before, after = base.predictions, head.predictions
    if before is None or after is None:
        return None
    ids = sorted(key for key in before.keys() & after.keys() if before[key].actual == after[key].actual)
    if len(ids) < SHARED * max(len(before), len(after)):
        return None
    base_nll, head_nll = (-np.log([each[key].likelihood for key in ids]) for each in (before, after))
    nll = head_nll - base_nll
    whole = len(ids) == len(before) == len(after)
    return Comparison(ids, *_indices(ids, before, after), nll if np.isfinite(nll).all() else None, whole)


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
    """What one side's predictions give: macro F1, accuracy, nll where they have likelihoods; empty without any."""
    if side.predictions is None:
        return {}
    _, actual, predicted, _ = _indices(sorted(side.predictions), side.predictions, side.predictions)
    nll = -np.log([each.likelihood for each in side.predictions.values()]).mean()
    scores = {"macro_f1": macro_f1(actual, predicted), "accuracy": accuracy(actual, predicted)}
    return scores | ({"nll": float(nll)} if np.isfinite(nll) else {})


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
