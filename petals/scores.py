"""What a classifier is worth: scikit-learn's scores, and calibration.

scikit-learn takes a second to import, so that is done where a score is first asked for.
"""

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean F1 over the classes that occur among the true `labels` (both int64, N)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


def headline(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The scores that a model file carries, of `probabilities` (float, N × C) against `labels` (int64, N)."""
    from sklearn.metrics import accuracy_score

    predicted = probabilities.argmax(1)
    return {
        "macro_f1": round(macro_f1(labels, predicted), 6),
        "accuracy": round(float(accuracy_score(labels, predicted)), 6),
    }


def score(
    labels: np.ndarray, probabilities: np.ndarray, before: np.ndarray, temperature: float, classes: Sequence[str]
) -> dict[str, object]:
    """All scores of `probabilities` (float, N × C) against `labels` (int64, N), rounded to 6 digits.

    `nll` and `ece` are those of `probabilities`; `calibration` holds the model's `temperature`, and both as they are
    `before` it, of probabilities at temperature 1 (float, N × C). Since the temperature was fitted to these very
    images, `probabilities` should be those of petals.calibration.cross_fitted.

    `f1` lists each class that occurs in `labels`, `classes_absent` the others: as lists, since DVC makes a column of
    every number that is not in one.
    """
    from sklearn.metrics import f1_score

    predicted = probabilities.argmax(1)
    present = np.unique(labels)
    f1 = f1_score(labels, predicted, labels=present, average=None, zero_division=0)
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
        "classes_absent": [name for label, name in enumerate(classes) if label not in present],
        "f1": [{"class": classes[label], "f1": round(float(each), 6)} for label, each in zip(present, f1, strict=True)],
    }


def negative_log_likelihood(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of −log p of the true class, p no less than float32's resolution."""
    from sklearn.metrics import log_loss

    probabilities = np.clip(probabilities.astype(np.float64), np.finfo(np.float32).tiny, 1)
    probabilities /= probabilities.sum(1, keepdims=True)
    return float(log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, float]]:
    """Confidence against accuracy in 15 equal bins of confidence (Guo et al., 2017); empty bins are left out."""
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
    """Expected calibration error: the mean distance of confidence and accuracy, bins weighted by their images."""
    bins = calibration_bins(labels, probabilities)
    return sum(abs(each["confidence"] - each["accuracy"]) * each["images"] for each in bins) / len(labels)


def class_table(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[tuple[object, ...]]:
    """Rows of (class, f1, precision, recall, support) for every class, in label order."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    columns = zip(classes, f1, precision, recall, support, strict=True)
    return [(name, f"{f:.4f}", f"{p:.4f}", f"{r:.4f}", int(n)) for name, f, p, r, n in columns]
