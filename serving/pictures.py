"""Untrusted bytes to pixels, refused by what their header claims before anything is decoded."""

import io
import math
import re
import struct
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from petals.errors import PetalsError
from petals.images import decode, reduction, square
from serving.refusals import Refusal

FORMATS = ("JPEG", "PNG", "WEBP")
LARGE = 2_000_000  # pixels: what is decoded to more is decoded alone, and holds up no batch
TOGETHER = 2  # times `max_pixels`, by all images of a request
SEGMENTS = 200  # of a JPEG before its pixels; cameras write about twenty
HEADER = 4_000_000  # bytes of them: Pillow's time grows with the square
SCANS = 100  # of a progressive JPEG, which has about ten; each is a pass over all pixels
PASSES = 18  # over `max_pixels`, by all scans together; libjpeg makes 18 of a picture for print (CMYK)
MARKERS = 1_000  # of a JPEG; each scan may bring tables of its own
CHUNKS = 20_000  # of a PNG; 16 MB have 2,000 as libpng cuts them
_JPEG, _SCAN, _END, _PNG = b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # one that a length follows, or the end
_ALONE = {0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # markers that Pillow takes no length after


class Large(Exception):
    """The image is sound as far as its header tells, but too large to be decoded within a batch."""


class Header(NamedTuple):
    """What an image's header claims: its size in pixels, and Pillow's name for what a pixel is."""

    width: int
    height: int
    mode: str

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read(data: bytes, where: str, size: int, max_pixels: int, large: bool = False) -> np.ndarray:
    """Decode an image to uint8 `size` × `size` × 3, as for training: petals.images; of an animation, the first frame.

    Raises Refusal, beginning with `where`, if it is no image, damaged, or of more than `max_pixels`; and Large if it
    is decoded to more than LARGE pixels and `large` does not allow that.
    """
    header = checked_header(data, where, max_pixels)
    if pixels_decoded(data, header, size) > LARGE and not large:
        raise Large
    try:
        return square(decode(data, where, size), size)
    except PetalsError:
        raise damaged(where) from None


def check_together(files: Sequence[bytes], max_pixels: int) -> None:
    """Raises Refusal where the images of a request are too much work together, or one is refused by its header."""
    work = sum(effort(data, checked_header(data, f"file {at}", max_pixels).pixels) for at, data in enumerate(files, 1))
    if work > TOGETHER * max_pixels:
        raise Refusal(413, "pixels", "the images have too many pixels together; make them smaller, or send fewer")


def checked_header(data: bytes, where: str, max_pixels: int) -> Header:
    """Read the header; raises Refusal where there is none, or where what it claims would take for ever."""
    if not is_short(data):
        raise damaged(where)
    header = read_header(data, where, max_pixels)
    if header.pixels > max_pixels:
        raise too_many_pixels(where, max_pixels)
    if effort(data, header.pixels) > max_pixels:
        raise Refusal(422, "damaged", f"{where}: the JPEG has too many scans; save it anew")
    return header


def pixels_decoded(data: bytes, header: Header, size: int) -> int:
    """Give the pixels that are in memory at a time: of a JPEG in one scan, as cameras write them, a part is enough."""
    if data.startswith(_JPEG) and header.mode in ("RGB", "L") and scans(data) == 1:
        return header.pixels // reduction(header.width, header.height, size) ** 2
    return header.pixels


def effort(data: bytes, pixels: int) -> float:
    """Give the pixels to be decoded; those of a JPEG's scan take a small part of the time of other formats' pixels."""
    if not data.startswith(_JPEG):
        return pixels
    number = scans(data)
    return pixels * number / PASSES if number <= SCANS else math.inf


def read_header(data: bytes, where: str, max_pixels: int) -> Header:
    """Let Pillow read the header; raises Refusal where it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about size and odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return Header(image.width, image.height, image.mode)
    except UnidentifiedImageError:
        if data.startswith((_JPEG, _PNG)):
            raise damaged(where) from None
        raise Refusal(415, "type", f"{where}: not a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError:
        raise too_many_pixels(where, max_pixels) from None
    except MemoryError:
        raise
    except Exception:  # decoders raise anything on damaged data
        raise damaged(where) from None


def is_short(data: bytes) -> bool:
    """Whether a JPEG or PNG has a sane number of parts; each costs its reader time, and a hostile file has millions."""
    if data.startswith(_JPEG):
        return has_few_segments(data)
    if data.startswith(_PNG):
        return has_few_chunks(data)
    return True


def has_few_segments(data: bytes) -> bool:
    """Walk a JPEG's segments up to its pixels (ITU-T T.81, B.1.1), in the steps that Pillow takes."""
    at = 2
    for _ in range(SEGMENTS):
        marker = data[at : at + 4]
        if len(marker) < 4 or marker.startswith(_SCAN):
            return at <= HEADER
        if marker[0] != 0xFF or marker[1] in (0x00, 0xFF):  # stray bytes and padding, one at a time
            at += 1
        elif marker[1] in _ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(marker[2:]))
    return False


def scans(data: bytes) -> int:
    """Count a JPEG's scans up to its end: what may follow, such as a phone's film, is no part of the picture."""
    at, number = 2, 0
    for _ in range(MARKERS):
        marker = _MARKER.search(data, at)
        if not marker or marker[0] == _END:
            return number
        number += marker[0] == _SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return MARKERS


def has_few_chunks(data: bytes) -> bool:
    """Walk a PNG's chunks (PNG 1.2, 3.2)."""
    at = 8
    for _ in range(CHUNKS):
        if at + 8 > len(data):
            return True
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return False


def too_many_pixels(where: str, limit: int) -> Refusal:
    return Refusal(413, "pixels", f"{where}: an image may have {limit:,} pixels at most; make it smaller")


def damaged(where: str) -> Refusal:
    return Refusal(422, "damaged", f"{where}: the image is damaged or cut short")
