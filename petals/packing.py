"""From raw records to a packed split: checked, decoded, squared and written by all cores at once."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from petals import images, resizing
from petals.dataset import SPLITS
from petals.duplicates import THUMBNAIL, thumbnails
from petals.errors import PetalsError
from petals.files import STATE, replacing, write_text
from petals.images import decode, square
from petals.packed import Shards, create_shards, write_labels
from petals.parallel import Work, in_order
from petals.parts import Part, Parts, code, key, save_keys
from petals.rawdata import Dataset, Record, Source
from petals.resizing import bicubic

CODE = code(images, resizing, sys.modules[__name__])  # that decides a pixel
TOGETHER = 16  # images to write at once
MOST_NAMED = 20  # of the images that cannot be read
UNREADABLE = STATE / "unreadable.txt"
NONE = np.empty((0, THUMBNAIL, THUMBNAIL, 3), np.uint8)


@dataclass(frozen=True)
class Job:
    """One source of a split, the rows that its images go to, and where some of them may be ready."""

    source: Source
    folder: Path
    start: int
    image_size: int
    parts: Path | None
    keyed: bool


@dataclass(frozen=True)
class Packed:
    """What is known of the images of a split, in their order."""

    ids: list[str]
    places: list[str]
    labels: np.ndarray
    thumbnails: np.ndarray
    keys: list[bytes] = field(default_factory=list)
    ready: int = 0  # of them were found in parts
    faults: list[str] = field(default_factory=list)  # of images that cannot be read

    def at(self, rows: np.ndarray) -> "Packed":
        """What is known of the images at `rows` alone."""
        ids, places = ([each[row] for row in rows] for each in (self.ids, self.places))
        return Packed(ids, places, self.labels[rows], self.thumbnails[rows])


def without_bar(results: Iterable[Packed], *_told: object) -> Iterable[Packed]:
    return results


def pack(
    dataset: Dataset,
    folder: Path,
    image_size: int,
    work: Work = in_order,
    progress: Callable[..., Iterable[Packed]] = without_bar,
    parts: Path | None = None,
) -> Iterator[tuple[str, Packed]]:
    """Write each split of `dataset` to its folder in `folder`, and yield its name and what is known of it.

    Raises PetalsError at the first record that is at fault, and at the end for all images that cannot be read, the list
    of which is in UNREADABLE. The bytes are the same however `work` divides it: each source knows the rows it fills.
    Images that are ready in the folder `parts` are not decoded again.
    """
    # All splits at once, so that no worker waits for the others at the end of each.
    begun = {split: begin(dataset.splits[split], folder / split, image_size, work, parts) for split in SPLITS}
    faults = []
    for split, results in begun.items():
        packed = joined(progress(results, split, "part", len(dataset.splits[split])))
        if faults := faults + packed.faults:
            continue
        meta = {"classes": dataset.classes, "image_size": image_size, "split": split, "source": dataset.layout}
        write_labels(folder / split, packed.labels, packed.ids, **meta)
        yield split, packed
    refuse(faults)


def pack_part(
    dataset: Dataset,
    part: Part,
    output: Path,
    image_size: int,
    work: Work = in_order,
    progress: Callable[..., Iterable[Packed]] = without_bar,
) -> int:
    """Write the images of `part` of all splits, for `pack` to find them; gives their number."""
    sources = part.share([source for split in dataset.splits.values() for source in split])
    with replacing(part.folder(output)) as folder:
        results = begin(sources, folder, image_size, work, keyed=True)
        packed = joined(progress(results, f"part {part.number} of {part.of}", "part", len(sources)))
        refuse(packed.faults)
        save_keys(folder, packed.keys)
    return len(packed.keys)


def begin(
    sources: Sequence[Source],
    folder: Path,
    image_size: int,
    work: Work,
    parts: Path | None = None,
    keyed: bool = False,
) -> Iterator[Packed]:
    """Let the images of `sources` be written to `folder`, one after the other; what is known of each source comes in
    order, with the keys of its images if `keyed`."""
    starts = np.cumsum([0, *(source.count for source in sources)])
    folder.mkdir(parents=True)
    create_shards(folder, int(starts[-1]), image_size)
    places = zip(sources, starts[:-1], strict=True)
    return work(pack_source, [Job(source, folder, int(start), image_size, parts, keyed) for source, start in places])


def joined(results: Iterable[Packed]) -> Packed:
    """What is known of the images of all `results` together."""
    done = list(results)
    return Packed(
        ids=[each for packed in done for each in packed.ids],
        places=[each for packed in done for each in packed.places],
        labels=np.concatenate([packed.labels for packed in done] or [np.empty(0, np.int64)]),
        thumbnails=np.concatenate([NONE, *(packed.thumbnails for packed in done)]),
        keys=[each for packed in done for each in packed.keys],
        ready=sum(packed.ready for packed in done),
        faults=[fault for packed in done for fault in packed.faults],
    )


def refuse(faults: list[str]) -> None:
    """Raise PetalsError where there are images that cannot be read, and write down which if they are many."""
    if not faults:
        return
    if len(faults) == 1:
        raise PetalsError(faults[0])
    more = []
    if len(faults) > MOST_NAMED:
        write_text(UNREADABLE, "".join(f"{fault}\n" for fault in faults))
        more = [f"… and {len(faults) - MOST_NAMED} more; all of them are in {UNREADABLE}"]
    raise PetalsError("\n  ".join([f"{len(faults)} images cannot be read:", *faults[:MOST_NAMED], *more]))


def pack_source(job: Job) -> Packed:
    shards, ready = Shards(job.folder, mode="r+"), Parts(job.parts)
    ids, places, labels, small, keys, faults = [], [], [], [NONE], [], []

    def pixels(record: Record) -> np.ndarray:
        """The square of `record`, of which all else is noted."""
        ids.append(record.id)
        places.append(record.where)
        labels.append(record.label)
        if job.keyed or ready.rows:
            keys.append(key(CODE, record.data, job.image_size))
            found = ready.find(keys[-1:])
            if found is not None:
                return found[0]
        try:
            return square(decode(record.data, record.where, job.image_size), job.image_size, bicubic)
        except PetalsError as error:
            faults.append(str(error))
            return np.zeros((job.image_size, job.image_size, 3), np.uint8)

    records, row = job.source.records(), job.start
    while squares := [pixels(record) for record in islice(records, TOGETHER)]:
        batch = np.stack(squares)
        small.append(thumbnails(batch))
        shards.write(row, batch)
        row += len(batch)
    return Packed(ids, places, np.asarray(labels, np.int64), np.concatenate(small), keys, ready.used, faults)
