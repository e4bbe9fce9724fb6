"""The images of an epoch: which, in what order, and in which of their versions."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from petals.errors import PetalsError
from petals.packed import PackedSplit, Shards
from petals.parallel import in_threads
from petals.seeding import seed_for


class Step(NamedTuple):
    """The `rows` of some images, and for each its turn, which decides in which of its versions it comes (both int)."""

    rows: np.ndarray
    turns: np.ndarray


class TrainingImages:
    """The training split with its rendered views: version 0 of an image is itself, version v its view v − 1."""

    def __init__(self, prepared: str | Path, augmented: str | Path, seed: int, balance: float = 0.0) -> None:
        self.split = PackedSplit(prepared)
        self.seed, self.balance = seed, balance
        self.size = self.split.image_size
        self.whole = False  # read images as they are, none of their views, at their full size
        self.passes = 1  # over the images in an epoch
        try:
            meta = json.loads((Path(augmented) / "meta.json").read_text(encoding="utf-8"))
            self.policy: dict[str, float] = meta["policy"]
            self.versions = 1 + meta["views"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise PetalsError(f"{augmented}: no rendered views ({error}); run dvc repro augment") from None
        self.device = torch.device("cpu")
        self.resident: Tensor | None = None
        self.images = Shards(prepared, augmented)  # version by version
        sizes = {each.shape[1:] for each in self.images.arrays}
        if len(self.images) != self.versions * len(self.split) or len(sizes) > 1:
            raise PetalsError(f"{augmented}: its views are not those of {prepared}; run dvc repro augment")

    def steps(self, batch_size: int) -> int:
        """The number of steps of an epoch."""
        return self.passes * max(1, len(self.split) // batch_size)

    def lengthen_epochs(self, epochs: int, batch_size: int, least: int) -> int:
        """Set `passes` so that `epochs` have the `least` number of steps together, with few to spare.

        Of few images an epoch is several passes, as are the warm-up and the time between two looks at validation. Gives
        the number of epochs: a few more, where that needs fewer steps than another pass in each.
        """
        steps = max(1, len(self.split) // batch_size)  # of one pass
        fewest = max(1, least // (epochs * steps))
        lengths = [(passes, max(epochs, math.ceil(least / (passes * steps)))) for passes in (fewest, fewest + 1)]
        self.passes, epochs = min(lengths, key=math.prod)
        return epochs

    def order(self, epoch: int, batch_size: int) -> list[Step]:
        """The steps of `epoch`; the incomplete batch at the end of a pass is left for another order."""
        steps = []
        for number in range(epoch * self.passes, (epoch + 1) * self.passes):
            rows, turns = self.drawn(number)
            for start in range(0, max(1, len(rows) // batch_size) * batch_size, batch_size):
                steps.append(Step(rows[start : start + batch_size], turns[start : start + batch_size]))
        return steps

    def drawn(self, number: int) -> Step:
        """Pass `number`: each image once; with `balance`, those of rare classes more often and others not every time.

        An image of a class of n comes in proportion to 1 / n ** `balance`: 1 makes all classes equally frequent, 0.5 is
        the square root of Mahajan et al. ("Exploring the limits of weakly supervised pretraining", 2018). They are
        drawn at even distances (systematic resampling), and what comes twice in a pass comes in two of its versions.
        """
        labels = self.split.labels
        share = np.bincount(labels)[labels] ** -self.balance
        edges = np.cumsum(share) * (len(labels) / share.sum())
        places = np.arange(len(labels))
        offset = np.random.default_rng(seed_for(self.seed, "balance", number)).random()
        rows = np.minimum(np.searchsorted(edges, places + offset), len(labels) - 1)
        turns = number + places - np.searchsorted(rows, rows)
        order = np.random.default_rng(seed_for(self.seed, "order", number)).permutation(len(labels))
        return Step(rows[order], turns[order])

    def read(self, rows: np.ndarray, turns: np.ndarray | int) -> tuple[Tensor, Tensor]:
        """Images (uint8, N × `size` × `size` × 3) and labels (int64, N), on the device that `give_to` named.

        Each image goes through its versions by `turns`, or comes `whole`.
        """
        version, size = (0, self.split.image_size) if self.whole else ((rows + turns) % self.versions, self.size)
        at = version * len(self.split) + rows
        labels = torch.from_numpy(self.split.labels[rows]).to(self.device)
        if self.resident is not None:
            return resized(self.resident[torch.from_numpy(at).to(self.device)], size), labels
        pixels = torch.from_numpy(self.images.read(at))
        if self.device.type == "cuda":  # which shrinks them, and the same way wherever they were
            pixels = pixels.to(self.device)
        return resized(pixels, size).to(self.device), labels

    def read_ahead(self, steps: Sequence[Step]) -> Iterator[tuple[Tensor, Tensor]]:
        """What `read` gives of each of `steps`; a thread reads the next ones meanwhile."""
        return in_threads(lambda step: self.read(*step), steps, workers=1)

    def give_to(self, device: torch.device, room: int) -> bool:
        """Let `read` give its tensors on `device`; all images move there now where they take no more than `room` bytes.

        Says whether they did. What `read` gives does not depend on it.
        """
        self.device = device
        shards = self.images.arrays
        if sum(each.nbytes for each in shards) > room:
            return False
        self.resident = torch.empty((len(self.images), *shards[0].shape[1:]), dtype=torch.uint8, device=device)
        start = 0
        for each in shards:
            self.resident[start : start + len(each)] = torch.from_numpy(np.array(each))
            start += len(each)
        return True


def resized(images: Tensor, size: int) -> Tensor:
    """Shrink uint8 N × H × W × 3 to `size` × `size`, antialiased, by bilinear interpolation.

    A processor does it in integers; a GPU, for which torch has no such kernel, in floats, which differ by a level.
    """
    if images.shape[1] == size:
        return images
    planes = images.permute(0, 3, 1, 2)
    shrunk = _in_floats(planes, size) if images.is_cuda else _antialiased(planes, size)
    return shrunk.permute(0, 2, 3, 1).contiguous()


def _in_floats(planes: Tensor, size: int) -> Tensor:
    return _antialiased(planes.float(), size).round_().clamp_(0, 255).to(torch.uint8)


def _antialiased(planes: Tensor, size: int) -> Tensor:
    return F.interpolate(planes, (size, size), mode="bilinear", antialias=True)
