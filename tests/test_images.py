"""Decoding against Pillow, squares against the definition of the filter, and every kind of bad image."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from simplejpeg import decode_jpeg

from petals import images, resizing
from petals.errors import PetalsError
from petals.images import MAX_PIXELS, decode, square
from petals.tfrecord import decode_example, read_records


def photograph(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    """Something smooth, so that lossy formats stay near it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def fault(data: bytes) -> str:
    with pytest.raises(PetalsError) as error:
        decode(data, "rose.jpg")
    message = str(error.value)
    assert message.startswith("rose.jpg: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 33), (48, 64)])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"keep_rgb": True}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_has_the_pixels_that_pillow_finds(size: tuple[int, int], options: dict, mode: str):
    data = encoded(photograph(*size).convert(mode), "JPEG", **options)
    pixels = decode(data, "here")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize(
    ("height", "width", "least", "factor"),
    [
        (480, 640, None, 1),
        (480, 640, 241, 1),
        (480, 640, 240, 2),
        (480, 640, 61, 4),
        (480, 640, 60, 8),
        (480, 640, 1, 8),  # libjpeg's last
        (487, 641, 60, 8),  # what is left over is cut off
        (479, 640, 60, 4),
    ],
)
@pytest.mark.parametrize(("mode", "format"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "MPO")])
def test_a_jpeg_is_decoded_no_larger_than_it_is_needed(
    height: int, width: int, least: int | None, factor: int, mode: str, format: str
):
    data = encoded(photograph(height, width).convert(mode), format, quality=95)
    pixels, whole = decode(data, "here", least), decode(data, "here")
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert pixels.shape == (height // factor, width // factor, 3)
    rows, columns = (factor * side for side in pixels.shape[:2])
    mean = whole[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor, 3).mean((1, 3))
    assert np.abs(pixels - mean).mean() < 1  # of 255, where the picture is smooth


def test_a_reduced_jpeg_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = photograph(487, 641)
    pixels, turned = (decode(encoded(picture, "JPEG", **tag), "here", 60) for tag in ({}, {"exif": exif}))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (3, 5), (9, 17)])
