"""The images of an epoch: which, in what order, and in which of their versions."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from petals.errors import PetalsError
from petals.packed import PackedSplit, Shards
from petals.seeding import seed_for


class TrainingImages:
    """The training split with its rendered views: version 0 of an image is itself, version v its view v − 1."""

    def __init__(self, prepared: str | Path, augmented: str | Path, seed: int) -> None:
        self.split = PackedSplit(prepared)
        self.seed = seed
        self.size = self.split.image_size
        try:
            meta = json.loads((Path(augmented) / "meta.json").read_text(encoding="utf-8"))
            self.policy: dict[str, float] = meta["policy"]
            self.versions = 1 + meta["views"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise PetalsError(f"{augmented}: no rendered views ({error}); run dvc repro augment") from None
        self.views = Shards(augmented)
        if len(self.views) != meta["views"] * len(self.split):
            raise PetalsError(f"{augmented}: its views are not those of {prepared}; run dvc repro augment")

    def order(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        """The rows of each step of `epoch`; the incomplete batch at its end is left for another order."""
        rows = np.random.default_rng(seed_for(self.seed, "order", epoch)).permutation(len(self.split))
        steps = max(1, len(rows) // batch_size)
        return [rows[step * batch_size : (step + 1) * batch_size] for step in range(steps)]

    def read(self, rows: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Images (uint8, N × `size` × `size` × 3) and labels (int64, N).

        Each image goes through its versions by epochs.
        """
        version = (rows + epoch) % self.versions
        images = np.empty((len(rows), self.split.image_size, self.split.image_size, 3), np.uint8)
        plain = version == 0
        images[plain] = self.split.images.read(rows[plain])
        if not plain.all():
            images[~plain] = self.views.read((version[~plain] - 1) * len(self.split) + rows[~plain])
        return resized(torch.from_numpy(images), self.size), torch.from_numpy(self.split.labels[rows])


def resized(images: Tensor, size: int) -> Tensor:
    """Shrink uint8 N × H × W × 3 to `size` × `size`, antialiased, by bilinear interpolation."""
    if images.shape[1] == size:
        return images
    planes = F.interpolate(images.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous()
