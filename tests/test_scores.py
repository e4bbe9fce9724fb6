"""Scores against independent counts, and against the published scores of real predictions."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from petals.scores import (
    accuracy,
    calibration_bins,
    calibration_error,
    class_scores,
    class_table,
    macro_f1,
    negative_log_likelihood,
    score,
)

CLASSES = [f"flower {n}" for n in range(12)]


@pytest.fixture(params=[0, 1, 2])
def predictions(request) -> tuple[np.ndarray, np.ndarray]:
    """300 images; class 11 never occurs, yet is predicted now and then."""
    generator = np.random.default_rng(request.param)
    labels = generator.integers(0, 11, 300)
    logits = generator.normal(0, 1.5, (300, 12))
    logits[np.arange(300), labels] += 2
    return labels, softmax(logits, axis=1).astype(np.float32)


def f1_by_hand(labels: np.ndarray, predicted: np.ndarray, label: int) -> float:
    hits = ((labels == label) & (predicted == label)).sum()
    return 2 * hits / ((labels == label).sum() + (predicted == label).sum())


def test_scores_against_plain_counts(predictions: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = predictions
    predicted = probabilities.argmax(1)
    assert 11 in predicted
    before = softmax(np.log(probabilities) * 3, axis=1)
    found = score(labels, probabilities, before, 3.0, CLASSES)
    by_hand = [f1_by_hand(labels, predicted, label) for label in range(11)]
    own = probabilities[np.arange(300), labels].astype(float)
    assert found["macro_f1"] == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean(labels == predicted), abs=1e-6)
    assert found["nll"] == pytest.approx(-np.log(own).mean(), abs=1e-5)
    assert found["ece"] == pytest.approx(calibration_error(labels, probabilities), abs=1e-6)
    assert found["calibration"] == {
        "temperature": 3.0,
        "nll_before": pytest.approx(-np.log(before[np.arange(300), labels]).mean(), abs=1e-5),
        "ece_before": pytest.approx(calibration_error(labels, before), abs=1e-6),
    }
    better = (probabilities > own[:, None].astype(np.float32)).sum(1)
    assert found["top5_accuracy"] == pytest.approx((better < 5).mean(), abs=1e-6)
    expected = top_k_accuracy_score(labels, probabilities, k=5, labels=range(12))
    assert found["top5_accuracy"] == pytest.approx(expected, abs=1e-6)
    assert found["classes_absent"] == ["flower 11"]
    assert [each["class"] for each in found["f1"]] == CLASSES[:11]
    assert [each["f1"] for each in found["f1"]] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.integers(12, size=40)  # few images: some classes do not occur
    predicted = np.where(rng.random(40) < 0.7, labels, rng.integers(12, size=40))
    probabilities = softmax(rng.normal(0, 20, (40, 12)) + 40 * np.eye(12)[predicted], axis=1).astype(np.float32)
    predicted, occurring = probabilities.argmax(1), np.unique(labels)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(12), zero_division=0)
    assert [*map(list, class_scores(labels, predicted, 12))] == [*map(list, (expected[2], *expected[:2], expected[3]))]
    assert macro_f1(labels, predicted) == f1_score(labels, predicted, labels=occurring, average="macro")
    assert accuracy(labels, predicted) == accuracy_score(labels, predicted)
    doubles = np.maximum(probabilities.astype(float), np.finfo(np.float32).tiny)
    doubles /= doubles.sum(1, keepdims=True)
    expected = log_loss(labels, doubles, labels=range(12))
    assert negative_log_likelihood(labels, probabilities) == pytest.approx(expected, rel=1e-14)


def test_classes_that_do_not_occur_are_left_out_of_macro_f1(predictions: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = predictions
    predicted = probabilities.argmax(1)
    assert macro_f1(labels, predicted) > f1_score(labels, predicted, average="macro")  # counts class 11 as 0


def test_macro_f1_of_small_cases():
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 0, 1])) == 1
    assert macro_f1(np.array([0, 0, 1]), np.array([2, 2, 2])) == 0
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1])) == pytest.approx(2 / 3)


def test_calibration_against_a_loop(predictions: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = predictions
    expected, images = 0.0, []
    for number in range(15):
        inside = [
            (row.max().astype(float), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if number / 15 <= row.max() < (number + 1) / 15
        ]
        if inside:
            confidence, correct = np.mean(inside, axis=0)
            expected += abs(confidence - correct) * len(inside) / 300
            images.append(len(inside))
    assert calibration_error(labels, probabilities) == pytest.approx(expected, abs=1e-9)
    bins = calibration_bins(labels, probabilities)
    assert [each["images"] for each in bins] == images and sum(images) == 300
    assert [each["confidence"] for each in bins] == sorted(each["confidence"] for each in bins)


def test_calibration_of_extremes():
    sure = np.eye(3, dtype=np.float32)
    assert calibration_error(np.array([0, 1, 2]), sure) == 0
    assert calibration_error(np.array([1, 2, 0]), sure) == 1
    nearly = np.array([[0, 1.0], [0.96, 0.04]])  # both in the last of fifteen bins
    assert calibration_error(np.array([0, 0]), nearly) == pytest.approx(abs(0.5 - 0.98))
    assert calibration_bins(np.array([0, 1, 0]), sure) == [
        {"confidence": 1.0, "accuracy": pytest.approx(2 / 3), "images": 3}
    ]


def test_a_certain_mistake_costs_much_and_not_infinity():
    sure = np.array([[1, 0], [0, 1]], np.float32)
    assert negative_log_likelihood(np.array([0, 1]), sure) == pytest.approx(0, abs=1e-12)
    assert 30 < negative_log_likelihood(np.array([1, 0]), sure) < 100


def test_fewer_than_five_classes():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1]], np.float32)
    found = score(np.array([0, 1]), probabilities, probabilities, 1.0, ["a", "b"])
    assert (found["accuracy"], found["top5_accuracy"]) == (0.5, 1.0)


def test_the_table_has_every_class_in_label_order(predictions: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = predictions
    predicted = probabilities.argmax(1)
    table = class_table(labels, predicted, CLASSES)
    assert [row[0] for row in table] == CLASSES
    for label, (_, f1, precision, recall, support) in enumerate(table[:11]):
        hits = ((labels == label) & (predicted == label)).sum()
        assert f1 == f"{f1_by_hand(labels, predicted, label):.4f}"
        assert precision == f"{hits / max((predicted == label).sum(), 1):.4f}"
        assert recall == f"{hits / (labels == label).sum():.4f}"
        assert support == (labels == label).sum()
    assert table[11][1:] == ("0.0000", "0.0000", "0.0000", 0)


@pytest.mark.real
@pytest.mark.parametrize(
    ("column", "published"), [("wide_resnet50_2_label", 0.886479), ("wrn16_8_stl_d8d4d1_label", 0.859870)]
)
def test_the_published_scores_of_two_models(shared_data: Path, column: str, published: float):
    with (shared_data / "petals" / "validation_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted(map(str, range(104)))
    labels = np.array([int(row["true_original_label"]) for row in rows])
    predicted = np.array([int(names[int(row[column])]) for row in rows])
    assert len(rows) == 3712
    assert macro_f1(labels, predicted) == pytest.approx(published, abs=5e-7)


def test_a_class_that_is_never_recognised_is_not_absent():
    sure = np.eye(3, dtype=np.float32)[[0, 0]]
    found = score(np.array([0, 1]), sure, sure, 1.0, ["a", "b", "c"])
    assert found["classes_absent"] == ["c"] and found["f1"][1] == {"class": "b", "f1": 0.0}
