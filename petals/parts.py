"""A part of a stage's images, made on another machine; looked up by a hash of all that decides their pixels.

`python -m stages.NAME … --part 1/2` leaves `OUTPUT.parts/1-of-2`: images as in a packed split, and `keys.npy`, uint8
N × 16, of which each names an image. The stage without --part takes what it finds there and makes what is missing.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from petals.errors import PetalsError
from petals.packed import Shards, save_array

KEY_BYTES = 16
# Another version of which may change a pixel.
LIBRARIES = ("torch", "kornia", "numpy", "simplejpeg", "pillow")


class Part(NamedTuple):
    """Part `number`, from 1, of `of`."""

    number: int
    of: int

    def share(self, things: Sequence) -> Sequence:
        """Every `of`-th of `things`, so that no part has all the heavy ones."""
        return things[self.number - 1 :: self.of]

    def folder(self, output: Path) -> Path:
        return parts_of(output) / f"{self.number}-of-{self.of}"


def part(text: str) -> Part:
    """Read "1/2"; raises ValueError."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError("should be I/N, such as 1/2, with I from 1 to N")
    return Part(int(match[1]), int(match[2]))


def parts_of(output: Path) -> Path:
    """The folder beside `output` in which its parts are."""
    return output.with_name(output.name + ".parts")


def key(*decisive: object) -> bytes:
    """Name an image by all that decides its pixels: bytes as they are, all else by its repr."""
    digest = hashlib.blake2b(versions(), digest_size=KEY_BYTES)
    for each in decisive:
        content = each if isinstance(each, bytes) else repr(each).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def code(*modules: ModuleType) -> bytes:
    """The content of the files of `modules`, to be among what names an image: other code makes other pixels."""
    return b"".join(hashlib.blake2b(Path(each.__file__).read_bytes()).digest() for each in modules)


@cache
def versions() -> bytes:
    return repr([importlib.metadata.version(name) for name in LIBRARIES]).encode()


def save_keys(folder: Path, keys: Sequence[bytes]) -> None:
    save_array(folder / "keys.npy", np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES))


class Parts:
    """All finished parts in a folder; a folder that is not there, or not given, holds none.

    Raises PetalsError where one is not whole.
    """

    def __init__(self, folder: Path | None) -> None:
        self.shards: list[Shards] = []
        self.rows: dict[bytes, tuple[int, int]] = {}
        self.counts: list[int] = []  # appended to by several threads
        for path in sorted(folder.glob("[0-9]*-of-*")) if folder else []:
            try:
                keys = np.load(path / "keys.npy")
                if keys.dtype != np.uint8 or keys.shape[1:] != (KEY_BYTES,):
                    raise ValueError(f"keys of shape {keys.shape}")
            except (OSError, EOFError, ValueError) as error:
                raise PetalsError(f"{path}: not a finished part ({error}); make or fetch it again") from None
            shards = Shards(path)
            if len(keys) != len(shards):
                raise PetalsError(f"{path}: {len(shards)} images, {len(keys)} keys; fetch it again")
            self.rows |= {each.tobytes(): (len(self.shards), row) for row, each in enumerate(keys)}
            self.shards.append(shards)

    @property
    def used(self) -> int:
        """The number of images found until now."""
        return sum(self.counts)

    def find(self, keys: Sequence[bytes]) -> np.ndarray | None:
        """The images (uint8, N × H × W × 3) that `keys` name, if one part has them all."""
        found = [self.rows.get(each) for each in keys]
        if None in found or len({shards for shards, _ in found}) != 1:
            return None
        self.counts.append(len(found))
        return self.shards[found[0][0]].read([row for _, row in found])
