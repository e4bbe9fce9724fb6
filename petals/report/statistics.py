"""Whether the difference of two models on the same images is more than noise.

Labels are int64 arrays of shape (N,) with values in 0 … classes − 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 5_000
LEVEL = 0.05
EXACT_BELOW = 25  # discordant pairs; from here on chi-square is a good approximation of the binomial
MOST_CELLS = 15_000  # of one resample: distinct triples of labels, and classes; more would take minutes
MOST_IMAGES = 50_000  # of one resample of single images
_CELLS_AT_ONCE = 4_000_000  # bounds the memory of a batch of resamples


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a score, or of a difference, head − base."""

    low: float
    high: float
    widened: bool = False  # to zero, as chance alone gives as much in one case of twenty or more

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"95 % interval {self.low:.3f} … {self.high:.3f}"


@dataclass(frozen=True)
class McNemar:
    """`won` images are right only in head, `lost` only in base; `p` is two-sided."""

    won: int
    lost: int
    p: float
    method: str


def bootstrap(actual: np.ndarray, base: np.ndarray, head: np.ndarray, classes: int) -> dict[str, Interval]:
    """Percentile intervals of the paired bootstrap (Efron and Tibshirani 1993, chapter 13), 95 %.

    Images are drawn with replacement, each with its true label and both predictions. A class that a resample
    lacks is left out of that resample's macro F1, by the same definition as in the whole sample.
    Of few images, or classes of few, percentiles are too narrow. So each interval is widened to reach zero where a test
    that holds for any number of them cannot tell the sides apart: McNemar's for accuracy, `swapping` for macro F1.
    Gives the intervals of the differences, head − base, of `macro_f1` and `accuracy`; none at all where a resample
    has more than MOST_CELLS cells.
    """
    # Images with the same three labels are alike, so drawing N images is one multinomial draw over the
    # distinct triples, and a resample is a row of counts.
    triples, counts = np.unique(np.stack([actual, base, head]), axis=1, return_counts=True)
    if len(counts) + classes > MOST_CELLS:
        return {}
    alike = {
        "macro_f1": swapping(*triples, counts, classes) >= LEVEL,
        "accuracy": mcnemar(actual, base, head).p >= LEVEL,
    }
    truth, base, head = triples
    gained = (head == truth).astype(int) - (base == truth)  # images by which head is ahead: 1, 0 or −1
    f1_differences, accuracy_differences = [], []
    for draws in _draws(counts, classes):
        scores = [_macro_f1s(truth, predicted, draws, classes) for predicted in (base, head)]
        f1_differences.append(scores[1] - scores[0])
        accuracy_differences.append(draws @ gained / len(actual))
    return {
        "macro_f1": _interval(np.concatenate(f1_differences), alike["macro_f1"]),
        "accuracy": _interval(np.concatenate(accuracy_differences), alike["accuracy"]),
    }


def swapping(
    truth: np.ndarray,
    base: np.ndarray,
    head: np.ndarray,
    counts: np.ndarray,
    classes: int,
    resamples: int = RESAMPLES,
) -> float:
    """p, two-sided, of macro F1's difference if either side might have given either prediction of an image.

    The predictions of images are swapped at random (Yeh, "More accurate tests for the statistical significance of
    result differences", 2000). `counts` (K) says how many images have each of K triples of labels.
    """
    both, predicted = np.tile(truth, 2), np.concatenate([base, head])

    def differences(swapped: np.ndarray) -> np.ndarray:
        kept = counts - swapped
        sides = (np.hstack([kept, swapped]), np.hstack([swapped, kept]))
        ours, theirs = (_macro_f1s(both, predicted, each, classes) for each in sides)
        return np.abs(theirs - ours)

    rng = np.random.default_rng(0)
    here = differences(np.zeros((1, len(counts)), dtype=int))[0] - 1e-12
    batches = _batches(resamples, max(2 * len(counts), classes))
    as_large = sum(np.sum(differences(rng.binomial(counts, 0.5, (rows, len(counts)))) >= here) for rows in batches)
    return float((1 + as_large) / (1 + resamples))


