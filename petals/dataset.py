"""What a set of labelled photographs is, whatever its layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from petals.errors import PetalsError
from petals.listing import shown

SPLITS = ("train", "val", "test")
UNLABELLED = -1
LAYOUTS = (
    "expected tfrecords-jpeg-SxS/{train,val,test}/NN-SxS-COUNT.tfrec, or one folder a class: "
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


def check_names(folder: Path) -> None:
    """Raise PetalsError where `folder` has a validation split under a name that others give it, and no val."""
    other = next((folder / name for name in ("valid", "validation", "dev") if (folder / name).is_dir()), None)
    if other and not (folder / "val").is_dir():
        raise PetalsError(f"{shown(other)}: the validation split's folder should be called val; rename it")


def check_classes(where: Path, classes: list[str]) -> None:
    if len(classes) < 2:
        raise PetalsError(f"{shown(where)}: one class only, {classes[0]!r}; there is nothing to tell apart")


def skipped_note(root: Path, skipped: list[Path]) -> list[str]:
    names = [shown(entry.relative_to(root)) for entry in skipped if entry != root / "classes.txt"]
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"skipped: {', '.join(names[:3])}{more}"]
