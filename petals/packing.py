"""From raw records to a packed split: checked, decoded, squared and written by all cores at once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petals.duplicates import thumbnail
from petals.images import decode, square
from petals.packed import Shards, create_shards, write_labels
from petals.parallel import in_order
from petals.rawdata import Dataset, Source


@dataclass(frozen=True)
class Job:
    """One source of a split and the rows that its images go to."""

    source: Source
    folder: Path
    start: int
    image_size: int


@dataclass(frozen=True)
class Packed:
    """What is known of the images of a split, in their order."""

    ids: list[str]
    places: list[str]
    labels: np.ndarray
    thumbnails: np.ndarray


def pack(
    dataset: Dataset,
    split: str,
    folder: Path,
    image_size: int,
    workers: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Packed:
    """Write `split` of `dataset` to `folder`; raises PetalsError at the first record that is at fault.

    The bytes are the same for any number of workers: each source knows the rows it fills.
    """
    sources = dataset.splits[split]
    starts = np.cumsum([0, *(source.count for source in sources)])
    folder.mkdir(parents=True)
    create_shards(folder, int(starts[-1]), image_size)
    jobs = [Job(source, folder, int(start), image_size) for source, start in zip(sources, starts[:-1], strict=True)]
    parts = list(progress(in_order(pack_source, jobs, workers)))
    packed = Packed(
        ids=[each for part in parts for each in part.ids],
        places=[each for part in parts for each in part.places],
        labels=np.concatenate([part.labels for part in parts] or [np.empty(0, np.int64)]),
        thumbnails=np.concatenate([part.thumbnails for part in parts] or [np.empty((0, 16, 16, 3), np.uint8)]),
    )
    meta = {"classes": dataset.classes, "image_size": image_size, "split": split, "source": dataset.layout}
    write_labels(folder, packed.labels, packed.ids, **meta)
    return packed


def pack_source(job: Job) -> Packed:
    shards = Shards(job.folder, "r+")
    ids, places, labels, thumbnails = [], [], [], []
    for row, record in enumerate(job.source.records(), job.start):
        image = square(decode(record.data, record.where), job.image_size)
        shards.write(row, image[None])
        ids.append(record.id)
        places.append(record.where)
        labels.append(record.label)
        thumbnails.append(thumbnail(image))
    return Packed(ids, places, np.asarray(labels, np.int64), np.asarray(thumbnails, np.uint8).reshape(-1, 16, 16, 3))
