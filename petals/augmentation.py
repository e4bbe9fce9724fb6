"""Kornia's part: views rendered ahead of training, and the cheap operations of every step."""

from collections.abc import Mapping, Sequence

import kornia.augmentation as K
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from petals.draws import SOURCES, DrawsOfWholeBatch
from petals.errors import PetalsError
from petals.operations import CutMix, DrawnOnly, HorizontalFlip, MixUp, RandomErasing, RandomHue, RandomResizedCrop
from petals.seeding import seed_for

DRAWS_PER_VIEW = 64
POLICY_KNOBS = ("crop_min", "rotation", "brightness", "contrast", "saturation", "hue", "blur")


def view_policy(knobs: Mapping[str, float], image_size: int) -> nn.Sequential:
    """Build the policy of a view from the knobs named in POLICY_KNOBS: a crop, a turn, a change of light, a blur.

    Each operation stands alone: Kornia's ColorJitter shuffles the order of its four once a batch, which would let
    the images of a batch decide each other's views. Takes and gives float32 N × 3 × H × W in 0…1.
    """
    operations: list[nn.Module] = []
    if knobs["crop_min"] < 1:
        size = (image_size, image_size)
        operations.append(RandomResizedCrop(size, scale=(knobs["crop_min"], 1.0), p=1.0))
    if knobs["rotation"]:
        operations.append(K.RandomAffine(knobs["rotation"], p=1.0, padding_mode="reflection"))
    for knob, operation in (
        ("brightness", K.RandomBrightness),
        ("contrast", K.RandomContrast),
        ("saturation", K.RandomSaturation),
    ):
        if knobs[knob]:
            operations.append(operation((1.0 - knobs[knob], 1.0 + knobs[knob]), p=1.0))
    if knobs["hue"]:
        operations.append(RandomHue((-knobs["hue"], knobs["hue"]), p=1.0))
    if knobs["blur"]:
        operations.append(DrawnOnly(K.RandomGaussianBlur((5, 5), (0.1, 1.5), p=knobs["blur"])))
    return nn.Sequential(*operations)


def online_policy(knobs: Mapping[str, float], image_size: int, size: int) -> nn.Sequential:
    """The policy of a view that is drawn in training: at `image_size` as well, and then shrunk to `size`."""
    return nn.Sequential(view_policy(knobs, image_size), Shrink(size))


class Shrink(nn.Module):
    """Resize float32 N × 3 × H × W to `size` × `size`, antialiased, by bilinear interpolation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size, size

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] == self.size:
            return images
        return nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)


class DrawsPerImage(TorchFunctionMode):
    """While active, a batch of N images draws from N streams of random numbers, one an image.

    Kornia asks `torch.rand` for N, or N × K, numbers; each call takes the next columns of `table` (float32,
    N × draws).
    So a view is the same whatever stands beside it in the batch. Any other source of chance is refused.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.used = table, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.rand:
            shape = torch.Size(args[0] if isinstance(args[0], Sequence) else args)
            count = shape[1:].numel()
            columns = self.table[:, self.used : self.used + count]
            self.used += count
            return columns.reshape(shape)  # raises where it is not N × count
        if func in SOURCES:
            raise RuntimeError(f"a policy drew from {func.__name__}, which knows nothing of single images")
        return func(*args, **(kwargs or {}))


def render_views(images: np.ndarray, ids: Sequence[str], view: int, seed: int, policy: nn.Sequential) -> np.ndarray:
    """Draw one view of each image; uint8 N × H × W × 3 in and out.

    The random numbers of a view depend on (seed, id, view) alone. Raises PetalsError where an operation draws others.
    """
    keys = (seed_for(seed, "view", each, view) for each in ids)
    table = np.stack([np.random.Generator(np.random.Philox(key)).random(DRAWS_PER_VIEW, np.float32) for key in keys])
    views, drawing = to_floats(torch.from_numpy(images)), DrawsPerImage(torch.from_numpy(table))
    for operation in policy:
        try:
            with drawing:  # and not while it computes, each call of which would be looked at too
                params = operation.forward_parameters(views.shape)
        except RuntimeError as error:
            name = type(operation).__name__
            raise PetalsError(f"{name} draws otherwise than by torch.rand for each image: {error}") from None
        views = operation(views, params=params)
    return to_bytes(views)