def test_the_smallest_jpeg_can_be_reduced(height: int, width: int):
    pixels = decode(encoded(photograph(height, width), "JPEG"), "here", 1)
    factor = {1: 1, 2: 2, 3: 2, 9: 8}[height]
    assert pixels.shape == (height // factor, width // factor, 3)


@pytest.mark.parametrize(("mode", "format"), [("RGB", "PNG"), ("RGB", "WEBP"), ("CMYK", "JPEG")])
def test_others_are_not_reduced_while_they_are_decoded(mode: str, format: str):
    assert decode(encoded(photograph(480, 640).convert(mode), format), "here", 60).shape == (480, 640, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_reduced_jpeg_is_refused_where_it_ends_too_early(options: dict):
    data = encoded(photograph(480, 640), "JPEG", **options)
    for length in [*range(len(data) // 8, len(data), len(data) // 8), len(data) - 1]:
        with pytest.raises(PetalsError, match="here: the image is damaged or cut short"):
            decode(data[:length], "here", 60)


def test_a_png_whose_text_is_too_much_for_pillow_is_not_called_damaged():
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "a" * 1_200_000, zip=True)
    with pytest.raises(PetalsError, match="here: the image has more than a megabyte of text or profile; save it anew"):
        decode(encoded(photograph(8, 8), "PNG", pnginfo=text), "here")


@pytest.mark.parametrize("least", [None, 60])
def test_zeros_before_the_end_of_a_jpeg_are_passed_over(least: int | None):
    data = encoded(photograph(480, 640), "JPEG")
    padded, expected = data[:-2] + bytes(30) + data[-2:], decode(data, "here", least)
    for behind in (b"a film", data, b"a film's \xff\xd9" * 30, bytes(1_000_000) + b"\xff\xd9"):
        np.testing.assert_array_equal(decode(padded + behind, "here", least), expected)
    thumbnail = b"\xff\xe1" + (2 + 42).to_bytes(2) + b"Exif\0\0" + bytes(34) + b"\xff\xd9"
    np.testing.assert_array_equal(decode(padded[:2] + thumbnail + padded[2:], "here", least), expected)
    for spoilt in (data[:-2] + bytes(range(1, 31)) + data[-2:], padded[:-2]):
        with pytest.raises(PetalsError, match="here: the image is damaged or cut short"):
            decode(spoilt, "here", least)


@pytest.mark.parametrize("zeros", [5, 30])
def test_a_jpeg_that_would_be_decoded_for_ever_is_given_up(zeros: int, monkeypatch):
    decoded = mock.Mock(
        wraps=images.decode_jpeg, side_effect=ValueError(f"{zeros} extraneous bytes before marker 0xd9")
    )
    monkeypatch.setattr(images, "decode_jpeg", decoded)
    data = encoded(photograph(64, 64), "JPEG")
    with pytest.raises(PetalsError, match="here: the image is damaged or cut short"):
        decode(data[:-2] + bytes(10_000) + data[-2:], "here")
    assert decoded.call_count == 4


def test_a_jpeg_of_millions_of_segments_is_given_up():
    data = encoded(photograph(64, 64), "JPEG").replace(b"JFIF\0\1", b"JFIF\0\2", 1)
    broken = pytest.raises(PetalsError, match="here: the image is damaged or cut short")
    with mock.patch.object(images, "_MARKER", wraps=images._MARKER) as marker, broken:
        decode(data[:2] + b"\xff\xfe\0\2" * 100_000 + data[2:], "here")
    assert marker.search.call_count <= images.MOST_SEGMENTS + 1


def of_samsungs(data: bytes) -> bytes:
    """As their phones write it: the header of the scan ends in zeros."""
    end = data.index(b"\xff\xda") + 2
    end += int.from_bytes(data[end : end + 2])
    return data[: end - 3] + bytes(3) + data[end:]


FAULTS = {
    "samsung": of_samsungs,
    "jfif 2.01": lambda data: data.replace(b"JFIF\0\1\1", b"JFIF\0\2\1", 1),
    "zeros between segments": lambda data: data.replace(b"\xff\xdb", bytes(5) + b"\xff\xdb", 1),
    "all of them": lambda data: FAULTS["jfif 2.01"](of_samsungs(data[:-2] + bytes(30) + data[-2:])),
}


@pytest.mark.parametrize("fault", ["jfif 2.01", "zeros between segments"])
def test_what_is_put_right_leaves_the_scans_of_a_progressive_jpeg_alone(fault: str):
    data = encoded(photograph(480, 640), "JPEG", progressive=True)
    np.testing.assert_array_equal(decode(FAULTS[fault](data), "here"), decode(data, "here"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("least", [None, 60])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_cameras_write_wrongly_beside_the_pixels_is_passed_over(fault: Callable, least: int | None, mode: str):
    data = encoded(photograph(480, 640).convert(mode), "JPEG")
    with pytest.raises(ValueError):
        decode_jpeg(fault(data))
    np.testing.assert_array_equal(decode(fault(data), "here", least), decode(data, "here", least))
    for length in range(len(data) // 8, len(data), len(data) // 4):
        with pytest.raises(PetalsError, match="here: the image is damaged or cut short"):
            decode(fault(data)[:length], "here", least)


def test_want_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch):
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "decode_jpeg", greedy)
    with pytest.raises(MemoryError):
        decode(encoded(photograph(), "JPEG"), "here")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_the_image_upright(orientation: int, format: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(), format, exif=exif)
    pixels = decode(data, "here")
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"Exif\0\0nonsense"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_unreadable_exif_is_passed_over(exif: bytes, format: str):
    data = encoded(photograph(), format, exif=exif)
    assert decode(data, "here").shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("L", "PNG"), ("RGB", "PNG"), ("RGB", "WEBP")],
)
def test_other_modes_and_formats_become_rgb(mode: str, format: str):
    data = encoded(photograph().convert(mode), format)
    np.testing.assert_array_equal(decode(data, "here"), by_pillow(data))


def test_cmyk_is_near_the_colours_it_was_made_from():
    pixels = decode(encoded(photograph().convert("CMYK"), "JPEG", quality=95), "here")
    assert np.abs(pixels.astype(int) - np.asarray(photograph())).mean() < 4


def test_sixteen_bit_png_is_scaled():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2)
    grey = encoded(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(decode(grey, "here"), expected)
    triples = np.repeat(values[..., None], 3, axis=2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in triples)
    np.testing.assert_array_equal(decode(png(16, 16, 16, 2, rows), "here"), expected)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_what_is_transparent_is_laid_on_white(format: str):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, 2:, 3] = 255
    data = encoded(Image.fromarray(pixels), format, lossless=True)
    expected = np.full((4, 4, 3), 255, np.uint8)
    expected[:, 2:] = 0
    np.testing.assert_array_equal(decode(data, "here"), expected)


def test_a_transparent_colour_of_a_palette_is_laid_on_white():
    image = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 9, 9, 9])
    pixels = decode(encoded(image, "PNG", transparency=0), "here")
    assert pixels[0, 0].tolist() == [9, 9, 9]
    assert pixels[0, 1].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_is_read():
    frames = [photograph(seed=seed) for seed in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode(data, "here"), np.asarray(frames[0]))


