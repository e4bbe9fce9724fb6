"""Whether images still look like those of validation."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image, ImageEnhance, ImageFilter
from scipy.special import softmax
from scipy.stats import chi2, ks_2samp

from petals.drift import Reference, ks_limit, ks_statistic, population_stability_index, psi_limit
from petals.errors import PetalsError

KEYS = ("psi_classes", "psi_confidence", "ks_distance")
CLASSES, FEATURES = 104, 40
SHARES = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.7))


def window(images: int, seed: int, shares: np.ndarray = SHARES, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Answers to images of one population: probabilities and features."""
    random = np.random.default_rng(seed)
    probabilities = np.full((images, len(shares)), 1e-3)
    probabilities[np.arange(images), random.choice(len(shares), images, p=shares)] = random.beta(5, 1, images) + 0.01
    features = np.maximum(0, random.normal(1, spread, (images, FEATURES)))
    return probabilities / probabilities.sum(1, keepdims=True), features


def compared(reference: Reference, probabilities: np.ndarray, features: np.ndarray) -> dict[str, float]:
    return reference.compare(probabilities, reference.distances(features))


def alarms(reference: Reference, *answers: np.ndarray) -> set[str]:
    found = compared(reference, *answers)
    return {key for key in KEYS if found[key] > found[f"{key}_limit"]}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(*window(300, seed=1))


def test_distances_are_those_of_standardised_features(reference):
    features = window(300, seed=1)[1]
    expected = np.sqrt((((features - features.mean(0)) / features.std(0)) ** 2).mean(1))
    found = reference.distances(features)
    assert found.dtype == np.float32 and found == pytest.approx(expected, rel=1e-3)


