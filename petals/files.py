"""Outputs that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATE = Path(".petals")  # what a run keeps for itself, outside the outputs that DVC knows


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move what is written there onto `path` when all went well.

    The block may make a file or a folder. If it raises, the temporary is removed and `path` stays as it was.
    What an earlier process that was killed has left is cleared first; a folder that it had moved aside comes back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (path.with_name(f".{path.name}.{word}") for word in ("partial", "former"))
    remove(partial)
    put_back(former, path)
    try:
        yield partial
        if os.path.lexists(path) and (partial.is_dir() or (partial.exists() and path.is_dir())):
            os.replace(path, former)  # a folder is not replaced in one move, and deleted in many
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        put_back(former, path)
        raise
    remove(former)


def put_back(former: Path, path: Path) -> None:
    """Move the folder `former` back to `path`; where there is another by now, delete it."""
    if os.path.lexists(former) and not os.path.lexists(path):
        os.replace(former, path)
    remove(former)


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path` in whole, with Unix line ends on every system."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
