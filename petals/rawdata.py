"""Labelled photographs as they come: Kaggle's TFRecords, or one folder per class."""

import re
from collections.abc import Iterable
from pathlib import Path

from petals.classfolders import open_folders
from petals.dataset import LAYOUTS, Dataset, Record, Source
from petals.errors import PetalsError
from petals.listing import controls, entries, shown
from petals.recordfiles import open_records

__all__ = ["Dataset", "Record", "Source", "check_ids", "open_dataset"]

_SIZE_FOLDER = re.compile(r"tfrecords-jpeg-(\d+)x\1")


def open_dataset(path: str | Path, image_size: int) -> Dataset:
    """Recognise the layout of the data in the folder `path` and list its sources; no image is read yet.

    Of Kaggle's layout the smallest size of at least `image_size` pixels is taken, else the largest. Where the data have
    no val split, `val` is empty. Raises PetalsError if `path` has neither layout or something in it is amiss.
    """
    root = Path(path)
    if not root.is_dir():
        raise PetalsError(f"{shown(root)}: no such folder; {LAYOUTS}")
    sizes = {
        int(match[1]): folder
        for folder in entries(root, root)
        if (match := _SIZE_FOLDER.fullmatch(folder.name)) and folder.is_dir()
    }
    if sizes:
        size = min((size for size in sizes if size >= image_size), default=max(sizes))
        return open_records(root, sizes[size], size)
    return open_folders(root)


def check_ids(ids: Iterable[tuple[str, str]]) -> None:
    """Raise PetalsError if an id is not one line, or occurs twice; `ids` of all splits, with where each was read."""
    seen: dict[str, str] = {}
    for name, where in ids:
        if controls(name):
            raise PetalsError(f"{where}: the id {name!r} holds a control character; give the image another")
        if name in seen:
            raise PetalsError(f"the id {name!r} stands twice, in {seen[name]} and in {where}; give each image its own")
        seen[name] = where
