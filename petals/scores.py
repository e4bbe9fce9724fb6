"""What a classifier is worth: F1, accuracy, likelihood, calibration.

A few lines of NumPy each: to import scikit-learn takes a second and 80 MB. A test holds them to its figures. Macro F1
is its `f1_score(…, labels=np.unique(true), average="macro")`, which by default also counts classes that are only
predicted.
"""

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15
EPSILON = np.finfo(np.float64).eps


def class_scores(labels: np.ndarray, predicted: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """F1, precision, recall (float64) and support (int64) of each class, of shape (classes,); 0 for 0 / 0.

    `labels` and `predicted` are int64, of shape (N,), with values in 0 … classes − 1.
    """
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    said = np.bincount(predicted, minlength=classes)
    support = np.bincount(labels, minlength=classes)
    return (
        2 * hits / np.maximum(support + said, 1),
        hits / np.maximum(said, 1),
        hits / np.maximum(support, 1),
        support,
    )


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean F1 over the classes that occur among the true `labels` (both int64, N, of 1 and more)."""
    f1, _, _, support = class_scores(labels, predicted, 1 + max(labels.max(), predicted.max()))
    return float(f1[support > 0].mean())


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the images that got their true label (both int64, N)."""
    return float(np.mean(labels == predicted))


def headline(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The scores that a model file carries, of `probabilities` (float, N × C) against `labels` (int64, N)."""
    predicted = probabilities.argmax(1)
    return {
        "macro_f1": round(macro_f1(labels, predicted), 6),
        "accuracy": round(accuracy(labels, predicted), 6),
    }


def score(
    labels: np.ndarray, probabilities: np.ndarray, before: np.ndarray, temperature: float, classes: Sequence[str]
) -> dict[str, object]:
    """All scores of `probabilities` (float, N × C) against `labels` (int64, N), rounded to 6 digits.

    `nll` and `ece` are those of `probabilities`; `calibration` holds the model's `temperature`, and both as they are
    `before` it, of probabilities at temperature 1 (float, N × C). Where the temperature was fitted to these very
    images, `probabilities` should be those of petals.calibration.cross_fitted.

    `f1` lists each class that occurs in `labels`, `classes_absent` the others: as lists, since DVC makes a column of
    every number that is not in one.
    """
    f1, _, _, support = class_scores(labels, probabilities.argmax(1), len(classes))
    top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    return {
        **headline(labels, probabilities),
        "top5_accuracy": round(float((top5 == labels[:, None]).any(1).mean()), 6),
        "nll": round(negative_log_likelihood(labels, probabilities), 6),
        "ece": round(calibration_error(labels, probabilities), 6),
        "calibration": {
            "temperature": temperature,
            "nll_before": round(negative_log_likelihood(labels, before), 6),
            "ece_before": round(calibration_error(labels, before), 6),
        },
        "classes_absent": [name for name, images in zip(classes, support, strict=True) if not images],
        "f1": [
            {"class": name, "f1": round(float(each), 6)}
            for name, each, images in zip(classes, f1, support, strict=True)
            if images
        ],
    }


def negative_log_likelihood(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of −log p of the true class, in nats; `labels` int64, N, and `probabilities` float, N × C.

    As scikit-learn's log_loss: rows are made to sum to 1, and p is clipped to ε … 1 − ε of float64.
    """
    probabilities = probabilities.astype(np.float64)
    own = probabilities[np.arange(len(labels)), labels] / probabilities.sum(1)
    return float(-np.log(own.clip(EPSILON, 1 - EPSILON)).mean())


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, float]]:
    """Confidence against accuracy in 15 equal bins of confidence (Guo et al., 2017); empty bins are left out.

    `labels` are int64, N, `probabilities` float, N × C.
    """
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    number = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        {
            "confidence": float(confidence[number == each].mean()),
            "accuracy": float(correct[number == each].mean()),
            "images": int((number == each).sum()),
        }
        for each in np.unique(number)
    ]


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy, bins weighted by their images.

    `labels` are int64, N, `probabilities` float, N × C.
    """
    bins = calibration_bins(labels, probabilities)
    return sum(abs(each["confidence"] - each["accuracy"]) * each["images"] for each in bins) / len(labels)


def class_table(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[tuple[object, ...]]:
    """Rows of (class, f1, precision, recall, support) for every class, in label order; labels are int64, N."""
    columns = zip(classes, *class_scores(labels, predicted, len(classes)), strict=True)
    return [(name, f"{f:.4f}", f"{p:.4f}", f"{r:.4f}", int(n)) for name, f, p, r, n in columns]
