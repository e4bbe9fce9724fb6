"""Encoded images to arrays of pixels, and arrays to squares."""

import io
import re
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError
from simplejpeg import decode_jpeg

from petals.errors import PetalsError

MAX_PIXELS = 178_000_000  # 534 MB of RGB, and as many as Pillow opens; cameras of 150 million stay below it

MENDS = 3  # of one file: more would be one that is made to keep a processor busy
MOST_SEGMENTS = 1000  # before the pixels

_PADDED = re.compile("([0-9]+) extraneous bytes before marker 0xd9")
_END = b"\xff\xd9"
_MARKER = re.compile(rb"[^\0\xff]")  # behind an 0xFF
_EXIF_ORIENTATION = 0x0112
# How to turn the stored pixels upright (Exif 2.32, tag 274).
_UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def decode(data: bytes, where: str, least: int | None = None) -> np.ndarray:
    """Decode a JPEG, PNG or WebP image (of an animation, the first frame) to uint8 H × W × 3, RGB.

    Turned upright as its EXIF orientation says; grey and CMYK become RGB, 16 bits become 8, and what is transparent is
    laid on white. Colour profiles are not applied. With `least`, a JPEG comes at a half, a quarter or an eighth of its
    size where its shorter side has at least `least` pixels then: for what is made smaller anyway, in a fraction of the
    time.
    Raises PetalsError, starting with `where`, if it is no such image, damaged, cut short, or if its header
    claims more than MAX_PIXELS; that is known before memory for the pixels is taken.
    """
    if not data:
        raise PetalsError(f"{where}: the image is empty (0 bytes); replace or remove it")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, about size and odd metadata
            return _decode(data, least)
    except UnidentifiedImageError:
        raise PetalsError(f"{where}: not a JPEG, PNG or WebP image; convert or remove it") from None
    except Image.DecompressionBombError:
        raise PetalsError(
            f"{where}: the image's header claims more than {MAX_PIXELS // 10**6} million pixels; replace or remove it"
        ) from None
    except MemoryError:  # says nothing about the image
        raise
    except Exception as error:  # decoders raise anything from struct.error to a bare Exception on damaged data
        fault = "has more than a megabyte of text or profile" if "MAX_TEXT" in str(error) else "is damaged or cut short"
        raise PetalsError(f"{where}: the image {fault}; save it anew or remove it") from None


def bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 S × S × 3 to uint8 size × size × 3 by Pillow: bicubic (Keys 1981, a = -0.5), the kernel widened by
    the factor of reduction against aliasing."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def square(image: np.ndarray, size: int, resize: Callable[[np.ndarray, int], np.ndarray] = bicubic) -> np.ndarray:
    """Cut the central square out of uint8 H × W × 3 and `resize` it to uint8 size × size × 3.

    Where an odd number of pixels goes, the one more is taken from the right or the bottom.
    """
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = np.ascontiguousarray(image[top : top + side, left : left + side])
    return image if side == size else resize(image, size)


def _decode(data: bytes, least: int | None) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            # At full size the same pixels as Pillow's in two thirds of the time, and damage that Pillow fills with grey
            # is an error here.
            pixels = _decode_jpeg(data, image.width, image.height, least)
        else:
            pixels = np.array(_to_rgb(image))
        upright = _UPRIGHT.get(_orientation(image))
    return np.ascontiguousarray(upright(pixels)) if upright else pixels


def reduction(width: int, height: int, least: int) -> int:
    """The largest of 8, 4, 2 and 1 that leaves the shorter side `least` pixels; 1 where it has fewer."""
    return next((factor for factor in (8, 4, 2) if min(width, height) // factor >= least), 1)


def _decode_jpeg(data: bytes, width: int, height: int, least: int | None) -> np.ndarray:
    """Reduced by libjpeg's inverse cosine transform; a last row or column of fewer pixels than the others is cut off.

    What some cameras write wrongly beside the pixels is passed over.
    """
    factor = 1 if least is None else reduction(width, height, least)
    smaller = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    for _ in range(MENDS + 1):
        try:
            pixels = decode_jpeg(data, **smaller)
        except ValueError as error:
            data = _mended(data, str(error))
        else:
            return np.ascontiguousarray(pixels[: height // factor, : width // factor])
    raise ValueError("too many faults")


def _mended(data: bytes, fault: str) -> bytes:
    """Put right what says nothing of a JPEG's pixels, of which libjpeg says `fault`; raises ValueError for all else."""
    padded = _PADDED.search(fault)
    mended = _without_padding(data, int(padded[1])) if padded else _with_sound_header(data)
    if mended == data:
        raise ValueError(fault)
    return mended


def _without_padding(data: bytes, count: int) -> bytes:
    """Take out `count` zeros before the end of the picture, behind which a film may follow.

    Other bytes there may be a damaged picture's.
    """
    start = data.find(bytes(min(count, len(data))) + _END, _segments(data)[1])
    return data if start < 0 else data[:start] + data[start + count :]


def _with_sound_header(data: bytes) -> bytes:
    """Put each segment before the pixels right.

    Phones of Samsung's leave the last three bytes of a sequential scan's header zero, which may be 0, 63, 0 alone
    (B.2.3); others name a JFIF version that there is not, or leave zeros between segments.
    """
    segments, end = _segments(data)
    sequential = any(segment[1] in (0xC0, 0xC1) for segment in segments)
    for number, segment in enumerate(segments):
        if segment[4:9] == b"JFIF\0" and segment[9] != 1:
            segments[number] = segment[:9] + b"\1\1" + segment[11:]
        elif segment[1] == 0xDA and sequential:
            segments[number] = segment[:-3] + b"\0\x3f\0"
    return b"".join(segments) + data[end:]


def _segments(data: bytes) -> tuple[list[bytes], int]:
    """The segments up to the pixels (ITU-T T.81, B.1.1) without what fills between them, and where they end."""
    segments, at = [data[:2]], 2
    while segments[-1][1] != 0xDA:
        marker = _MARKER.search(data, at)
        if len(segments) > MOST_SEGMENTS or not marker or data[at : marker.start()][-1:] != b"\xff":
            raise ValueError("too many segments, or one without a marker")
        at = marker.start() - 1
        segments.append(data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4])])
        at += len(segments[-1])
    return segments, at


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255 rather than scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # unreadable metadata says nothing about the pixels
        return 1
