"""The images of an epoch: which, in what order, in which version."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petals.errors import PetalsError
from petals.packed import PackedSplit, Shards, create_shards
from petals.training_images import TrainingImages, _in_floats, plan_epochs, resized

COUNT, VIEWS, SIZE = 10, 2, 4


@pytest.fixture
def make(tmp_path: Path, make_split: Callable[..., Path]) -> Callable[..., TrainingImages]:
    """Image n is plain n, its view v plain 100 · v + n, with v from 1."""

    def plain(levels: np.ndarray) -> np.ndarray:
        return np.broadcast_to(levels[:, None, None, None], (len(levels), SIZE, SIZE, 3)).astype(np.uint8)

    prepared = make_split(tmp_path / "train", plain(np.arange(COUNT)), [n % 3 for n in range(COUNT)])

    def make(seed: int = 1, views: int = VIEWS, **more: object) -> TrainingImages:
        augmented = tmp_path / f"augmented-{views}"
        if not augmented.exists():
            augmented.mkdir()
            create_shards(augmented, views * COUNT, SIZE, shard_bytes=7 * SIZE * SIZE * 3)
            for view in range(views):
                Shards(augmented, mode="r+").write(view * COUNT, plain(100 * (view + 1) + np.arange(COUNT)))
            (augmented / "meta.json").write_text(json.dumps({"views": views, "policy": {"hue": 0.01}}))
        return TrainingImages(PackedSplit(prepared), augmented, seed, **more)

    return make


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3, 3]), (5, [5, 5]), (10, [10]), (64, [10]), (1, [1] * 10)])
def test_an_epoch_is_whole_batches_of_different_images(make, batch_size: int, sizes: list[int]):
    images = make()
    order = images.order(0, batch_size)
    assert [len(step.rows) for step in order] == sizes and images.steps(batch_size) == len(sizes)
    rows = np.concatenate([step.rows for step in order])
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(COUNT))


def test_the_order_depends_on_seed_and_epoch_alone(make):
    def order(seed: int, epoch: int) -> list[int]:
        return make(seed).order(epoch, COUNT)[0].rows.tolist()

    assert order(1, 0) == order(1, 0) and order(1, 5) == order(1, 5)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_who_is_left_out_changes(make):
    images = make()
    seen = [np.concatenate([step.rows for step in images.order(epoch, 4)]) for epoch in range(10)]
    assert len({frozenset(range(COUNT)) - set(rows.tolist()) for rows in seen}) > 3


@pytest.mark.parametrize(
    ("epochs", "least", "passes", "found"),
    [(12, 0, 1, 12), (12, 25, 1, 13), (1, 33, 17, 1), (2, 33, 9, 2), (3, 33, 6, 3), (2, 200, 50, 2)],
)
def test_epochs_are_lengthened_to_the_least_number_of_steps_with_few_to_spare(make, epochs, least, passes, found):
    a_pass = make().steps(4)
    assert a_pass == 2
    assert plan_epochs(COUNT, 4, epochs, least) == (found, passes)
    steps = found * make(passes=passes).steps(4)
    assert steps >= least and (steps == epochs * a_pass or steps - least < 2 * max(epochs, a_pass))


def test_an_epoch_of_several_passes_is_as_many_epochs_of_one(make):
    single, several = make(), make(passes=3)
    theirs = [step for epoch in range(3, 6) for step in single.order(epoch, 4)]
    ours = several.order(1, 4)
    assert several.steps(4) == len(ours)
    assert [set(step.turns) for step in ours] == [{3}, {3}, {4}, {4}, {5}, {5}]
    assert all(map(np.array_equal, np.concatenate(ours, axis=1), np.concatenate(theirs, axis=1)))


def test_rare_classes_come_more_often_in_other_versions(make):
    images = make()
    images.split.labels = np.array([0] * 6 + [1] * 3 + [2])
    for balance, expected in ((0.0, [6, 3, 1]), (0.5, [4.77, 3.38, 1.95]), (1.0, [10 / 3] * 3)):
        images.balance = balance
        passes = [images.drawn(number) for number in range(300)]
        assert all(len(rows) == COUNT for rows, _ in passes)
        counts = np.array([np.bincount(images.split.labels[rows], minlength=3) for rows, _ in passes])
        assert np.abs(counts - expected).max() < 1  # in every pass, not only in the mean
        assert counts.mean(0) == pytest.approx(expected, abs=0.1)
        for number, (rows, turns) in enumerate(passes):
            of_rarest = sorted(turns[rows == 9])
            assert of_rarest == [number + copy for copy in range(len(of_rarest))]
    assert all(map(np.array_equal, images.drawn(7), images.drawn(7)))
    frequency = np.bincount(np.concatenate([rows for rows, _ in passes]), minlength=COUNT) / len(passes)
    assert frequency == pytest.approx([10 / 18] * 6 + [10 / 9] * 3 + [10 / 3], abs=0.1)


def test_classes_of_equal_size_are_balanced_already(make):
    even, plain = make(), make()
    for images in (even, plain):
        images.split.labels = np.arange(COUNT) % 2
    even.balance = 0.5
    for number in range(20):
        assert all(map(np.array_equal, even.drawn(number), plain.drawn(number)))


def test_read_gives_the_version_of_the_epoch(make):
    images = make()
    rows = np.array([7, 0, 3, 3, 9])
    for epoch in range(6):
        pixels, labels = images.read(rows, epoch)
        assert pixels.dtype == torch.uint8 and pixels.shape == (5, SIZE, SIZE, 3)
        assert labels.dtype == torch.int64 and labels.tolist() == [row % 3 for row in rows]
        assert pixels[:, 0, 0, 0].tolist() == [row + 100 * ((row + epoch) % 3) for row in rows]
        assert (pixels == pixels[:, :1, :1, :1]).all()


def test_each_image_goes_through_all_its_versions(make):
    images = make()
    seen = [images.read(np.arange(COUNT), epoch)[0][:, 0, 0, 0] // 100 for epoch in range(VIEWS + 1)]
    assert torch.equal(torch.stack(seen).sort(0).values, torch.arange(3, dtype=torch.uint8)[:, None].expand(3, COUNT))


def test_without_views_every_epoch_has_the_images_themselves_to_crop_from(make):
    images = make(views=0, size=SIZE // 2)
    assert images.versions == 1 and images.policy == {"hue": 0.01}
    for epoch in range(3):
        pixels, _ = images.read(np.arange(COUNT), epoch)
        assert pixels.shape == (COUNT, SIZE, SIZE, 3) and pixels[:, 0, 0, 0].tolist() == list(range(COUNT))


def test_views_that_are_missing_or_of_other_images(make, tmp_path: Path):
    make()
    with pytest.raises(PetalsError, match=r"absent: no rendered views .*; run dvc repro augment$"):
        TrainingImages(PackedSplit(tmp_path / "train"), tmp_path / "absent", 1)
    meta = tmp_path / "augmented-2" / "meta.json"
    meta.write_text(json.dumps({"views": 3, "policy": {}}))
    with pytest.raises(PetalsError, match=r"its views are not those of .*train; run dvc repro augment$"):
        make()
    for text in ("", "[]", "{}", '{"views": 1}', '{"views": "2", "policy": {}}'):
        meta.write_text(text)
        with pytest.raises(PetalsError, match="no rendered views"):
            make()


def test_views_of_another_size(make, tmp_path: Path):
    make()
    for path in (tmp_path / "augmented-2").glob("images-*.npy"):
        path.unlink()
    create_shards(tmp_path / "augmented-2", VIEWS * COUNT, SIZE + 1)
    with pytest.raises(PetalsError, match=r"its views are not those of .*train; run dvc repro augment$"):
        make()


def test_images_come_at_the_size_of_training(make):
    data = make(size=2)
    images, _ = data.read(np.array([7, 1]), 0)
    assert images.shape == (2, 2, 2, 3) and images.dtype == torch.uint8
    assert [int(image[0, 0, 0]) for image in images] == [107, 101]


def test_shrinking_is_pillows():
    noise = np.random.default_rng(1).integers(0, 256, (2, 60, 60, 3), np.uint8)
    ours = resized(torch.from_numpy(noise), 48).numpy()
    theirs = np.stack([Image.fromarray(each).resize((48, 48), Image.Resampling.BILINEAR) for each in noise])
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_what_is_read_ahead_is_what_is_read(make):
    data = make()
    order = data.order(2, 4)
    for whole in (False, True):
        ahead = list(data.read_ahead(order, whole))
        assert len(ahead) == len(order)
        for found, step in zip(ahead, order, strict=True):
            assert all(map(torch.equal, found, data.read(*step, whole)))


@pytest.mark.parametrize("views", [0, VIEWS])
def test_images_that_moved_to_the_device_are_the_same(make, views: int):
    mapped, moved = make(views=views, size=SIZE // 2), make(views=views, size=SIZE // 2)
    size = (1 + views) * COUNT * SIZE * SIZE * 3
    assert not mapped.move_to(torch.device("cpu"), size - 1)
    assert moved.move_to(torch.device("cpu"), size)
    rows = np.array([7, 0, 3, 3, 9])
    for epoch in range(4):
        assert all(map(torch.equal, mapped.read(rows, epoch), moved.read(rows, epoch)))


@pytest.mark.parametrize("size", [31, 47, 64])
def test_a_gpu_shrinks_as_a_processor_does(size: int):
    images = torch.randint(0, 256, (3, 96, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    floats = _in_floats(images.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    assert (floats.int() - resized(images, size).int()).abs().max() <= 1


@pytest.mark.parametrize("resident", [False, True])
def test_whole_images_come_at_their_full_size_and_not_in_views(make, resident: bool):
    images = make(size=SIZE // 2)
    assert images.move_to(torch.device("cpu"), 2**20 if resident else 0) == resident
    for turn in range(VIEWS + 1):
        pixels, labels = images.read(np.arange(COUNT), turn, whole=True)
        assert pixels.shape == (COUNT, SIZE, SIZE, 3) and pixels[:, 0, 0, 0].tolist() == list(range(COUNT))
        assert labels.tolist() == [n % 3 for n in range(COUNT)]
    assert images.read(np.arange(COUNT), 1)[0].shape == (COUNT, SIZE // 2, SIZE // 2, 3)


def test_another_seed_draws_others_of_the_common_classes(make):
    one, two = make(1), make(2)
    for images in (one, two):
        images.split.labels, images.balance = np.array([0] * 6 + [1] * 3 + [2]), 1.0
    assert any(sorted(one.drawn(number)[0]) != sorted(two.drawn(number)[0]) for number in range(9))


def test_a_gpu_shrinks_neither_darker_nor_lighter():
    images = torch.randint(0, 256, (3, 96, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    floats = _in_floats(images.permute(0, 3, 1, 2), 47).permute(0, 2, 3, 1)
    assert (floats.float() - resized(images, 47).float()).mean().abs() < 0.1
