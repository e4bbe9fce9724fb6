"""Untrusted bytes to pixels, refused by what their header claims before anything is decoded."""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
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
METADATA = 2 * 65_535  # bytes of Exif and the like, which Pillow goes through in Python: two full segments of a JPEG
SCANS = 100  # of a progressive JPEG, which has about ten; each is a pass over all pixels
PASSES = 18  # over `max_pixels`, by all scans together; libjpeg makes 18 of a picture for print (CMYK)
MARKERS = 1_000  # of a JPEG; each scan may bring tables of its own
CHUNKS = 20_000  # of a PNG; 16 MB have 2,000 as libpng cuts them
PACKED = 32  # of them profiles and texts, each of which may unpack to a megabyte
_JPEG, _SCAN, _END, _PNG = b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
_SEQUENTIAL = (b"\xff\xc0", b"\xff\xc1")  # frames
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # one that a length follows, or the end
_ALONE = {0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # markers that Pillow takes no length after
_TABLES = {*range(0xC0, 0xD0), 0xDB}  # frames, and what they refer to
_METADATA = (b"Exif\0\0", b"MPF\0", b"Photoshop 3.0\0")


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
    if not has_few_parts(data):
        raise damaged(where)
    header = read_header(data, where, max_pixels)
    if header.pixels > max_pixels:
        raise too_many_pixels(where, max_pixels)
    if effort(data, header.pixels) > max_pixels:
        raise Refusal(422, "damaged", f"{where}: the JPEG has too many scans; save it anew")
    return header


def pixels_decoded(data: bytes, header: Header, size: int) -> int:
    """Give the pixels that decoding holds in memory: fewer than all for a JPEG in one scan, as cameras write them."""
    if data.startswith(_JPEG) and header.mode in ("RGB", "L") and is_in_one_scan(data):
        return header.pixels // reduction(header.width, header.height, size) ** 2
    return header.pixels


def effort(data: bytes, pixels: int) -> float:
    """Give the work of decoding, in pixels; a pixel in a scan of a JPEG takes a PASSES-th of one in another format."""
    if not data.startswith(_JPEG):
        return pixels
    number = scans(data)
    return pixels * number / PASSES if number <= SCANS else math.inf


def read_header(data: bytes, where: str, max_pixels: int) -> Header:
    """Let Pillow read the header; raises Refusal where it cannot."""
    try:
        # Ignored are Pillow's warnings about size and odd metadata.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if len(image.info.get("exif", b"")) > METADATA:  # of a WebP: nobody has gone through it yet
                raise damaged(where)
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


def has_few_parts(data: bytes) -> bool:
    """Whether a JPEG or PNG has a sane number of parts; each costs its reader time, and a hostile file has millions."""
    if data.startswith(_JPEG):
        return has_few_segments(data)
    if data.startswith(_PNG):
        return has_few_chunks(data)
    return True


def has_few_segments(data: bytes) -> bool:
    """Walk a JPEG's segments up to its pixels (ITU-T T.81, B.1.1), in the steps that Pillow takes."""
    at, read = 2, 0
    for _ in range(SEGMENTS):
        marker = data[at : at + 4]
        if len(marker) < 4 or marker.startswith(_SCAN):
            return read <= METADATA
        if marker[0] != 0xFF or marker[1] in (0x00, 0xFF):  # stray bytes and padding, one at a time
            at += 1
        elif marker[1] in _ALONE:
            at += 2
        else:
            length = max(2, int.from_bytes(marker[2:]))
            if marker[1] in _TABLES or data.startswith(_METADATA, at + 4):
                read += length
            at += 2 + length
    return False


def scans(data: bytes) -> int:
    """Count a JPEG's scans; with MARKERS markers or more, it counts as having MARKERS."""
    found = [marker for marker, _ in islice(markers(data), MARKERS)]
    return found.count(_SCAN) if len(found) < MARKERS else MARKERS


def is_in_one_scan(data: bytes) -> bool:
    """Whether libjpeg decodes a JPEG row by row, as its first scan has all components (has_multiple_scans, jdinput.c).

    Else it keeps the whole picture for the scans that are to come, even if none comes.
    """
    components = None
    for marker, start in islice(markers(data), MARKERS):
        if marker == _SCAN:
            return data[start + 2 : start + 3] == components
        if marker in _SEQUENTIAL:
            components = data[start + 7 : start + 8]
    return False


def markers(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Go through a JPEG's markers, each with the place at which its segment's length stands (ITU-T T.81, B.1.1).

    It stops at the end of the picture: what may follow, such as a phone's film, is no part of it.
    """
    at = 2
    while (marker := _MARKER.search(data, at)) and marker[0] != _END:
        yield marker[0], marker.end()
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def has_few_chunks(data: bytes) -> bool:
    """Walk a PNG's chunks (PNG 1.2, 3.2)."""
    at, packed = 8, 0
    for _ in range(CHUNKS):
        if at + 8 > len(data):
            return True
        length, kind = struct.unpack_from(">I4s", data, at)
        packed += kind in (b"iCCP", b"iTXt", b"zTXt")
        if packed > PACKED or has_much_exif(kind, data, at + 8, length):
            return False
        at += 12 + length
    return False


def has_much_exif(kind: bytes, data: bytes, at: int, length: int) -> bool:
    """Whether a PNG's chunk, of `length` bytes at `at`, holds more than METADATA bytes that Pillow takes for Exif."""
    if kind == b"eXIf":
        return length > METADATA
    if kind not in (b"iTXt", b"tEXt", b"zTXt"):
        return False
    name, _, text = data[at : at + length].partition(b"\0")
    if name not in (b"exif", b"Raw profile type exif"):
        return False
    if kind == b"iTXt" and not text.startswith(b"\0"):  # packed, which nobody does
        return True
    if kind == b"zTXt":
        with suppress(zlib.error):  # damaged: Pillow reads none of it
            text = zlib.decompressobj().decompress(text[1:], 2 * METADATA + 1)
    return len(text) > 2 * METADATA  # hexadecimal digits


def too_many_pixels(where: str, limit: int) -> Refusal:
    return Refusal(413, "pixels", f"{where}: an image may have {limit:,} pixels at most; make it smaller")


def damaged(where: str) -> Refusal:
    return Refusal(422, "damaged", f"{where}: the image is damaged or cut short")