def test_a_jpeg_of_several_pictures_is_read_as_its_first():
    data = encoded(photograph(), "MPO", save_all=True, append_images=[photograph(seed=1)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(decode(data, "here"), by_pillow(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"not an image at all" * 10, encoded(photograph(), "GIF"), encoded(photograph(), "TIFF")],
)
def test_what_is_no_image(data: bytes):
    message = fault(data)
    assert ("empty (0 bytes)" if not data else "not a JPEG, PNG or WebP image") in message


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("L", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "WEBP", {"save_all": True, "append_images": [photograph(seed=1)]}),
    ],
)
def test_an_image_cut_short_is_refused_wherever_it_ends(mode: str, format: str, options: dict):
    data = encoded(photograph().convert(mode), format, **options)
    # A PNG ends in checksums and a closing mark, without which its pixels are still all there.
    last = len(data) - 32 if format == "PNG" else len(data)
    for length in [*range(1, last, 13), last - 1]:
        fault(data[:length])


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_cut_short_and_closed_is_not_filled_with_grey(options: dict):
    data = encoded(photograph(), "JPEG", **options)
    assert "damaged or cut short" in fault(data[: len(data) // 2] + b"\xff\xd9")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damage_gives_pixels_or_one_error(format: str):
    whole = encoded(photograph(), format)
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        try:
            pixels = decode(bytes(data), "here")
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
        except PetalsError as error:
            assert str(error).startswith("here: ")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(photograph(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(photograph(), "WEBP", save_all=True, append_images=[photograph(seed=1)]))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        jpeg_claiming(60_000, 60_000),
        jpeg_claiming(10_001, MAX_PIXELS // 10_000),
        png(60_000, 60_000, 8, 2, b""),
        png(10_001, MAX_PIXELS // 10_000, 8, 2, b""),
        webp_claiming(16_383, 16_383),
    ],
    ids=["jpeg", "jpeg-little", "png", "png-little", "webp"],
)
def test_a_header_that_claims_too_much_is_refused(data: bytes, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("petals.images.decode_jpeg", never)
    monkeypatch.setattr("petals.images._to_rgb", never)
    assert f"claims more than {MAX_PIXELS // 10**6} million pixels" in fault(data)


def keys_bicubic(source: int, target: int) -> np.ndarray:
    """The target × source weights of Keys' cubic (a = -0.5), widened for reduction, in float64."""
    scale = source / target
    widen = max(scale, 1.0)
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * scale
        first, last = max(0, int(centre - 2 * widen + 0.5)), min(source, int(centre + 2 * widen + 0.5))
        x = np.abs(np.arange(first, last) + 0.5 - centre) / widen
        near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
        weight = np.where(x < 1, near, np.where(x < 2, far, 0))
        weights[row, first:last] = weight / weight.sum()
    return weights


@pytest.mark.parametrize("resize", [images.bicubic, resizing.bicubic])
@pytest.mark.parametrize(("side", "size"), [(192, 128), (331, 128), (1000, 96), (64, 96), (3, 8), (1, 4)])
def test_square_resizes_as_the_filter_is_defined(side: int, size: int, resize: Callable):
    image = np.asarray(photograph(side, side))
    weights = keys_bicubic(side, size)
    exact = np.einsum("ih,hwc,jw->ijc", weights, image.astype(float), weights, optimize=True)
    difference = np.abs(square(image, size, resize) - np.clip(exact, 0, 255))
    assert difference.max() < 4  # it rounds and clips between its two passes
    assert difference.mean() < 0.5


@pytest.mark.parametrize(("height", "width"), [(10, 17), (17, 10), (10, 10), (11, 14)])
def test_square_takes_the_centre(height: int, width: int):
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    side = min(height, width)
    cut = square(image, side)
    top, left = (height - side) // 2, (width - side) // 2
    np.testing.assert_array_equal(cut, image[top : top + side, left : left + side])
    assert cut.flags.c_contiguous
    resized = square(image, 6)
    assert resized.shape == (6, 6, 3) and resized.dtype == np.uint8 and resized.flags.writeable


@pytest.mark.parametrize("size", [64, 128, 300])
def test_both_resizes_agree(size: int):
    image = np.asarray(photograph(192, 192))
    ours, pillows = (resize(image, size).astype(int) for resize in (resizing.bicubic, images.bicubic))
    assert np.abs(ours - pillows).max() <= 2
    assert (ours != pillows).mean() < 0.02


@pytest.mark.real
def test_real_photographs_have_the_pixels_that_pillow_finds(shared_data: Path):
    path = shared_data / "oxford17" / "tfrecords-jpeg-192x192" / "val" / "00-192x192-102.tfrec"
    for _, payload in read_records(path):
        data = decode_example(payload)["image"][0]
        np.testing.assert_array_equal(decode(data, "here"), by_pillow(data))


@pytest.mark.real
@pytest.mark.parametrize("size", [64, 128, 224])
def test_of_real_photographs_reduced_decoding_is_hardly_seen(shared_data: Path, size: int):
    """At 64 px, where all comes from one coefficient of a block, it is seen most."""
    path = shared_data / "oxford17-large" / "tfrecords-jpeg-512x512" / "val" / "00-512x512-17.tfrec"
    for _, payload in read_records(path):
        data = decode_example(payload)["image"][0]
        reduced, whole = (square(decode(data, "here", least), size).astype(float) for least in (size, None))
        assert 10 * np.log10(255**2 / np.mean((reduced - whole) ** 2)) > 36


def test_jfif_before_its_first_version_is_passed_over():
    data = encoded(photograph(64, 64), "JPEG")
    older = data.replace(b"JFIF\0\1\1", b"JFIF\0\0\1", 1)
    assert older != data and np.array_equal(decode(older, "x"), decode(data, "x"))


def test_an_extended_frame_is_sequential_too():
    """So a scan header of zeros is mended in it as well."""
    data = encoded(photograph(64, 64), "JPEG").replace(b"\xff\xc0", b"\xff\xc1", 1)
    at = data.index(b"\xff\xda")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
    assert np.array_equal(decode(data[: end - 3] + b"\0\0\0" + data[end:], "x"), decode(data, "x"))
