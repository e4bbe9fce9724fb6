"""Near-duplicates: against numpy's correlation, and among real photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petals import duplicates
from petals.duplicates import THRESHOLD, groups_of, near_duplicates, thumbnails
from petals.images import decode
from petals.rawdata import open_dataset


def picture(seed: int, size: int = 64) -> np.ndarray:
    """A photograph's stand-in: large soft shapes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 32), (17, 100), (31, 331)])
def test_a_thumbnail_is_the_mean_of_each_cell_of_a_grid(height: int, width: int):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    found = thumbnails(images)
    assert found.shape == (2, 16, 16, 3) and found.dtype == np.uint8
    for image, y, x in [(0, 0, 0), (1, 7, 3), (1, 15, 15)]:
        cell = images[image, y * height // 16 : (y + 1) * height // 16, x * width // 16 : (x + 1) * width // 16]
        assert found[image, y, x].tolist() == cell.reshape(-1, 3).mean(0).astype(int).tolist()


def test_the_pairs_are_those_that_numpy_finds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(duplicates, "BLOCK", 7)  # so that pairs lie inside blocks and across them
    thumbnails = np.random.default_rng(3).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    for source, copy in [(0, 1), (2, 30), (2, 39), (20, 21)]:
        thumbnails[copy] = thumbnails[source] // 2 + 40
    for threshold in (-0.02, 0.03, THRESHOLD):
        centred = thumbnails - thumbnails.mean((1, 2), keepdims=True)
        correlation = np.corrcoef(centred.reshape(40, -1))
        expected = [(i, j) for i in range(40) for j in range(i + 1, 40) if correlation[i, j] >= threshold]
        found = near_duplicates(thumbnails, threshold, most=40)
        assert [pair[:2] for pair in found] == expected
        assert np.allclose([c for _, _, c in found], [correlation[pair] for pair in expected], atol=1e-5)
    assert expected == [(0, 1), (2, 30), (2, 39), (20, 21), (30, 39)]


def test_a_pair_just_above_the_threshold_is_found():
    """Pictures of large squares, whose short vectors say all: their product is no more than the correlation."""
    first, second = np.random.default_rng(1).standard_normal((2, 4, 4, 3))
    squares = [(128 + 25 * each).clip(0, 255).astype(np.uint8) for each in (first, first + 0.3 * second)]
    thumbnails = np.stack(squares).repeat(4, axis=1).repeat(4, axis=2)
    correlation = np.corrcoef((thumbnails - thumbnails.mean((1, 2), keepdims=True)).reshape(2, -1))[0, 1]
    assert [pair[:2] for pair in near_duplicates(thumbnails, correlation - 1e-5)] == [(0, 1)]
    assert near_duplicates(thumbnails, correlation + 1e-5) == []


def test_fine_textures_are_compared_by_the_block(monkeypatch: pytest.MonkeyPatch):
    """Their short vectors rule no pair out; image by image, six thousand of them took five times as long."""
    compared = []
    units = duplicates.units
    monkeypatch.setattr(duplicates, "BLOCK", 20)
    monkeypatch.setattr(duplicates, "units", lambda images: compared.append(len(images)) or units(images))
    thumbnails = np.random.default_rng(3).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    thumbnails[50] = thumbnails[7]
    assert [pair[:2] for pair in near_duplicates(thumbnails)] == [(7, 50)]
    assert compared == [20] * (3 + 2 * 6), "for the short vectors, and for both sides of six squares"


def test_the_same_photograph_saved_otherwise_is_found():
    image = Image.fromarray(picture(1))
    brighter, small, poor = (
        Image.fromarray((picture(1) * 0.8 + 20).astype(np.uint8)),
        image.resize((40, 40)),
        io.BytesIO(),
    )
    image.save(poor, "JPEG", quality=20)
    variants = [np.asarray(each) for each in (image, brighter, small, Image.open(poor))]
    others = [picture(seed) for seed in range(2, 6)]
    found = near_duplicates(np.concatenate([thumbnails(each[None]) for each in variants + others]))
    assert [pair[:2] for pair in found] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_pictures_of_one_colour_are_not_alike_for_that():
    """Such as all those with a blue sky, or cells under a green light."""
    sky = [np.clip(picture(seed) * 0.15 + np.array([90, 140, 215]), 0, 255).astype(np.uint8) for seed in range(30)]
    assert near_duplicates(thumbnails(np.stack(sky))) == []
    assert len(set(groups_of(thumbnails(np.stack([*sky, sky[3] // 2]))))) == 30


def test_of_many_that_are_alike_the_nearest_in_each_group_are_listed():
    """Here the last ones of each group: the first image is clean, and of those after it each has less noise."""
    first, noise = np.random.default_rng(1).standard_normal((2, 16, 16, 3))
    burst = [first + amount * noise for amount in (0, *np.linspace(0.3, 0.05, 29))]
    alike = np.stack([(128 + 25 * each).clip(0, 255).astype(np.uint8) for each in burst])
    found = near_duplicates(alike, groups=np.repeat([0, 1], 15), most=2)
    assert [pair[:2] for pair in found if pair[0] == 0] == [(0, 13), (0, 14), (0, 28), (0, 29)]
    assert len(found) < 30 * 2 * 2


def test_what_is_linked_by_near_duplicates_has_one_number(monkeypatch: pytest.MonkeyPatch):
    found = [(0, np.array([2]), [1.0]), (1, np.array([2]), [1.0]), (4, np.array([5]), [1.0])]
    monkeypatch.setattr(duplicates, "alike", lambda thumbnails, threshold: found)
    groups = groups_of(np.zeros((7, 16, 16, 3), np.uint8))
    assert groups[0] == groups[1] == groups[2] and groups[4] == groups[5] and len(set(groups)) == 4


def test_more_than_are_listed_have_one_number():
    random = np.random.default_rng(1)
    first, second = random.standard_normal((2, 16, 16, 3))
    burst = [first] * 8 + [first + 0.2 * second]  # the ninth correlates at 0.98
    images = np.stack([(128 + 25 * each).clip(0, 255).astype(np.uint8) for each in [*burst, second]])
    assert groups_of(images).tolist() == [0] * 9 + [9]


def test_plain_greys_match_nothing():
    greys = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (0, 7, 7, 255)])
    assert near_duplicates(greys) == []
    assert near_duplicates(greys[:0]) == []


@pytest.mark.real
def test_the_near_duplicates_of_the_oxford_flowers_are_all_in_train(shared_data: Path):
    splits = open_dataset(shared_data / "oxford17", 192).splits
    records = [(split, each) for split in splits for source in splits[split] for each in source.records()]
    photographs = np.stack([decode(record.data, record.where) for _, record in records])
    found = near_duplicates(thumbnails(photographs))
    assert len(found) == 69
    assert {(records[i][0], records[j][0]) for i, j, _ in found} == {("train", "train")}
    assert sum(correlation > 0.99 for _, _, correlation in found) >= 67
    assert sum(records[i][1].label == records[j][1].label for i, j, _ in found) >= 67
