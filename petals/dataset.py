"""What a set of labelled photographs is, whatever its layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from petals.errors import PetalsError
from petals.listing import hidden, images_in, shown, unread

SPLITS = {"train": "training", "val": "validation", "test": "test"}
OTHER_NAMES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
UNLABELLED = -1
LAYOUTS = (
    "expected tfrecords-jpeg-SxS/{train,val,test}/NN-SxS-COUNT.tfrec, or one folder per class: "
    "train/CLASS/*.jpg or CLASS/*.jpg"
)


@dataclass(frozen=True)
class Record:
    """One encoded image: `label` is -1 where there is none, `where` says in messages where it came from."""

    id: str
    label: int
    data: bytes
    where: str


class Source(Protocol):
    """A unit of work: it can be sent to another process and knows how many records it will give."""

    @property
    def count(self) -> int: ...

    def records(self) -> Iterator[Record]:
        """Read the records one at a time; raises PetalsError at the first that is at fault."""
        ...


@dataclass(frozen=True)
class Dataset:
    """What `open_dataset` found: class names in label order, sources by split, and what to tell the user."""

    layout: str
    classes: list[str]
    splits: dict[str, list[Source]]
    notes: list[str]


def check_names(beside: list[Path]) -> None:
    """Raise PetalsError for a folder with another name of a split, such as Train, where none beside it has its own."""
    folders = {entry.name for entry in beside if entry.is_dir()}  # as they are written: to a Mac, Train is train too
    for entry in beside:
        split = OTHER_NAMES.get(entry.name.lower(), entry.name.lower())
        if split in SPLITS and entry.name in folders and split not in folders:
            raise PetalsError(f"{shown(entry)}: the {SPLITS[split]} split's folder should be called {split}; rename it")


def check_classes(where: Path, classes: list[str]) -> None:
    if len(classes) < 2:
        raise PetalsError(f"{shown(where)}: one class only, {classes[0]!r}; there is nothing to tell apart")


def skipped_note(root: Path, skipped: list[Path]) -> list[str]:
    """One line on what was passed over, by kind: photographs first, and what to do about them."""
    kinds: dict[str, list[Path]] = {}
    for entry in skipped:
        if entry != root / "classes.txt":
            kinds.setdefault(_kind(root, entry), []).append(entry)
    told = [f"{unread(kinds['format'])} (convert them to JPEG)"] if "format" in kinds else []
    for kind, hint in (("too deep", " (move them up)"), ("beside train", ""), ("in no class", "")):
        if kind in kinds:
            count = sum(map(images_in, kinds[kind]))
            told.append(f"{count} image{'s' * (count > 1)} {kind}: {_few(root, kinds[kind])}{hint}")
    if "other" in kinds:
        told.append(_few(root, kinds["other"]))
    return [f"skipped: {'; '.join(told)}"] if told else []


def _kind(root: Path, entry: Path) -> str:
    if hidden(entry) or not images_in(entry):
        return "other"
    if entry.is_dir():
        return "beside train" if entry.parent == root else "too deep"
    return "format" if unread([entry]) else "in no class"


def _few(root: Path, found: list[Path]) -> str:
    """The first two of `found`, at no great length, and how many more there are."""
    names = [shown(entry.relative_to(root)) for entry in found[:2]]
    names = [name if len(name) <= 60 else f"{name[:59]}…" for name in names]
    return ", ".join(names) + (f" and {len(found) - 2} more" if len(found) > 2 else "")
