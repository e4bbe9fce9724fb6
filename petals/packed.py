"""Packed splits: decoded images in a few large arrays that later stages map into memory.

A split is a folder of `images-NNNNN.npy` (uint8, N × H × W × 3, about 64 MiB each), `labels.npy` (int64, −1 where
there is none), `ids.json` and `meta.json`.
"""

import errno
import io
import json
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from petals.errors import PetalsError
from petals.files import replacing, write_text
from petals.tables import write_json

SHARD_BYTES = 64 * 2**20
PIXELS_AT_ONCE = 16 * 224**2
OPEN_FILES = 10_240  # each map keeps its file open, and a system allows 256 or 1,024 unless it is asked for more


class Shards:
    """The images of folders, one after the other, as one array of N × H × W × 3 that is never in memory as a whole."""

    def __init__(self, *folders: str | Path, mode: str = "r") -> None:
        self.arrays: list[np.memmap] = []
        allow_open_files()
        for folder in folders:
            try:
                self.arrays += [np.load(path, mmap_mode=mode) for path in sorted(Path(folder).glob("images-*.npy"))]
            except (OSError, EOFError, ValueError) as error:
                if isinstance(error, OSError) and error.errno == errno.EMFILE:
                    raise PetalsError(f"{folder}: more files than a process may open; raise ulimit -n") from None
                raise PetalsError(f"{folder}: damaged images ({error}); run dvc repro, or dvc pull") from None
        self.starts = np.cumsum([0, *(len(array) for array in self.arrays)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Copy the images at `rows` (any order, any number) to a new uint8 array."""
        rows = np.asarray(rows, dtype=np.int64)
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        images = np.empty((len(rows), *self.arrays[0].shape[1:]), np.uint8)
        for place, (shard, row) in enumerate(zip(shard_of, rows - self.starts[shard_of], strict=True)):
            images[place] = self.arrays[shard][row]
        return images

    def write(self, start: int, images: np.ndarray) -> None:
        """Put `images` at the rows from `start` on; needs mode "r+".

        Through the file and not its map, in which each new page is a fault: five times as fast.
        """
        while len(images):
            shard = int(np.searchsorted(self.starts, start, side="right")) - 1
            within, array = start - int(self.starts[shard]), self.arrays[shard]
            room = min(len(images), len(array) - within)
            with open(array.filename, "r+b") as file:
                file.seek(array.offset + within * array[0].nbytes)
                file.write(np.ascontiguousarray(images[:room], array.dtype))
            start, images = start + room, images[room:]


def allow_open_files() -> None:
    """Let this process have `OPEN_FILES` files open, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def create_shards(folder: Path, count: int, image_size: int, shard_bytes: int = SHARD_BYTES) -> None:
    """Lay out the files for `count` images, all zero, without holding them in memory."""
    rows = max(1, shard_bytes // (image_size * image_size * 3))
    for number, start in enumerate(range(0, count, rows)):
        shape = (min(rows, count - start), image_size, image_size, 3)
        path = folder / f"images-{number:05d}.npy"
        open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, and not a crash at some later write
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class PackedSplit:
    """One split on disk: `images` (Shards), `labels` (int64), `ids`, `classes`, `image_size`.

    `final` says of train that it holds the images of val too. `at_once` is the number of images to compute together on
    a processor: it is hardly faster with more, or slower, and their memory grows with them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            self.ids: list[str] = json.loads((self.folder / "ids.json").read_text(encoding="utf-8"))
            self.labels = np.load(self.folder / "labels.npy")
            self.classes: list[str] = meta["classes"]
            self.image_size: int = meta["image_size"]
            self.count: int = meta["count"]
            self.final: bool = meta.get("final", False)
            self.at_once = max(1, PIXELS_AT_ONCE // self.image_size**2)
        except FileNotFoundError as error:
            raise PetalsError(f"{error.filename}: not found; run dvc repro prepare, or dvc pull") from None
        except (EOFError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise PetalsError(f"{self.folder}: not a packed split ({error}); run dvc repro prepare") from None
        self.images = Shards(folder)
        if not self.count == len(self.images) == len(self.labels) == len(self.ids):
            raise PetalsError(f"{self.folder}: its files disagree on the number of images; run dvc repro prepare")

    def __len__(self) -> int:
        return self.count

    def check(self, model: str | Path, classes: Sequence[str], image_size: int) -> None:
        """Raise PetalsError where a model of these `classes` and this `image_size` was not made for this split."""
        if list(classes) != self.classes:
            raise PetalsError(f"{model}: its classes are not those of {self.folder}; run dvc repro train")
        if image_size != self.image_size:
            raise PetalsError(
                f"{model}: made for {image_size} px, {self.folder} is {self.image_size}; run dvc repro train"
            )

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[np.ndarray]:
        """The images in order, `size` at a time, as uint8 N × H × W × 3; of these batches `first` and `every` next."""
        for start in range(first * size, self.count, every * size):
            yield self.images.read(np.arange(start, min(start + size, self.count)))


def write_labels(folder: Path, labels: Sequence[int], ids: Sequence[str], **meta: object) -> None:
    """Write what stands beside the images of a split: `labels.npy`, `ids.json`, `meta.json`.

    `meta` must hold `classes` and `image_size`; `count` is added.
    """
    save_array(folder / "labels.npy", np.asarray(labels, np.int64))
    write_text(folder / "ids.json", json.dumps(list(ids), ensure_ascii=False, indent=0) + "\n")
    write_json(folder / "meta.json", {**meta, "count": len(ids)})


def save_array(path: Path, array: np.ndarray) -> None:
    """As np.save; but a full disk is an OSError that says so."""
    content = io.BytesIO()
    np.save(content, array)
    path.write_bytes(content.getvalue())


def move_rows(folder: Path, rows: np.ndarray, other: Path) -> None:
    """Rewrite two splits in place: the images at `rows` of the one become those of `other`, which loses its own."""
    split = PackedSplit(folder)
    rewrite(other, [(split, rows)])
    rewrite(folder, [(split, np.setdiff1d(np.arange(len(split)), rows))])


def rewrite(folder: Path, parts: Sequence[tuple[PackedSplit, np.ndarray]], **more: object) -> None:
    """Put the images at the rows of each of `parts` in the place of what `folder` holds, never all in memory.

    The rest of its meta.json stays, but for `more`.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    with replacing(folder / "kept") as kept:
        kept.mkdir()
        create_shards(kept, sum(len(rows) for _, rows in parts), parts[0][0].image_size)
        shards, place = Shards(kept, mode="r+"), 0
        for split, rows in parts:
            for start in range(0, len(rows), 256):
                images = split.images.read(rows[start : start + 256])
                shards.write(place, images)
                place += len(images)
        labels = np.concatenate([split.labels[rows] for split, rows in parts])
        write_labels(kept, labels, [split.ids[row] for split, rows in parts for row in rows], **meta | more)
    for path in folder.glob("images-*.npy"):
        path.unlink()
    for path in (folder / "kept").iterdir():
        path.replace(folder / path.name)
    (folder / "kept").rmdir()
