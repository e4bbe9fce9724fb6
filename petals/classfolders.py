"""One folder per class: train/CLASS/*.jpg with val/CLASS/*.jpg and test/*.jpg, or CLASS/*.jpg alone."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from petals.dataset import LAYOUTS, SPLITS, UNLABELLED, Dataset, Record, check_classes, check_names, skipped_note
from petals.errors import PetalsError
from petals.listing import IMAGES, composed, entries, hidden, images_in, read_classes, scan, shown, unread

_RESERVED = "a class that is called train, val or test needs another name"
_CHUNK = 256  # image files that one worker reads at a time


@dataclass(frozen=True)
class ImageFiles:
    """Some image files with their ids and labels."""

    paths: tuple[Path, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.paths)

    def records(self) -> Iterator[Record]:
        """Read the files one at a time; PetalsError if one cannot be read."""
        for path, name, label in zip(self.paths, self.ids, self.labels, strict=True):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise PetalsError(f"{shown(path)}: cannot be read: {error.strerror}") from None
            yield Record(name, label, data, shown(path))


def open_folders(root: Path) -> Dataset:
    """List the image files below `root` and give each its split, label and id; without a val folder `val` is empty."""
    present = [split for split in SPLITS if (root / split).is_dir()]
    if present:
        check_names(entries(root))
    if present and "train" not in present:
        raise PetalsError(f"{shown(root)}: a {present[0]} folder but no train folder; {LAYOUTS}; {_RESERVED}")
    train = root / "train" if present else root
    files, skipped = _scan_classes(root, train)
    classes = _label_order(root, train, files)
    splits = {"train": _labelled(files, classes), "val": [], "test": []}
    if "val" in present:
        files, others = _scan_classes(root, root / "val")
        if strange := sorted(set(files) - set(classes)):
            raise PetalsError(f"{shown(root / 'val')}: the class {strange[0]!r} is not in train; move or remove it")
        splits["val"] = _labelled(files, classes)
        skipped += others
    if "test" in present:
        files, others = scan(root / "test", IMAGES, root)
        if not files:
            raise PetalsError(f"{shown(root / 'test')}: {_why_empty(others, labelled=False)}")
        splits["test"] = [(file, UNLABELLED) for file in files]
        skipped += others
    if present:
        skipped += [entry for entry in entries(root) if entry.name not in SPLITS]
    ids, notes = _ids(root, *([file for file, _ in split] for split in splits.values()))
    sources = {split: _chunks(images, ids) for split, images in splits.items()}
    return Dataset("folders", classes, sources, notes + skipped_note(root, skipped))


def _scan_classes(root: Path, folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """The image files of each class folder by the class's name, and what else there is."""
    files: dict[str, list[Path]] = {}
    skipped = []
    for entry in entries(folder, root):
        if hidden(entry) or not entry.is_dir():
            skipped.append(entry)
            continue
        name = composed(entry, entry.name)
        if name in files:
            raise PetalsError(f"{shown(folder)}: two folders have the name {name!r}; rename one")
        files[name], others = scan(entry, IMAGES, root)
        if not files[name]:
            if folder == root and not unread(others):
                check_names([entry])  # Train/CLASS/*.jpg is no class; Train/*.jpg may be one
            raise PetalsError(f"{shown(entry)}: {_why_empty(others)}")
        skipped += others
    if not files:
        hint = "" if folder == root else f"; {_RESERVED}"
        raise PetalsError(f"{shown(folder)}: no class folder with images; {LAYOUTS}{hint}")
    return files, skipped


def _why_empty(others: list[Path], labelled: bool = True) -> str:
    """What to say of a folder with `others` in it and no image: a class, or, where not `labelled`, the test split."""
    if formats := unread(others):
        return f"no image in it that can be read, but {formats}: convert them to JPEG first"
    folders = [entry for entry in others if entry.is_dir() and not hidden(entry) and images_in(entry)]
    if folders and not labelled:
        return (
            "no image in it, but folders; a test split has no labels here: move it out of the data, and have the model "
            "scored on it by python -m petals.predict --score"
        )
    if len(folders) == 1:
        return f"no image in it, but a folder, {shown(folders[0].name)}: move what that holds up one level; {LAYOUTS}"
    if folders:
        return f"no image in it, but folders: move them up one level; {LAYOUTS}"
    return "no image in it; add some or remove the folder" + (f"; {LAYOUTS}" if labelled else "")


def _label_order(root: Path, train: Path, found: Iterable[str]) -> list[str]:
    """The class names: those of classes.txt where there is one, which must be those found.

    Else they are sorted: by number where all are numbers, as 2 comes before 10.
    """
    classes = read_classes(root)
    if classes is None:
        numbers = all(name.isascii() and name.isdecimal() for name in found)
        classes = sorted(found, key=lambda name: (int(name), name)) if numbers else sorted(found)
    elif different := sorted(set(classes) ^ set(found)):
        name = different[0]
        here, lacking = ("classes.txt", "train") if name in classes else ("train", "classes.txt")
        raise PetalsError(f"{shown(root)}: the class {name!r} is in {here} but not in {lacking}")
    check_classes(train, classes)
    return classes


def _labelled(files: dict[str, list[Path]], classes: list[str]) -> list[tuple[Path, int]]:
    return [(file, label) for label, name in enumerate(classes) for file in files.get(name, [])]


def _ids(root: Path, train: list[Path], val: list[Path], test: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """The id of each file: its stem, or its path without the extension where another file has the same stem.

    Those of test, which a submission names, stay stems whatever files of train and val are called.
    """
    ids = {file: composed(file, file.stem) for file in (*train, *val, *test)}
    times = Counter(ids.values())
    twice = [file for file in (*train, *val) if times[ids[file]] > 1]
    ids |= {file: composed(file, file.relative_to(root).with_suffix("").as_posix()) for file in twice}
    named: dict[str, list[Path]] = {}
    for file, name in ids.items():
        named.setdefault(name, []).append(file)
    if clashes := [files for files in named.values() if len(files) > 1]:
        first, second = map(shown, clashes[0][:2])
        advice = f"so it is with {len(clashes) - 1} more ids: rename one of each" if clashes[1:] else "rename one"
        raise PetalsError(f"{first} and {second} have one id, {ids[clashes[0][0]]!r}; {advice}")
    if not twice:
        return ids, []
    often = times.most_common(1)[0][0]
    example = next(iter(ids[file] for file in twice))
    return ids, [f"{len(twice)} ids are paths, such as {example!r}, because file names occur twice ({often!r})"]


def _chunks(images: list[tuple[Path, int]], ids: dict[Path, str]) -> list[ImageFiles]:
    chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    return [
        ImageFiles(
            tuple(file for file, _ in chunk),
            tuple(ids[file] for file, _ in chunk),
            tuple(label for _, label in chunk),
        )
        for chunk in chunks
    ]
