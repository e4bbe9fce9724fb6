"""Kaggle's layout: TFRecord files in tfrecords-jpeg-SxS/{train,val,test}/NN-SxS-COUNT.tfrec."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from petals.dataset import LAYOUTS, SPLITS, UNLABELLED, Dataset, Record, check_classes, check_names, skipped_note
from petals.errors import PetalsError
from petals.flowers import CLASS_NAMES
from petals.listing import entries, read_classes, scan, shown
from petals.tfrecord import FRAME_BYTES, decode_example, feature, place, read_records

_RECORD_FILE = re.compile(r"\d+-(\d+)x(\d+)-(\d+)\.tfrec")


@dataclass(frozen=True)
class RecordFile:
    """A TFRecord file that promises `count` records."""

    path: Path
    count: int
    classes: int
    labelled: bool

    def records(self) -> Iterator[Record]:
        """Read the records one at a time; PetalsError at the first that is wrong, or if the count is."""
        number = -1
        for number, (offset, payload) in enumerate(read_records(self.path)):
            where = place(self.path, number, offset)
            if number == self.count:
                raise PetalsError(f"{where}: one more than the {self.count} that the file's name promises")
            example = decode_example(payload, where)
            name = feature(example, "id", bytes, where)
            try:
                name = name.decode("utf-8")
            except UnicodeDecodeError:
                raise PetalsError(f"{where}: the id {name!r} is not UTF-8; write it as UTF-8") from None
            label = feature(example, "class", int, where) if self.labelled else UNLABELLED
            if self.labelled and not 0 <= label < self.classes:
                raise PetalsError(
                    f"{where}: class {label} has no name: there are {self.classes}, counted from 0; "
                    f"correct or write {shown(self.path.parents[2] / 'classes.txt')}"
                )
            yield Record(name, label, feature(example, "image", bytes, where), where)
        if number + 1 != self.count:
            raise PetalsError(
                f"{shown(self.path)}: {number + 1} records, its name promises {self.count}; fetch it again"
            )


def open_records(root: Path, folder: Path, size: int) -> Dataset:
    """List the record files in `folder`, whose images are `size` pixels wide and high."""
    classes = read_classes(root)
    notes = [f"reading {folder.name}"]
    if classes is None:
        classes = list(CLASS_NAMES)
        notes.append(f"no classes.txt: the {len(classes)} class names of Petals to the Metal are used")
    check_classes(root, classes)
    found = entries(folder, root)  # refuses links that DVC would not follow
    check_names(found)
    splits, skipped = {}, [entry for entry in found if entry.name not in SPLITS]
    for split in SPLITS:
        if not (folder / split).is_dir():
            if split == "train":
                raise PetalsError(f"{shown(folder)}: no {split} folder; {LAYOUTS}")
            splits[split] = []
            continue
        files, others = scan(folder / split, (".tfrec",), root)
        if not files:
            raise PetalsError(f"{shown(folder / split)}: no .tfrec file; add them or remove the folder")
        splits[split] = [_record_file(file, size, len(classes), split != "test") for file in files]
        skipped += others
    return Dataset("tfrecords", classes, splits, notes + skipped_note(folder, skipped))


def _record_file(path: Path, size: int, classes: int, labelled: bool) -> RecordFile:
    match = _RECORD_FILE.fullmatch(path.name)
    if not match:
        raise PetalsError(f"{shown(path)}: the name must be NN-{size}x{size}-COUNT.tfrec")
    width, height, count = map(int, match.groups())
    if (width, height) != (size, size):
        raise PetalsError(
            f"{shown(path)}: {width}x{height} images among those of {size}x{size}; move it to its own folder"
        )
    size_on_disk = path.stat().st_size
    # Room is made for what the names promise, so that must be possible.
    if count * FRAME_BYTES > size_on_disk:
        raise PetalsError(
            f"{shown(path)}: its name promises {count} records, too many for its {size_on_disk} bytes; fetch it again"
        )
    return RecordFile(path, count, classes, labelled)
