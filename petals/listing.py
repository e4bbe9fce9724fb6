"""Folders and names as the file system has them, made the same on every system."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

from petals.errors import PetalsError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")  # extensions of what petals.images decodes
UNREAD = (  # … and of photographs that it does not
    *(".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".bmp", ".gif", ".tif", ".tiff"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
)
IN_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")  # DVC links to there with cache.type symlink


def shown(path: str | Path) -> str:
    """`path` for a message, which stays one line whatever the name holds."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def composed(path: Path, name: str) -> str:
    """`name` in composed Unicode (NFC), so that é is the same on every system.

    Raises PetalsError for a name that is not UTF-8, or not one line.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise PetalsError(f"{shown(path)}: the name is not UTF-8; rename it") from None
    if controls(name):
        raise PetalsError(f"{shown(path)}: the name holds a control character; rename it")
    return unicodedata.normalize("NFC", name)


def controls(name: str) -> bool:
    """Whether `name` holds a control character or a line break, with which tables and pictures could not be read."""
    return not name.isprintable() and any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in name)


def entries(folder: Path, root: Path | None = None) -> list[Path]:
    """What is in `folder`, sorted by composed name.

    Raises PetalsError if the folder cannot be listed or, where `root` is given, if one of its visible links
    points to nothing, out of `root`, or to a folder: DVC follows no link to a folder, and would not see what is there.
    """
    try:
        found = sorted(folder.iterdir(), key=lambda entry: (unicodedata.normalize("NFC", entry.name), entry.name))
    except OSError as error:
        raise PetalsError(f"{shown(folder)}: cannot be listed: {error.strerror}") from None
    if root is not None:
        for entry in found:
            if entry.is_symlink() and not hidden(entry):
                _check_link(entry, root.resolve())
    return found


def scan(folder: Path, extensions: tuple[str, ...], root: Path | None = None) -> tuple[list[Path], list[Path]]:
    """The visible files in `folder` with one of the `extensions`, in any case, and all else."""
    wanted, others = [], []
    for entry in entries(folder, root):
        fits = entry.suffix.lower() in extensions and not hidden(entry) and entry.is_file()
        (wanted if fits else others).append(entry)
    return wanted, others


def hidden(path: Path) -> bool:
    return path.name.startswith(".")


def images_in(path: Path) -> int:
    """How many files of photographs, in any format, `path` is or holds, also in folders of folders."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.suffix.lower() in (*IMAGES, *UNREAD, ".tfrec") and not hidden(file) for file in files)


def unread(files: list[Path]) -> str:
    """How many of `files` are photographs in formats that petals.images does not decode: `8 .heic, 2 .tif`, or ``."""
    formats = Counter(file.suffix.lower() for file in files if file.suffix.lower() in UNREAD and not hidden(file))
    return ", ".join(f"{count} {suffix}" for suffix, count in formats.most_common())


def read_classes(root: Path) -> list[str] | None:
    """The names in classes.txt, one a line; None where there is no such file."""
    path = root / "classes.txt"
    if not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError):
        raise PetalsError(f"{shown(path)}: cannot be read as UTF-8 text") from None
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = unicodedata.normalize("NFC", line).strip()
        if not name:
            raise PetalsError(f"{shown(path)}: line {number} is empty; it must hold one class name a line")
        if controls(name):
            raise PetalsError(f"{shown(path)}: line {number} holds a control character; take it out")
        if name in names:
            raise PetalsError(f"{shown(path)}: line {number} repeats the class {name!r}")
        names.append(name)
    return names


def _check_link(link: Path, inside: Path) -> None:
    try:
        target = link.resolve(strict=True)
    except FileNotFoundError:
        raise PetalsError(f"{shown(link)}: a link to nothing; remove it") from None
    except (OSError, RuntimeError):  # RuntimeError up to Python 3.12
        raise PetalsError(f"{shown(link)}: a link in a circle; remove it") from None
    if not target.is_relative_to(inside) and not IN_DVC_CACHE.search(target.as_posix()):
        raise PetalsError(f"{shown(link)}: a link out of the data folder; put what it points to in its place")
    if link.parent.resolve().is_relative_to(target):
        raise PetalsError(f"{shown(link)}: a link in a circle; remove it")
    if target.is_dir():
        raise PetalsError(f"{shown(link)}: a link to a folder, which DVC does not follow; put the folder in its place")
