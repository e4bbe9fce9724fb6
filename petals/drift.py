"""Whether the images that a model is asked about still look like those of validation; numpy is all it needs.

Three numbers compare a window of images with what evaluate kept of the validation split, the `Reference`: the
population stability index of the predicted classes and of the confidence, and the Kolmogorov–Smirnov statistic of how
far the features are from the usual. Each comes with the limit that it stays below by chance alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from petals.errors import PetalsError

QUANTILES = 201  # of the distance: its distribution is known to half a percent
CONFIDENCE_BINS = 10
LEAST_STD = 0.5  # of the mean standard deviation: features that hardly move on val must not outweigh all others
ALPHA = 0.001  # share of the windows without drift in which a number is above its limit
DRAWS = 5000  # simulated windows
CONCENTRATIONS = np.geomspace(0.02, 200, 40)  # of shares: below 1 few bins have most of them, far above all are alike


@dataclass(frozen=True)
class Reference:
    """What is kept of validation: `images` is their number, D that of the features, C that of the classes.

    `mean`, `std`: of each feature (D numbers); `distance_quantiles`: 201 evenly spaced ones of how far each image is
    from the others, the least and the greatest among them; `confidence_edges`: the deciles of the top probability, ties
    once, without the ends; `confidence`: images in each bin, one more than edges; `classes`: images predicted to be of
    each class (C numbers).
    """

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    distance_quantiles: tuple[float, ...]
    confidence_edges: tuple[float, ...]
    confidence: tuple[int, ...]
    classes: tuple[int, ...]

    @classmethod
    def of(cls, probabilities: np.ndarray, features: np.ndarray) -> "Reference":
        """Describe validation images by their `probabilities` (float, N × C) and `features` (float, N × D), N > 0."""
        features = np.asarray(features, np.float64)
        distances = distances_to_others(features)
        confidence = probabilities.max(1)
        edges = np.unique(rounded(np.quantile(confidence, np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1])))
        return cls(
            images=len(features),
            mean=rounded(features.mean(0)),
            std=rounded(raised_std(features.std(0))),
            distance_quantiles=rounded(np.quantile(distances, np.linspace(0, 1, QUANTILES))),
            confidence_edges=tuple(edges.tolist()),
            confidence=counts(np.searchsorted(edges, confidence, side="right"), len(edges) + 1),
            classes=counts(probabilities.argmax(1), probabilities.shape[1]),
        )

    def to_json(self) -> str:
        """Give it as one JSON text, a line a field."""
        fields = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(self).items())
        return "{\n" + ",\n".join(fields) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "Reference":
        """Read what `to_json` gave; raises PetalsError where the text is something else."""
        try:
            fields = json.loads(text)
            reference = cls(int(fields.pop("images")), **{name: tuple(fields[name]) for name in fields})
            finite = all(math.isfinite(number) for name in fields for number in fields[name])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PetalsError(f"not a reference for drift ({error}); run dvc repro evaluate") from None
        bins = len(reference.confidence_edges) + 1
        fits = len(reference.mean) == len(reference.std) > 0 and len(reference.confidence) == bins
        if not (finite and fits and reference.images > 0 and reference.classes and reference.distance_quantiles):
            raise PetalsError("not a reference for drift: its parts disagree; run dvc repro evaluate")
        return reference

    def distances(self, features: np.ndarray) -> np.ndarray:
        """How far `features` (float, N × D) are from those of validation; float32, N.

        The root mean square of the features, each less its mean and divided by its standard deviation over
        validation: about 1 for an image like those. This is the Mahalanobis distance with a diagonal covariance,
        over √D (Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018,
        with the full one, which so few images do not determine).
        """
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return root_mean_square((np.asarray(features, np.float32) - mean) / std).astype(np.float32)

    def compare(self, probabilities: np.ndarray, distances: np.ndarray) -> dict[str, float]:
        """Compare a window of N images with validation.

        Takes `probabilities` (float, N × C) and the `distances` of the images' features (float, N). Gives `images` (N),
        `psi_classes`, `psi_confidence`, `ks_distance`, and for each of the three a limit such as `psi_classes_limit`:
        without drift one window in a thousand is above it. Where there are few images the limit is high: little can be
        told from them. No image gives zeros. Raises ValueError where the two differ in length.
        """
        if len(probabilities) != len(distances):
            raise ValueError(f"{len(probabilities)} rows of probabilities, {len(distances)} distances")
        images = len(probabilities)
        classes = counts(probabilities.argmax(1), len(self.classes))
        bins = counts(np.searchsorted(self.confidence_edges, probabilities.max(1), side="right"), len(self.confidence))
        return {
            "images": images,
            "psi_classes": round(float(population_stability_index(self.classes, classes)), 6),
            "psi_classes_limit": psi_limit(self.classes, images),
            "psi_confidence": round(float(population_stability_index(self.confidence, bins)), 6),
            "psi_confidence_limit": psi_limit(self.confidence, images, deciles=True),
            "ks_distance": ks_statistic(np.asarray(self.distance_quantiles), distances),
            "ks_distance_limit": ks_limit(self.images, images),
        }


def population_stability_index(reference: Sequence[float], window: np.ndarray) -> np.ndarray:
    """Give the population stability index of counts: Σ (p − q) ln(p / q), over the last axis of `window`.

    q are the shares of `reference`, p those of `window` (… × B counts). This is the symmetric divergence of Kullback
    and Leibler ("On Information and Sufficiency", 1951); credit scoring gave it its name and the customary bounds of
    0.1 and 0.25 (Siddiqi, "Credit Risk Scorecards", 2006), which suit ten bins and thousands of cases.

    So that an empty bin is no infinity, the reference has half a case added to each bin (Krichevsky and Trofimov,
    1981), and the window half a case a bin too, though shared out as the reference is: a window of few cases is drawn
    towards "no drift", and an empty one gives 0.
    """
    reference, window = np.asarray(reference, np.float64), np.asarray(window, np.float64)
    extra = reference.shape[-1] / 2
    q = (reference + 0.5) / (reference.sum() + extra)
    p = (window + extra * q) / (window.sum(-1, keepdims=True) + extra)
    return ((p - q) * np.log(p / q)).sum(-1)


@lru_cache(maxsize=256)
def psi_limit(reference: tuple[int, ...], cases: int, deciles: bool = False) -> float:
    """The index that one window of `cases` in a thousand exceeds where nothing has changed.

    With many bins and few cases the index is large by chance alone: about (B − 1)(1 / cases + 1 / reference) for large
    counts (Yurdakul, "Statistical Properties of Population Stability Index", 2018), and its tail is not χ²'s for small
    ones. So it is simulated, always with the same seed: 5,000 times the true shares are drawn from what `reference`
    leaves open (Dirichlet, each bin raised by some cases), and a window from them.

    Bins are raised by half a case where they are `deciles` of the reference's own, and else by as much as its counts
    tell of how even the shares are.
    """
    rng = np.random.default_rng(0)
    raised = 0.5 if deciles else rng.choice(CONCENTRATIONS, (DRAWS, 1), p=concentration_posterior(reference))
    shares = rng.standard_gamma(np.broadcast_to(np.asarray(reference) + raised, (DRAWS, len(reference))))
    windows = rng.multinomial(cases, shares / shares.sum(1, keepdims=True))
    return round(float(np.quantile(population_stability_index(reference, windows), 1 - ALPHA)), 6)


def concentration_posterior(counts: tuple[int, ...]) -> np.ndarray:
    """How likely each of CONCENTRATIONS is as that of the symmetric Dirichlet distribution that shares come from.

    Of many equal classes with few images each some have none by chance, which half a case a class would take for rare
    ones: of 104 classes and 271 images, 68 windows in a thousand were above such a limit, and 3 are above this.
    `counts` are a draw of the Dirichlet-multinomial distribution (Minka, "Estimating a Dirichlet distribution", 2000).
    """
    bins, total = len(counts), sum(counts)
    values, times = np.unique(counts, return_counts=True)
    likelihoods = np.array(
        [
            math.lgamma(bins * each)
            - math.lgamma(bins * each + total)
            + sum(n * (math.lgamma(value + each) - math.lgamma(each)) for value, n in zip(values, times, strict=True))
            for each in CONCENTRATIONS
        ]
    )
    weights = np.exp(likelihoods - likelihoods.max())
    return weights / weights.sum()


def ks_statistic(quantiles: np.ndarray, sample: np.ndarray) -> float:
    """Give the largest distance between the distribution with these evenly spaced `quantiles` and that of `sample`.

    The two-sample statistic (Smirnov, 1939), the first sample known by its quantiles, linear between them. 0 where
    `sample` is empty.
    """
    if not len(sample):
        return 0.0
    sample = np.sort(sample)
    expected = np.interp(sample, quantiles, np.linspace(0, 1, len(quantiles)), left=0, right=1)
    steps = np.arange(len(sample) + 1) / len(sample)
    return round(float(max((steps[1:] - expected).max(), (expected - steps[:-1]).max())), 6)


def ks_limit(first: int, second: int) -> float:
    """The statistic that two samples of one distribution exceed once in a thousand times, at most 1.

    By the asymptotic √(−ln(α / 2) / 2 · (n + m) / (n m)) (Smirnov, 1948), which errs on the high side for few.
    """
    if not second:
        return 1.0
    return round(min(1.0, math.sqrt(-math.log(ALPHA / 2) / 2 * (first + second) / (first * second))), 6)


def distances_to_others(features: np.ndarray) -> np.ndarray:
    """How far each of N images is from the N - 1 others; float64, N.

    As `Reference.distances` for images that it has not seen: from the mean and the deviations of those that it has,
    which are fewer than the features, an image among them is always nearer.
    """
    count = len(features)
    others = max(count - 1, 1)
    deviations = features - features.mean(0)
    variances = count / others * (features.var(0) - deviations**2 / others)
    return root_mean_square(deviations * count / others / raised_std(np.sqrt(np.maximum(variances, 0))))


def raised_std(std: np.ndarray) -> np.ndarray:
    """`std` (… × D), the small ones raised to a share of the mean over the features."""
    return np.maximum(std, np.maximum(LEAST_STD * std.mean(-1, keepdims=True), 1e-6))


def root_mean_square(standardised: np.ndarray) -> np.ndarray:
    return np.sqrt((standardised**2).mean(1))


def rounded(values: np.ndarray) -> tuple[float, ...]:
    """Five significant digits, so that a last bit changes no byte."""
    return tuple(float(f"{value:.5g}") for value in values)


def counts(numbers: np.ndarray, length: int) -> tuple[int, ...]:
    return tuple(np.bincount(numbers, minlength=length).tolist())