def to_floats(images: Tensor) -> Tensor:
    """Turn uint8 N × H × W × 3 into float32 N × 3 × H × W in 0…1, channels last in memory."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def to_bytes(images: Tensor) -> np.ndarray:
    """Turn float32 N × 3 × H × W in 0…1 into uint8 N × H × W × 3, rounded and clipped."""
    levels = (images * 255).round_().clamp_(0, 255)
    pixels = torch.empty_like(levels.permute(0, 2, 3, 1), dtype=torch.uint8, memory_format=torch.contiguous_format)
    for channel, plane in enumerate(levels.unbind(1)):  # in two thirds of the time of a conversion and a copy
        pixels[..., channel] = plane
    return pixels.numpy()


class BatchAugmentation:
    """What happens to each batch of training: the policy (where views are not rendered), flip, erasing, mixing.

    `flip` and `erasing` are chances of an image, `mixup` and `cutmix` of a batch, together 1 at most. The random
    numbers are torch's own; seed them by (seed, step) before each call.
    """

    def __init__(
        self,
        classes: int,
        flip: float,
        erasing: float,
        mixup: float,
        cutmix: float,
        policy: nn.Module | None = None,
    ) -> None:
        self.classes = classes
        steps = [policy] if policy else []
        if flip:
            steps.append(HorizontalFlip(flip))
        if erasing:
            steps.append(RandomErasing((0.02, 0.2), erasing))
        self.image_steps = nn.Sequential(*steps)
        self.mixup_share, self.cutmix_share = mixup, cutmix
        keys = ["input", "class"]
        self.mixup = MixUp(data_keys=keys)
        self.cutmix = CutMix(data_keys=keys, use_correct_lambda=True)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take float32 N × 3 × H × W in 0…1 and int64 N; give images and targets (float32, N × classes).

        The images may be changed in place.
        """
        images = self.image_steps(images)
        mix = self.draw_mix()
        if not mix:
            return images, self.one_hot(labels)
        images, mixed = mix(images, labels)
        return images, self.targets(mix, mixed)

    def of_rows(self, rows: slice, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a call gives of `rows` of the batch, from uint8 N × H × W × 3, for the work of these rows alone.

        The random numbers are drawn for all N, and a mixed image has its partner prepared as well.
        """
        count, (start, stop, _) = len(images), rows.indices(len(images))
        if stop - start == count:
            return self(to_floats(images), labels)
        own, before = torch.arange(start, stop), torch.get_rng_state()
        ours = self.prepared(images, own)
        mix = self.draw_mix()
        if not mix:
            return ours, self.one_hot(labels[own])

        drawn = mix.forward_parameters(torch.Size((count, *ours.shape[1:])))
        pairs = drawn["mixup_pairs"] if mix is self.mixup else drawn["mix_pairs"][0]
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        theirs = self.prepared(images, pairs[own])
        torch.set_rng_state(after)
        # As one batch in which image n is mixed with its partner n places on.
        swapped = torch.arange(2 * len(own)).roll(len(own))
        drawn["batch_prob"] = drawn["batch_prob"][own].repeat(2)
        if mix is self.mixup:
            drawn |= {"mixup_pairs": swapped, "mixup_lambdas": drawn["mixup_lambdas"][own].repeat(2)}
        else:
            drawn |= {"mix_pairs": swapped[None], "crop_src": drawn["crop_src"][:, own].repeat(1, 2, 1, 1)}
        both, mixed = mix(torch.cat([ours, theirs]), labels[torch.cat([own, pairs[own]])], params=drawn)
        return both[: len(own)], self.targets(mix, mixed)[: len(own)]

    def prepared(self, images: Tensor, rows: Tensor) -> Tensor:
        """The images at `rows` after flip, erasing and policy, drawn as for the whole batch."""
        with DrawsOfWholeBatch(rows, len(images)):
            return self.image_steps(to_floats(images[rows]))

    def draw_mix(self) -> nn.Module | None:
        chance = float(torch.rand(()))
        if chance < self.mixup_share:
            return self.mixup
        return self.cutmix if chance < self.mixup_share + self.cutmix_share else None

    def targets(self, mix: nn.Module, mixed: Tensor) -> Tensor:
        if mix is self.cutmix:
            mixed = mixed[0]
            mixed[:, 2] = 1 - mixed[:, 2]  # Kornia's mixup gives the other's share, its cutmix one's own
        own, other, share = self.one_hot(mixed[:, 0].long()), self.one_hot(mixed[:, 1].long()), mixed[:, 2:]
        return (1 - share) * own + share * other

    def one_hot(self, labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, self.classes).float()
