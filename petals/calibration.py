"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017): one number divides all logits.

And logit adjustment after training (Menon et al., "Long-tail learning via logit adjustment", 2021): one number is added
to the logits of each class, so that rare ones are not passed over.

Everything here works on probabilities, whose logarithms are logits as good as any. SciPy takes half a second to import,
so that is done where it is first needed.
"""

import numpy as np

COLDEST, HOTTEST = 0.25, 4.0  # where every prediction is right, the likelihood alone would ask for zero
FOLDS = 5


def rescale(probabilities: np.ndarray, temperature: float, offsets: np.ndarray | float = 0.0) -> np.ndarray:
    """Add `offsets` to the logits behind `probabilities` (float, N × C) and divide by `temperature`; float64, N × C."""
    from scipy.special import softmax

    return softmax((logits(probabilities) + offsets) / temperature, axis=1)


def class_offsets(counts: np.ndarray, strength: float) -> np.ndarray:
    """What logits at the right temperature lack for classes of `counts` training images (int, C); float64, C.

    With `strength` 1, and images drawn as they come, a rare class is as likely beforehand as a common one. It is 0 for
    classes of equal size, and for those without images, of which nothing was learnt.
    """
    offsets, seen = np.zeros(len(counts)), counts > 0
    offsets[seen] = -strength * np.log(counts[seen] / counts[seen].mean())
    return offsets


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature that makes the negative log-likelihood of `labels` (int64, N) the least.

    `probabilities` (float, N × C) are at temperature 1. It lies in 0.25 … 4, rounded to 4 digits, and is 1 where
    there is no image or no other is better.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if not len(labels):
        return 1.0
    given, rows = logits(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(given / np.exp(log_temperature), axis=1)[rows, labels].mean()

    # The loss is convex in 1 / T, so it has one minimum in log T as well.
    found = minimize_scalar(loss, bounds=np.log([COLDEST, HOTTEST]), method="bounded")
    return float(f"{np.exp(found.x):.4g}") if found.fun < loss(0.0) else 1.0


def cross_fitted(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Rescale each fifth of the images by the temperature fitted to the other four fifths; gives float64, N × C.

    So no image has a say in its own temperature. (It has one in the adjustment of rare classes, which went by the
    temperature of all.) Image n is in fold n modulo 5.
    """
    fold = np.arange(len(labels)) % FOLDS
    rescaled = np.empty(probabilities.shape)
    for each in range(FOLDS):
        here = fold == each
        rescaled[here] = rescale(probabilities[here], fit_temperature(labels[~here], probabilities[~here]))
    return rescaled


def logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny, dtype=np.float64))