def mean_interval(differences: np.ndarray) -> Interval | None:
    """The interval of the mean of N differences by the bootstrap; None where N is more than MOST_IMAGES.

    It is widened to zero where differences of either sign at random have as large a mean (Fisher's test of 1935).
    """
    rng, count = np.random.default_rng(0), len(differences)
    if count > MOST_IMAGES:
        return None
    here, as_large, drawn = abs(differences.mean()) - 1e-12, 0, []
    for rows in _batches(RESAMPLES, count):
        drawn.append(differences[rng.integers(count, size=(rows, count))].mean(1))
        signs = rng.integers(2, size=(rows, count), dtype=np.int8) * 2 - 1
        as_large += np.sum(np.abs(signs @ differences) / count >= here)
    return _interval(np.concatenate(drawn), (1 + as_large) / (1 + RESAMPLES) >= LEVEL)


def macro_f1_interval(actual: np.ndarray, predicted: np.ndarray, classes: int) -> Interval | None:
    """The 95 % interval of macro F1 by the bootstrap: how far it would move with other images of the kind.

    None where it has no width: without a mistake, or with nothing else, there is nothing to draw from.

    Its percentiles are corrected for bias (Efron 1981): of classes of few images macro F1 is too low on average, and in
    resamples once more. Where most classes have two images, as in the sample's validation split, plain percentiles held
    the truth in 73, 86 and 89 % of 200 simulated sets with accuracies of 0.70, 0.85 and 0.94, these in 90, 93 and 94 %.
    """
    (truth, guesses), counts = np.unique(np.stack([actual, predicted]), axis=1, return_counts=True)
    draws = _draws(counts, classes)
    scores = np.concatenate([_macro_f1s(truth, guesses, each, classes) for each in draws])
    here = _macro_f1s(truth, guesses, counts[None], classes)[0]
    below = (np.sum(scores < here) + np.sum(scores == here) / 2) / RESAMPLES
    normal, least = NormalDist(), 0.5 / RESAMPLES
    shift = 2 * normal.inv_cdf(min(max(below, least), 1 - least))
    low, high = (100 * normal.cdf(shift + normal.inv_cdf(share)) for share in (0.025, 0.975))
    interval = Interval(*map(float, np.percentile(scores, [low, high])))
    return interval if interval.low < interval.high else None


def mcnemar(actual: np.ndarray, base: np.ndarray, head: np.ndarray) -> McNemar:
    """McNemar's test (1947) of equal accuracy: exact for few discordant pairs, else by chi-square."""
    won = int(np.sum((base != actual) & (head == actual)))
    lost = int(np.sum((base == actual) & (head != actual)))
    pairs = won + lost
    if pairs < EXACT_BELOW:
        tail = sum(math.comb(pairs, k) for k in range(min(won, lost) + 1))
        return McNemar(won, lost, min(1.0, 2 * tail / 2**pairs), "exact binomial")
    statistic = max(0, abs(won - lost) - 1) ** 2 / pairs
    return McNemar(won, lost, math.erfc(math.sqrt(statistic / 2)), "chi-square with continuity correction")


def _draws(counts: np.ndarray, classes: int) -> Iterator[np.ndarray]:
    """RESAMPLES of as many images as `counts` (K) holds: int, R × K, as many rows at a time as memory bears."""
    rng, images = np.random.default_rng(0), counts.sum()
    for rows in _batches(RESAMPLES, max(len(counts), classes)):
        yield rng.multinomial(images, counts / images, size=rows)


def _batches(resamples: int, cells: int) -> Iterator[int]:
    """How many resamples of so many `cells` to hold at once, batch by batch."""
    batch = max(1, _CELLS_AT_ONCE // cells)
    for start in range(0, resamples, batch):
        yield min(batch, resamples - start)


def _macro_f1s(truth: np.ndarray, predicted: np.ndarray, draws: np.ndarray, classes: int) -> np.ndarray:
    """Macro F1 of each of R resamples; `draws` (R × K) counts the images with each pair of labels."""
    support = _sum_by(truth, draws, classes)
    hits = _sum_by(truth, draws * (truth == predicted), classes)
    f1 = 2 * hits / np.maximum(support + _sum_by(predicted, draws, classes), 1)
    occurs = support > 0
    return f1.sum(axis=1, where=occurs) / occurs.sum(axis=1)


def _sum_by(labels: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Add up the columns of `counts` (R × K) that have the same label (K): R × classes."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    sums = np.zeros((len(counts), classes), dtype=counts.dtype)
    sums[:, present] = np.add.reduceat(counts[:, order], starts, axis=1)
    return sums


def _interval(differences: np.ndarray, with_zero: bool) -> Interval:
    low, high = map(float, np.percentile(differences, [2.5, 97.5]))
    widened = with_zero and (low > 0 or high < 0)
    return Interval(min(low, 0.0), max(high, 0.0), True) if widened else Interval(low, high)
