"""Kornia's operations with less work: what Kornia itself would give of the same draws, bit for bit."""

import math
from unittest import mock

import kornia.augmentation as K
import kornia.color
import pytest
import torch
from torch import Tensor

from petals.operations import (
    CutMix,
    DrawnOnly,
    HorizontalFlip,
    MixUp,
    RandomErasing,
    RandomHue,
    RandomResizedCrop,
    hsv_to_rgb,
)

torch.manual_seed(1)
SMOOTH = torch.rand(12, 3, 40, 30)
IMAGES = {
    "smooth": SMOOTH,
    "bytes": (SMOOTH * 255).round() / 255,
    "flat": (SMOOTH * 2).round() / 2,  # greys, black, white, and channels that are equal
    "beyond": SMOOTH * 1.4 - 0.2,
}


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_hue_is_kornias(images: Tensor):
    theirs, ours = (each((-0.5, 0.5), p=1.0) for each in (K.RandomHue, RandomHue))
    for _ in range(5):
        params = theirs.forward_parameters(images.shape)
        assert torch.equal(ours(images, params=params), theirs(images, params=params))


@pytest.mark.parametrize("sextant", range(7))
def test_hues_beside_a_bend_are_kornias(sextant: int):
    bend = torch.tensor(sextant * math.pi / 3)
    steps = torch.arange(-2000, 2000, dtype=torch.int32)
    hues = (bend.view(torch.int32) + steps).view(torch.float32) if sextant else torch.logspace(-40, 0, 4000)
    hues = hues[hues <= torch.tensor(2 * math.pi)]  # each float32 beside the bend
    for saturation in (0.0, 0.3, 1.0):
        hsv = torch.stack([hues, torch.full_like(hues, saturation), torch.full_like(hues, 0.7)])[None, :, None]
        assert torch.equal(hsv_to_rgb(hsv), kornia.color.hsv_to_rgb(hsv))


def test_what_is_not_drawn_is_not_computed():
    operation = K.RandomGaussianBlur((5, 5), (0.1, 1.5), p=0.4)
    ours, computed = DrawnOnly(operation), 0
    for _ in range(20):
        params = ours.forward_parameters(SMOOTH.shape)
        with mock.patch.object(operation, "apply_transform", wraps=operation.apply_transform) as apply:
            found = ours(SMOOTH.clone(), params=params)
        computed += sum(len(call.args[0]) for call in apply.mock_calls)
        assert torch.equal(found, operation(SMOOTH, params=params))
    assert 0.2 < computed / (20 * len(SMOOTH)) < 0.6


@pytest.mark.parametrize("size", [(40, 30), (7, 64)], ids=str)
def test_erasing_is_kornias(size: tuple[int, int]):
    scale, images = (0.02, 0.9), torch.rand(50, 3, *size)  # up to the edges
    ours, theirs = RandomErasing(scale, 0.7), K.RandomErasing(scale=scale, p=0.7)
    for seed in range(20):
        torch.manual_seed(seed)
        expected, after = theirs(images), torch.rand(())
        torch.manual_seed(seed)
        found = ours(images.clone())
        assert torch.equal(found, expected) and torch.equal(torch.rand(()), after)
        assert not torch.equal(found, images)


def test_crops_of_all_images_at_once_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch):
    ours, theirs = (each((24, 24), scale=(0.35, 1.0), p=1.0) for each in (RandomResizedCrop, K.RandomResizedCrop))
    params = theirs.forward_parameters(SMOOTH.shape)
    expected = theirs(SMOOTH, params=params)
    assert torch.equal(ours(SMOOTH, params=params), expected)
    monkeypatch.setattr(Tensor, "is_cpu", False)  # as on a GPU
    found = ours(SMOOTH, params=params)
    assert not torch.equal(found, expected) and torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_flips_are_kornias(layout: torch.memory_format):
    ours, theirs = HorizontalFlip(0.4), K.RandomHorizontalFlip(p=0.4)
    for seed in range(10):
        torch.manual_seed(seed)
        expected, after = theirs(SMOOTH), torch.rand(())
        torch.manual_seed(seed)
        found = ours(SMOOTH.clone(memory_format=layout))
        assert torch.equal(found, expected) and torch.equal(torch.rand(()), after)
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("theirs", "ours", "settings"),
    [(K.RandomMixUpV2, MixUp, {}), (K.RandomCutMixV2, CutMix, {"use_correct_lambda": True, "num_mix": 2})],
    ids=["mixup", "cutmix"],
)
def test_mixing_is_kornias(theirs: type, ours: type, settings: dict):
    theirs, ours = (each(data_keys=["input", "class"], **settings) for each in (theirs, ours))
    labels, before = torch.arange(len(SMOOTH)), SMOOTH.clone()
    for _ in range(10):
        params = theirs.forward_parameters(SMOOTH.shape)
        (expected, its), (found, own) = (each(SMOOTH, labels, params=params) for each in (theirs, ours))
        assert torch.equal(found, expected) and torch.equal(own, its)
        assert not torch.equal(found, SMOOTH) and torch.equal(SMOOTH, before)
