"""Untrusted bytes to pixels, refused by what their header claims before anything is decoded."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from petals.errors import PetalsError
from petals.images import decode, square
from serving.refusals import Refusal

FORMATS = ("JPEG", "PNG", "WEBP")
LARGE = 4_000_000  # pixels from which on an image is decoded alone, so that memory stays bounded
SCANS = 100  # of a progressive JPEG, which has about ten; each costs a pass over all pixels
SCAN = b"\xff\xda"


def pixels_claimed(data: bytes, where: str, limit: int) -> int:
    """Read the header alone and give width × height; raises Refusal where it is no image, or larger than `limit`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about size and odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                pixels, kind = image.width * image.height, image.format
    except UnidentifiedImageError:
        raise Refusal(415, "type", f"{where}: not a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError:
        raise too_many_pixels(where, limit) from None
    except Exception:  # decoders raise anything on damaged data
        raise Refusal(422, "damaged", f"{where}: the image is damaged or cut short") from None
    if pixels > limit:
        raise too_many_pixels(where, limit)
    if kind in ("JPEG", "MPO") and data.count(SCAN) > SCANS:
        raise Refusal(422, "damaged", f"{where}: the JPEG has more than {SCANS} scans; save it anew")
    return pixels


def read(data: bytes, where: str, size: int) -> np.ndarray:
    """Decode an image of which `pixels_claimed` said no harm, to uint8 `size` × `size` × 3; raises Refusal.

    Of an animation this is the first frame. It is the preprocessing of training: petals.images.
    """
    try:
        return square(decode(data, where), size)
    except PetalsError:
        raise Refusal(422, "damaged", f"{where}: the image is damaged or cut short") from None


def too_many_pixels(where: str, limit: int) -> Refusal:
    return Refusal(413, "pixels", f"{where}: an image may have {limit:,} pixels at most; make it smaller")
