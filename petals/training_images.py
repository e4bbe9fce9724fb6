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

    def __init__(
        self,
        split: PackedSplit,
        augmented: str | Path,
        seed: int,
        balance: float = 0.0,
        size: int | None = None,
        passes: int = 1,
    ) -> None:
        """Read `split` and its views in `augmented`, at `size` px or as large as they are; `passes` make an epoch.

        Raises PetalsError where the views are missing, or those of other images.
        """
        self.split, self.seed, self.balance, self.passes = split, seed, balance, passes
        self.size = size or split.image_size
        try:
            meta = json.loads((Path(augmented) / "meta.json").read_text(encoding="utf-8"))
            self.policy: dict[str, float] = meta["policy"]
            self.versions = 1 + meta["views"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise PetalsError(f"{augmented}: no rendered views ({error}); run dvc repro augment") from None
        self.device = torch.device("cpu")
        self.resident: Tensor | None = None
        self.images = Shards(split.folder, augmented)  # version by version
        sizes = {each.shape[1:] for each in self.images.arrays}
        if len(self.images) != self.versions * len(split) or len(sizes) > 1:
            raise PetalsError(f"{augmented}: its views are not those of {split.folder}; run dvc repro augment")

    def steps(self, batch_size: int) -> int:
        """The number of steps of an epoch."""
        return self.passes * steps_of_a_pass(len(self.split), batch_size)

    def order(self, epoch: int, batch_size: int) -> list[Step]:
        """The steps of `epoch`; the incomplete batch at the end of a pass is left for another order."""
        steps = []
        for number in range(epoch * self.passes, (epoch + 1) * self.passes):
            rows, turns = self.drawn(number)
            for start in range(0, steps_of_a_pass(len(rows), batch_size) * batch_size, batch_size):
                steps.append(Step(rows[start : start + batch_size], turns[start : start + batch_size]))
        return steps

    def drawn(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows and turns of pass `number` (int, N each), in their order: each image once.

        With `balance`, images of rare classes come more often and others not every time: one of a class of n in
        proportion to 1 / n ** `balance`. 1 makes all classes equally frequent, 0.5 is the square root of Mahajan et al.
        ("Exploring the limits of weakly supervised pretraining", 2018). They are drawn at even distances (systematic
        resampling), and what comes twice in a pass comes in two of its versions.
        """
        labels = self.split.labels
        share = np.bincount(labels)[labels] ** -self.balance
        edges = np.cumsum(share) * (len(labels) / share.sum())
        places = np.arange(len(labels))
        offset = np.random.default_rng(seed_for(self.seed, "balance", number)).random()
        rows = np.minimum(np.searchsorted(edges, places + offset), len(labels) - 1)
        turns = number + places - np.searchsorted(rows, rows)
        order = np.random.default_rng(seed_for(self.seed, "order", number)).permutation(len(labels))
        return rows[order], turns[order]

    def read(self, rows: np.ndarray, turns: np.ndarray | int, whole: bool = False) -> tuple[Tensor, Tensor]:
        """Images (uint8, N × S × S × 3) and labels (int64, N), on the device that `move_to` named.

        Each image goes through its versions by `turns`, at S = `size`; or comes `whole`: as it is, at full size. So
        large they come too where no views are rendered, for crops to be taken of all that there is to see.
        """
        version = 0 if whole else (rows + turns) % self.versions
        size = self.split.image_size if whole or self.versions == 1 else self.size
        at = version * len(self.split) + rows
        labels = torch.from_numpy(self.split.labels[rows]).to(self.device)
        if self.resident is not None:
            return resized(self.resident[torch.from_numpy(at).to(self.device)], size), labels
        pixels = torch.from_numpy(self.images.read(at))
        if self.device.type == "cuda":  # which shrinks them, and the same way wherever they were
            pixels = pixels.to(self.device)
        return resized(pixels, size).to(self.device), labels

    def read_ahead(self, steps: Sequence[Step], whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """What `read` gives of each of `steps`; a thread reads the next ones meanwhile."""
        return in_threads(lambda step: self.read(*step, whole), steps, workers=1)

    def move_to(self, device: torch.device, room: int) -> bool:
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


def plan_epochs(images: int, batch_size: int, epochs: int, least: int) -> tuple[int, int]:
    """How many epochs, and passes over the images in each, make the `least` number of steps, with few to spare.

    Of few images an epoch is several passes, as are the warm-up and the time between two looks at validation. There are
    a few more than `epochs` where that needs fewer steps than another pass in each.
    """
    steps = steps_of_a_pass(images, batch_size)
    fewest = max(1, least // (epochs * steps))
    plans = [(max(epochs, math.ceil(least / (passes * steps))), passes) for passes in (fewest, fewest + 1)]
    return min(plans, key=math.prod)


def steps_of_a_pass(images: int, batch_size: int) -> int:
    return max(1, images // batch_size)


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
