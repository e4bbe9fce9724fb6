"""Temperature scaling: known temperatures found again, a plain search, and images that say nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from petals.calibration import FOLDS, class_offsets, cross_fitted, fit_temperature, rescale
from petals.optim import AveragedWeights
from petals.validation import calibrate, validate


def drawn(temperature: float, images: int = 4000, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Labels that come up as often as softmax(logits / `temperature`) says, and softmax(logits)."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (images, classes))
    chances = softmax(logits / temperature, axis=1).cumsum(1)
    labels = (random.random((images, 1)) > chances).sum(1)
    return labels, softmax(logits, axis=1).astype(np.float32)


def loss(labels: np.ndarray, probabilities: np.ndarray, temperature: float) -> float:
    logits = np.log(probabilities.astype(float)) / temperature
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_none_on_a_fine_grid_is_better(temperature: float):
    labels, probabilities = drawn(temperature, images=100)
    found = fit_temperature(labels, probabilities)
    least = min(loss(labels, probabilities, each) for each in np.geomspace(0.25, 4, 1000))
    assert loss(labels, probabilities, found) <= least + 1e-7
    assert found == float(f"{found:.4g}")


def test_rescaling_is_dividing_the_logits():
    logits = np.random.default_rng(1).normal(0, 5, (50, 4))
    rescaled = rescale(softmax(logits, axis=1).astype(np.float32), 1.7)
    assert np.allclose(rescaled, softmax(logits / 1.7, axis=1), atol=1e-6)
    assert np.allclose(rescale(rescaled, 1 / 1.7), softmax(logits, axis=1), atol=1e-6)


def test_an_adjustment_takes_out_how_frequent_a_class_was():
    """By Bayes' rule: what is seen with the classes' frequency, adjusted, is what is seen where all are alike."""
    random = np.random.default_rng(2)
    likelihoods, counts = random.random((20, 4)), np.array([100, 40, 4, 1])
    seen = likelihoods * counts / (likelihoods * counts).sum(1, keepdims=True)
    alike = likelihoods / likelihoods.sum(1, keepdims=True)
    assert np.allclose(rescale(seen, 1.0, class_offsets(counts, 1.0)), alike)
    half = likelihoods * counts**0.5
    assert np.allclose(rescale(seen, 1.0, class_offsets(counts, 0.5)), half / half.sum(1, keepdims=True))


def test_a_class_that_nothing_was_learnt_of_is_left_alone():
    counts = np.array([12, 3, 0])
    assert class_offsets(counts, 1.0)[2] == 0
    assert np.array_equal(class_offsets(counts, 1.0)[:2], class_offsets(counts[:2], 1.0))


def test_classes_of_equal_size_need_no_adjustment():
    assert class_offsets(np.full(3, 44), 0.5).tolist() == [0, 0, 0]
    assert np.isfinite(class_offsets(np.array([3, 0]), 1.0)).all()


CERTAIN = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([], np.empty((0, 3)), 1.0),
        ([0, 0], np.ones((2, 1)), 1.0),
        ([0, 1, 2], np.full((3, 3), 1 / 3), 1.0),
        ([0, 1, 2], CERTAIN, 1.0),
        ([0, 1, 2], 0.4 * CERTAIN + 0.2, 0.25),
        ([0, 0, 0], np.tile([0.6, 0.3, 0.1], (3, 1)), 0.25),
        ([1, 2, 0], CERTAIN, 4.0),
    ],
    ids=["empty", "one class", "no opinion", "certain and right", "all right", "all alike", "certain and wrong"],
)
def test_images_that_say_little_give_a_bounded_temperature(labels, probabilities, expected: float):
    found = fit_temperature(np.array(labels, int), np.asarray(probabilities, np.float32))
    assert found == pytest.approx(expected, rel=1e-3) and 0.25 <= found <= 4


def test_no_image_has_a_say_in_its_own_fold():
    labels, probabilities = drawn(2.0, images=53)
    calibrated = cross_fitted(labels, probabilities)
    spoiled = labels.copy()
    spoiled[::FOLDS] = (labels[::FOLDS] + 1) % 7
    again = cross_fitted(spoiled, probabilities)
    assert np.array_equal(again[::FOLDS], calibrated[::FOLDS])
    assert not np.array_equal(again[1::FOLDS], calibrated[1::FOLDS])
    others = np.arange(53) % FOLDS != 1
    expected = rescale(probabilities[~others], fit_temperature(labels[others], probabilities[others]))
    assert np.array_equal(calibrated[~others], expected)


@pytest.mark.parametrize("images", [0, 1, 2, 500])
def test_predictions_stay(images: int):
    labels, probabilities = drawn(2.0, images=images)
    calibrated = cross_fitted(labels, probabilities)
    assert np.array_equal(calibrated.argmax(1), probabilities.argmax(1))
    assert np.allclose(calibrated.sum(1), 1)


def test_what_is_too_sure_is_better_calibrated_on_unseen_images():
    labels, probabilities = drawn(2.5)
    before, after = (loss(labels, each, 1) for each in (probabilities, cross_fitted(labels, probabilities)))
    assert after < before - 0.1


def test_the_temperature_is_that_of_the_adjusted_answers():
    """Not that of the answers before: where rare classes are raised too far, the right one is higher."""
    labels, probabilities = drawn(0.6)
    group = SimpleNamespace(predict=lambda net, split: probabilities)
    train = SimpleNamespace(labels=np.repeat(range(7), range(5, 40, 5)), classes="abcdefg", final=False)
    val = SimpleNamespace(labels=labels)
    before = fit_temperature(labels, probabilities)
    found = calibrate(None, train, val, group, 1.0, "fit")
    assert found.note == f"temperature {found.temperature:.3f}, fitted to val"
    adjusted = probabilities * np.exp(found.offsets)
    after = fit_temperature(labels, adjusted / adjusted.sum(1, keepdims=True))
    assert found.temperature == pytest.approx(after, rel=1e-3) and after > 1.1 * before
    val.labels = probabilities.argmax(1)  # no mistake, so that the surer the better
    note = calibrate(None, train, val, group, 0.0, "fit").note
    assert note.startswith("temperature 0.250, fitted to val: at its bound, as val")
    val.labels = probabilities.argmin(1)  # nothing right
    note = calibrate(None, train, val, group, 0.0, "fit").note
    assert note.startswith("temperature 4.000, fitted to val: at its bound, as the answers say little")


def test_a_final_model_is_adjusted_at_the_temperature_of_train_and_keeps_one():
    train = SimpleNamespace(labels=np.array([0, 0, 0, 1]), classes="abc", final=True)  # none of the last class
    scores = np.tile(np.float32([[0.6, 0.3, 0.1]]), (4, 1))
    asked = []

    def predict(net: object, split: object) -> np.ndarray:
        asked.append(split)
        return scores

    val, group = SimpleNamespace(labels=np.array([1])), SimpleNamespace(predict=predict)
    found = calibrate(None, train, val, group, 1.0, "fit")
    expected = fit_temperature(train.labels, scores) * class_offsets(np.array([3, 1, 0]), 1.0)
    assert asked == [train] and found.temperature == 1
    assert found.offsets.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_validation_scores_the_average_and_leaves_what_learns():
    net = nn.Linear(2, 2)
    average = AveragedWeights(net, 0.9)
    with torch.no_grad():
        net.weight += 1
    learnt, averaged, seen = net.weight.clone(), average.average[0].clone(), []
    group = SimpleNamespace(predict=lambda net, split: seen.append(net.weight.clone()) or np.full((2, 2), 0.5))
    validate(net, average, SimpleNamespace(labels=np.array([0, 1])), group, "step 1")
    assert torch.equal(seen[0], averaged) and torch.equal(net.weight, learnt)
    assert torch.equal(average.average[0], averaged)


@pytest.mark.parametrize("final", [False, True])
def test_a_given_temperature_is_kept_and_rare_classes_are_adjusted_at_the_right_one(final: bool):
    labels, probabilities = drawn(0.6)
    group = SimpleNamespace(predict=lambda net, split: probabilities)
    train = SimpleNamespace(labels=np.repeat(range(7), range(5, 40, 5)), classes="abcdefg", final=final)
    found = calibrate(None, train, SimpleNamespace(labels=labels), group, 1.0, 0.5)
    at = 0.5 if final else fit_temperature(labels, probabilities)  # of a final model nothing else is known
    assert found.offsets == pytest.approx(at * class_offsets(np.arange(5, 40, 5), 1.0))
    assert (found.temperature, found.note) == (0.5, "temperature 0.5, as params.yaml has it")
