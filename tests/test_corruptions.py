"""Corruptions against other libraries' and plain arithmetic, and alike for any batch."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import affine_transform, correlate1d
from scipy.stats import norm

from petals.corruptions import CORRUPTIONS, corrupt

IDS = list("abcd")


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """Four smooth pictures of 64 px with an edge and fine stripes, far from black and white."""
    y, x = np.mgrid[:64, :64] / 64
    pictures = []
    for number in range(4):
        inside = np.hypot(x - 0.4, y - 0.6) < 0.2 + 0.05 * number
        shades = [60 + 90 * inside + 30 * np.sin((8 + 6 * k + number) * x + 5 * y) for k in range(3)]
        pictures.append(np.stack(shades, axis=-1))
    return np.stack(pictures).round().astype(np.uint8)


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Of images that are alike, in dB."""
    return 20 * math.log10(255) - 10 * math.log10(np.square(images.astype(float) - others).mean())


def resized(images: np.ndarray, side: int) -> np.ndarray:
    return np.stack([Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_step_of_severity_does_more_harm(photographs, name):
    before = photographs.copy()
    likeness = [psnr(corrupt(photographs, IDS, name, severity), photographs) for severity in range(1, 6)]
    assert likeness == sorted(likeness, reverse=True) and len(set(likeness)) == 5
    assert np.array_equal(photographs, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch_order_and_state_of_chance(photographs, name):
    together = corrupt(photographs, IDS, name, 3)
    assert together.shape == photographs.shape and together.dtype == np.uint8
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for rows in ([2], [3, 0], [1, 3, 2, 0]):
        assert np.array_equal(corrupt(photographs[rows], [IDS[row] for row in rows], name, 3), together[rows])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_chance_is_of_the_id_and_only_where_there_is_any(photographs, name):
    same = np.repeat(photographs[:1], 2, axis=0)
    first, second = corrupt(same, ["a", "b"], name, 3)
    assert np.array_equal(first, second) == (name not in ("noise", "fog"))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_flower_suffers_alike_at_any_size(photographs, name):
    """Corrupted large and made small is about as bad as made small and corrupted."""
    large = resized(photographs, 224)
    small = resized(large, 112)
    there = psnr(resized(corrupt(large, IDS, name, 5), 112), small)
    here = psnr(corrupt(small, IDS, name, 5), small)
    assert here == pytest.approx(there, abs=2.5)


@pytest.mark.parametrize(("severity", "sigma"), [(1, 1 * 64 / 224), (5, 6 * 64 / 224)])
def test_blur_is_scipys(photographs, severity, sigma):
    reach = math.ceil(3 * sigma)
    weights = np.diff(norm.cdf(np.arange(-reach - 0.5, reach + 1), scale=sigma))
    blurred = photographs.astype(float)
    for axis in (1, 2):
        blurred = correlate1d(blurred, weights / weights.sum(), axis, mode="mirror")
    assert np.abs(corrupt(photographs, IDS, "blur", severity) - blurred).max() < 0.51


def test_noise_has_no_drift_its_deviation_and_no_pattern():
    grey = np.full((2, 224, 224, 3), 128, np.uint8)
    grain = corrupt(grey, ["a", "b"], "noise", 1).astype(float) - 128
    assert abs(grain.mean()) < 0.2 and grain.std() == pytest.approx(0.08 * 255, rel=0.01)
    neighbours = np.corrcoef(grain[:, 1:].ravel(), grain[:, :-1].ravel())[0, 1]
    images = np.corrcoef(grain[0].ravel(), grain[1].ravel())[0, 1]
    assert abs(neighbours) < 0.01 and abs(images) < 0.01
    stronger = corrupt(grey, ["a", "b"], "noise", 2).astype(float) - 128
    assert np.corrcoef(grain.ravel(), stronger.ravel())[0, 1] > 0.99, "the same grain, only more of it"


def test_brightness_and_contrast_are_plain_arithmetic(photographs):
    brighter = np.minimum(photographs + 0.4 * 255, 255)
    assert np.abs(corrupt(photographs, IDS, "brightness", 5) - brighter).max() < 0.51
    grey = (photographs @ [0.299, 0.587, 0.114]).mean((1, 2))[:, None, None, None]
    flat = grey + 0.12 * (photographs - grey)
    assert np.abs(corrupt(photographs, IDS, "contrast", 5) - flat).max() < 0.51


@pytest.mark.parametrize(("side", "severity", "quality"), [(448, 5, 7), (224, 5, 7), (96, 5, 16), (64, 1, 71)])
def test_jpeg_is_pillows_at_a_quality_that_follows_the_size(photographs, side, severity, quality):
    images = resized(photographs, side)
    for image, compressed in zip(images, corrupt(images, IDS, "jpeg", severity), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        assert np.abs(np.asarray(Image.open(file), int) - compressed).max() <= 1


def test_fog_takes_black_to_its_density_and_leaves_white_white():
    white, black = (np.full((3, 96, 96, 3), value, np.uint8) for value in (255, 0))
    assert (corrupt(white, list("abc"), "fog", 5) == 255).all()
    cloud = corrupt(black, list("abc"), "fog", 5) / 255
    assert np.array_equal(cloud[..., 0], cloud[..., 2])
    assert cloud.min() == pytest.approx(0.4, abs=0.02) and cloud.max() == pytest.approx(0.8, abs=0.02)
    assert np.abs(np.diff(cloud, axis=2)).max() < 0.1, "a cloud, not noise"


def test_zoom_is_the_mean_of_enlargements(photographs):
    centre = (64 - 1) / 2
    mean = np.zeros(photographs.shape)
    for step in range(16):
        factor = 1.33 ** (step / 15)
        for number, image in enumerate(photographs):
            for channel in range(3):
                offset = centre - centre / factor
                mean[number, ..., channel] += affine_transform(
                    image[..., channel].astype(float), [1 / factor] * 2, offset, order=1, mode="nearest"
                )
    mean /= 16
    difference = np.abs(corrupt(photographs, IDS, "zoom", 5) - mean)
    assert difference.mean() < 1 and np.percentile(difference, 99) < 5
