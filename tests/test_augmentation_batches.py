"""What happens to each batch of training: flips, erasing, mixing, and labels that say what was done."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from conftest import ORIGINAL
from PIL import Image
from torch import nn

from petals.augmentation import BatchAugmentation, online_policy, to_bytes, to_floats, view_policy

KNOBS = yaml.safe_load(ORIGINAL) | {"crop_min": 0.5, "blur": 0.5}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def plain_images() -> torch.Tensor:
    """Image n is n / 8 all over, so that every pixel says where it came from."""
    return (torch.arange(8) / 8).view(8, 1, 1, 1).expand(8, 3, 20, 20).clone()


def augmented(seed: int, images: torch.Tensor, **shares: float) -> tuple[torch.Tensor, torch.Tensor]:
    augment = BatchAugmentation(5, **{**dict(flip=0, erasing=0, mixup=0, cutmix=0), **shares})
    torch.manual_seed(seed)
    return augment(images.clone(), LABELS)


def test_with_all_shares_zero_nothing_happens():
    images, targets = augmented(1, plain_images())
    assert torch.equal(images, plain_images())
    assert torch.equal(targets, nn.functional.one_hot(LABELS, 5).float()) and targets.dtype == torch.float32


def test_flips_are_left_to_right_by_image():
    before = torch.rand(8, 3, 20, 20)
    flipped, kept = 0, 0
    for seed in range(5):
        for image, original in zip(augmented(seed, before, flip=0.5)[0], before, strict=True):
            flipped += torch.equal(image, original.flip(-1))
            kept += torch.equal(image, original)
    assert flipped + kept == 40 and flipped > 8 < kept
    assert torch.equal(augmented(1, before, flip=1)[0], before.flip(-1))


def test_erasing_blanks_a_rectangle():
    images, targets = augmented(1, torch.ones(8, 3, 20, 20), erasing=1)
    for image in images:
        rows, columns = torch.nonzero(image[0] == 0, as_tuple=True)
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert area == len(rows) and 0.01 < len(rows) / 400 < 0.25
    assert torch.equal(targets.argmax(1), LABELS)


def test_erasing_takes_its_share_of_the_images():
    batches = [augmented(seed, torch.ones(8, 3, 20, 20), erasing=0.25)[0] for seed in range(25)]
    erased = sum(int((batch == 0).flatten(1).any(1).sum()) for batch in batches)
    assert 25 < erased < 75  # of 200


def test_mixup_mixes_the_labels_as_it_mixes_the_pixels():
    """Of image n column n is white, all else black: a mixed image says who is in it, and how much."""
    before = torch.zeros(8, 3, 20, 20)
    before[torch.arange(8), :, :, torch.arange(8)] = 1
    for seed in range(10):
        images, targets = augmented(seed, before, mixup=1)
        share = images[:, 0, 0, :8]  # image × image: how much of each
        assert torch.allclose(share.sum(1), torch.ones(8))
        assert torch.allclose(targets, share @ nn.functional.one_hot(LABELS, 5).float(), atol=1e-6)
        assert torch.allclose(targets.sum(1), torch.ones(8))
    assert (share.diagonal() < 1).any()


def test_cutmix_weighs_the_labels_by_area():
    mixed = 0
    for seed in range(10):
        images, targets = augmented(seed, plain_images(), cutmix=1)
        share = torch.stack([(images[:, 0] == n / 8).float().mean((1, 2)) for n in range(8)], 1)
        assert torch.allclose(share.sum(1), torch.ones(8))  # every pixel is of one of the images
        assert ((share > 0).sum(1) <= 2).all()
        assert torch.allclose(targets, share @ nn.functional.one_hot(LABELS, 5).float(), atol=1e-6)
        mixed += int((share.diagonal() < 1).sum())
    assert mixed > 20


def test_a_batch_is_mixed_as_often_as_its_share_says_and_the_seed_decides():
    kinds = []
    for seed in range(200):
        images, targets = augmented(seed, plain_images(), mixup=0.25, cutmix=0.25)
        again, _ = augmented(seed, plain_images(), mixup=0.25, cutmix=0.25)
        assert torch.equal(images, again)
        whole = torch.equal(images, plain_images())
        kinds.append("none" if whole else "mixup" if (images.flatten(1).std(1) < 1e-6).all() else "cutmix")
        assert torch.allclose(targets.sum(1), torch.ones(8))
    assert 75 < kinds.count("none") < 125
    assert 30 < kinds.count("mixup") < 70 and 30 < kinds.count("cutmix") < 70


def test_a_policy_that_is_not_rendered_is_applied_to_each_batch():
    augment = BatchAugmentation(5, 0, 0, 0, 0, policy=view_policy(KNOBS, 20))
    torch.manual_seed(1)
    images, _ = augment(plain_images(), LABELS)
    assert images.shape == (8, 3, 20, 20) and not torch.equal(images, plain_images())


def test_a_view_drawn_in_training_is_a_rendered_one_shrunk():
    images = torch.rand(6, 3, 20, 20)
    torch.manual_seed(1)
    found = online_policy(KNOBS, 20, 14)(images.clone())
    torch.manual_seed(1)
    rendered = to_bytes(view_policy(KNOBS, 20)(images.clone()))
    shrunk = [Image.fromarray(each).resize((14, 14), Image.Resampling.BILINEAR) for each in rendered]
    assert np.abs(to_bytes(found).astype(int) - np.stack(shrunk)).max() <= 1
    assert online_policy(KNOBS, 20, 20)(images).shape == images.shape


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {"flip": 0.5, "erasing": 0.5},
        {"flip": 0.5, "mixup": 1},
        {"erasing": 0.5, "cutmix": 1},
        {"flip": 0.5, "erasing": 0.3, "mixup": 0.5, "cutmix": 0.5, "policy": online_policy(KNOBS, 20, 14)},
    ],
)
def test_parts_of_a_batch_are_what_the_whole_gives_of_them(shares: dict):
    images = torch.randint(0, 256, (8, 20, 20, 3), dtype=torch.uint8)
    augment = BatchAugmentation(5, **{**dict(flip=0, erasing=0, mixup=0, cutmix=0), **shares})
    for seed in range(3):
        torch.manual_seed(seed)
        whole, targets = augment(to_floats(images), LABELS)
        for bounds in ((0, 8), (0, 3, 8), (0, 1, 5, 8)):
            for start, stop in pairwise(bounds):
                torch.manual_seed(seed)
                part, told = augment.of_rows(slice(start, stop), images, LABELS)
                assert torch.allclose(part, whole[start:stop], atol=1e-6)
                assert torch.allclose(told, targets[start:stop], atol=1e-6)
                after = torch.rand(1)
                torch.manual_seed(seed)
                augment(to_floats(images), LABELS)
                assert torch.equal(torch.rand(1), after), "what is drawn next is the same too"