def many_features(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As a network gives them: more of them than images, and most are zero."""
    random = np.random.default_rng(seed)
    features = random.lognormal(size=(images, 600)) * (random.random((images, 600)) < 0.3)
    return window(images, seed)[0], features


def test_what_is_usual_is_how_far_each_image_is_from_the_others():
    probabilities, features = many_features(20, seed=1)
    others = [Reference.of(np.delete(probabilities, n, 0), np.delete(features, n, 0)) for n in range(20)]
    distances = [each.distances(features[[n]])[0] for n, each in enumerate(others)]
    found = Reference.of(probabilities, features).distance_quantiles
    assert found == pytest.approx(np.quantile(distances, np.linspace(0, 1, 201)), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("known", "images"), [(25, 200), (100, 200), (270, 170)])
def test_more_features_than_images_raise_nothing(known, images):
    raised = []
    probabilities, _ = window(known + images, seed=0)  # the same throughout, whose limits are found once
    for seed in range(60):
        _, features = many_features(known + images, seed)
        reference = Reference.of(probabilities[:known], features[:known])
        raised += alarms(reference, probabilities[known:], features[known:])
    assert len(raised) <= 2


def test_a_feature_that_never_moved_does_not_outweigh_the_others():
    probabilities, features = window(50, seed=1)
    features[:, 0] = 0
    reference = Reference.of(probabilities, features)
    features[:, 0] = 0.1
    assert reference.distances(features).max() < 3


def test_the_images_of_validation_raise_nothing(reference):
    answers = window(300, seed=1)
    assert alarms(reference, *answers) == set()
    found = compared(reference, *answers)
    assert found["images"] == 300 and found["ks_distance"] < 0.05 and found["psi_confidence"] < 0.001


@pytest.mark.parametrize("images", [30, 300, 2000])
def test_other_images_of_the_same_kind_hardly_ever_do(images, reference):
    raised = [alarms(reference, *window(images, seed)) for seed in range(2, 62)]
    assert sum(map(len, raised)) <= 2
    by_chance = np.mean([compared(reference, *window(images, seed))["psi_classes"] for seed in range(2, 12)])
    assert by_chance > 0.1  # what is called drift where nobody asks how many images and classes there are


def test_each_number_tells_of_its_own_drift(reference):
    probabilities, features = window(300, seed=3)
    assert alarms(reference, *window(300, 3, np.roll(SHARES, 50))) == {"psi_classes"}
    assert alarms(reference, *window(300, 3, spread=1.5)) == {"ks_distance"}
    unsure = probabilities**0.3
    assert alarms(reference, unsure / unsure.sum(1, keepdims=True), features) == {"psi_confidence"}


@pytest.mark.parametrize("images", [0, 1, 2])
def test_few_images_or_none_raise_nothing(images, reference):
    probabilities, features = window(images, seed=4)
    found = compared(reference, probabilities, features)
    assert found["images"] == images and all(np.isfinite(value) for value in found.values())
    assert alarms(reference, probabilities, features) == set()


def test_the_population_stability_index_is_zero_where_nothing_changed_and_that_of_the_formula_for_many():
    assert population_stability_index([5, 3, 0], np.array([0, 0, 0])) == 0
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.3, 0.4])
    assert population_stability_index(q * 1e7, p * 1e7) == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-4)
    assert population_stability_index([1000, 0], np.array([0, 1000])) < 30


def test_the_limit_is_that_of_chi_squared_where_counts_are_large():
    expected = chi2.ppf(0.999, 9) * (1 / 20_000 + 1 / 10_000)
    assert psi_limit((1000,) * 10, 20_000) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("classes", "images", "window"), [(104, 271, 100), (17, 204, 200), (200, 1200, 200)])
def test_many_equal_classes_of_which_few_images_are_known_raise_no_alarm_by_chance(classes, images, window):
    random, even, above = np.random.default_rng(8), np.full(classes, 1 / classes), []
    for _ in range(20):
        known = random.multinomial(images, even)
        limit = psi_limit(tuple(known.tolist()), window)
        above.append(population_stability_index(known, random.multinomial(window, even, size=200)) > limit)
    assert np.mean(above) < 0.008  # one in a thousand is meant


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_the_statistic_is_that_of_scipy(shift: float):
    first, second = (np.random.default_rng(seed).normal(mean, 1, 500) for seed, mean in ((1, 0), (2, shift)))
    quantiles = np.quantile(first, np.linspace(0, 1, 201))
    assert ks_statistic(quantiles, second) == pytest.approx(ks_2samp(first, second).statistic, abs=0.006)


def test_the_limit_of_the_statistic_is_smirnovs():
    """1.9495 is the coefficient for one false alarm in a thousand, in any table of the test."""
    assert ks_limit(1000, 500) == pytest.approx(1.9495 * (1500 / 500_000) ** 0.5, rel=1e-4)


def test_json_there_and_back(reference):
    text = reference.to_json()
    assert Reference.from_json(text) == reference and Reference.from_json(text).to_json() == text
    assert Reference.of(*window(300, seed=1)).to_json() == text
    probabilities, features = window(1, seed=1)
    assert alarms(Reference.of(probabilities, features), probabilities, features) == set()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"images": 3}', '{"images": 3, "mean": 1}', '{"odd": 1, "images": 1}']
)
def test_another_text_is_refused_in_one_line(text):
    with pytest.raises(PetalsError, match="not a reference for drift") as error:
        Reference.from_json(text)
    assert "\n" not in str(error.value)


def test_a_reference_whose_parts_disagree_is_refused(reference):
    with pytest.raises(PetalsError, match="parts disagree"):
        Reference.from_json(reference.to_json().replace('"std": [', '"std": [1.0, '))
    with pytest.raises(ValueError, match="3 rows of probabilities, 2 distances"):
        reference.compare(np.ones((3, CLASSES)), np.ones(2))


def test_numpy_is_all_it_needs():
    code = "import sys, petals.drift; print([n for n in ('torch', 'scipy', 'onnxruntime') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.real
@pytest.mark.slow
def test_photographs_of_flowers_raise_nothing_and_spoilt_ones_do(shared_data):
    import torch

    from petals.images import decode, square
    from petals.models import create
    from petals.tfrecord import decode_example, read_records

    def photographs(split: str) -> tuple[list[Image.Image], list[int]]:
        files = sorted((shared_data / "oxford17" / "tfrecords-jpeg-192x192" / split).glob("*.tfrec"))
        examples = [decode_example(record) for file in files for _, record in read_records(file)]
        images = [Image.fromarray(square(decode(each["image"][0], split), 64)) for each in examples]
        return images, [each["class"][0] for each in examples]

    torch.set_num_threads(1)
    model = create("efficientnet_lite0", 17, 64, pretrained=True).eval()

    def features(images: list[Image.Image]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            return np.concatenate([model.features(part).numpy() for part in pixels.split(64)])

    train, labels = photographs("train")
    learnt, label = features(train[::6]), np.array(labels[::6])
    centres = np.stack([learnt[label == each].mean(0) for each in range(17)])

    def answers(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        found = features(images)
        return softmax(-((found[:, None] - centres) ** 2).sum(2) / 20, axis=1), found

    val = photographs("val")[0]
    probabilities, found = answers(val)
    reference = Reference.of(probabilities, found)
    assert alarms(reference, probabilities, found) == set()
    assert alarms(reference, probabilities[::2], found[::2]) == set()
    assert alarms(reference, *answers([ImageEnhance.Brightness(image).enhance(0.15) for image in val]))
    assert alarms(reference, *answers([image.filter(ImageFilter.GaussianBlur(3)) for image in val]))
    random = np.random.default_rng(0)
    tiles = [random.integers(0, 256, (number, number, 3), dtype=np.uint8) for number in range(2, 60)]
    assert "psi_classes" in alarms(reference, *answers([Image.fromarray(each).resize((64, 64)) for each in tiles]))


@pytest.mark.parametrize(("old", "new"), [('"mean": [', '"mean": [NaN, '), ('"confidence": [', '"confidence": [1, ')])
def test_a_reference_that_is_not_finite_or_has_a_bin_too_many_is_refused(reference, old, new):
    text = reference.to_json().replace(old, new)
    if "NaN" in new:
        text = text.replace('"std": [', '"std": [1.0, ')
    with pytest.raises(PetalsError, match="parts disagree"):
        Reference.from_json(text)


def test_a_confidence_on_an_edge_falls_into_the_bin_that_it_fell_into_on_validation():
    probabilities = np.tile(np.array([[1.0, 0.0], [0.75, 0.25]]), (50, 1))
    found = Reference.of(probabilities, np.random.default_rng(0).normal(size=(100, 3)))
    told = found.compare(probabilities, np.zeros(100))
    assert told["psi_confidence"] < told["psi_confidence_limit"]


def test_images_that_all_lie_beyond_either_end_are_as_far_as_can_be():
    quantiles = np.linspace(0, 1, 201)
    assert ks_statistic(quantiles, np.full(4, 2.0)) == ks_statistic(quantiles, np.full(4, -1.0)) == 1


def test_a_reference_of_no_image_is_refused(reference):
    with pytest.raises(PetalsError, match="parts disagree"):
        Reference.from_json(reference.to_json().replace('"images": 300', '"images": 0'))
