"""One photograph of a flower: where it stands, how it is lit and what the camera does to it."""

import io
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from petals.flowers import CLASS_NAMES
from petals.sample.canvas import Light, Pose, Vector, paint_bloom, paint_leaf
from petals.sample.exact import around, between, blur, cos, enlarge, generator, pick, sin, smooth
from petals.sample.florist import Bloom
from petals.sample.forms import bloom
from petals.sample.kinds import LOOKS
from petals.sample.scenery import GREENS, LEAF_SHAPES, background, leaf_texture, leaf_width, occlude, stem_texture
from petals.seeding import seed_for

_DETAIL = 2  # pixels painted for each pixel of the picture, each way


def photograph(label: int, size: int, seed: int) -> np.ndarray:
    """Render a picture of the kind `label`: uint8, size × size × 3. The same seed gives the same picture."""
    rng = generator(seed)
    side = size * _DETAIL
    turn, high = between(rng, 0, 1), between(rng, 0.35, 0.9)
    low = math.sqrt(1 - high * high)
    light = Light((low * cos(turn), low * sin(turn), high), between(rng, 0.55, 0.8), between(rng, 0.25, 0.6))
    flower = bloom(label, int(rng.random() * len(LOOKS[label].colours)))
    wash = 1 + around(rng, 0.1)  # some blooms are paler or deeper than others
    tint = (wash + around(rng, 0.06), wash + around(rng, 0.06), wash + around(rng, 0.06))

    canvas = np.zeros((4, side, side), np.float32)
    canvas[:3] = enlarge(background(flower, side // 4, light, tint, rng), side)
    _paint_plant(canvas, label, flower, light, tint, rng)
    if rng.random() < 0.3:
        occlude(canvas[:3], light, rng)
    return _camera(canvas[:3], rng)


def _paint_plant(
    canvas: np.ndarray, label: int, flower: Bloom, light: Light, tint: Vector, rng: np.random.Generator
) -> None:
    """Paint the plant in focus: stem, leaves and its one or many blooms."""
    side = canvas.shape[1]
    kind = generator(seed_for("plant", CLASS_NAMES[label]))
    green, shape, leafy = int(kind.random() * len(GREENS)), pick(kind, LEAF_SHAPES), between(kind, 1, 5)
    x, y = side * (0.5 + around(rng, 0.12)), side * (0.5 + around(rng, 0.1))
    zoom = between(rng, 0.26, 0.46) if rng.random() < 0.85 else between(rng, 0.46, 0.62)
    radius, lean = side * zoom * flower.size, around(rng, 0.06)

    length, slant = 1.3 * side, lean + around(rng, 0.015)
    foot = (x + length * sin(slant), y + length * cos(slant))
    thick = side * between(kind, 0.012, 0.026)
    paint_leaf(canvas, stem_texture(green), foot, 0.25 + slant, length, thick, light, rng)
    for _ in range(int(leafy * between(rng, 0.3, 1.2))):
        foot = (x + around(rng, 0.2) * radius, y + radius * between(rng, 0.2, 1))
        angle, reach = between(rng, -0.15, 0.65), radius * between(rng, 0.9, 1.6)
        paint_leaf(canvas, leaf_texture(green, shape), foot, angle, reach, reach * leaf_width(shape), light, rng)

    low, high = flower.tilt
    for dx, dy, share, bow in _arrangement(LOOKS[label].habit, kind, rng):
        roll = around(rng, 0.03) if flower.fixed else between(rng, 0, 1)
        tilt = low + (high - low) * between(rng, 0, 1.2)
        pose = Pose(x + dx * radius, y + dy * radius, share * radius, roll, tilt, lean + bow)
        paint_bloom(canvas, flower, pose, light, rng, tint, disorder=1.0 if share > 0.5 else 0.7)


def _arrangement(
    habit: str, kind: np.random.Generator, rng: np.random.Generator
) -> Iterator[tuple[float, float, float, float]]:
    """Yield the place, size (both in radii) and lean (turns) of each bloom of a plant, the hindmost first."""
    if habit == "spike":
        count = pick(kind, (7, 9, 11))
        for i in range(count):
            up = i / (count - 1)
            dx = (0.3 if i % 2 else -0.3) * (1 - 0.6 * up) + around(rng, 0.08)
            yield dx, 1.0 - 1.9 * up, 0.55 * (1 - 0.65 * up), -0.22 * dx
    elif habit == "cluster":
        count, share = pick(kind, (6, 8, 10)) + pick(rng, (-2, 0, 2)), between(kind, 0.36, 0.5)
        for i in range(count):  # a spiral by the golden angle, its middle last
            out, turn = math.sqrt((count - 1 - i) / count), 0.381966 * i
            dx, dy = 0.85 * out * cos(turn) + around(rng, 0.08), 0.7 * out * sin(turn) + around(rng, 0.08)
            yield dx, dy, share, around(rng, 0.06) - 0.16 * dx
    else:
        if rng.random() < 0.18:  # a neighbour, partly seen
            yield pick(rng, (-1.5, 1.5)), between(rng, -1, 1), 0.8, 0.0
        yield 0.0, 0.0, 1.0, 0.0


def _camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Expose, sharpen or blur, add noise: float32 3 × 2S × 2S to uint8 S × S × 3."""
    image = 0.25 * (image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2])
    size = image.shape[-1]
    if rng.random() < 0.35:  # the shade of leaves above
        dapple = enlarge(rng.random((6, 6)).astype(np.float32), size)
        image = image * (1 - between(rng, 0.2, 0.5) * smooth((dapple - 0.5) * 5))
    falloff = enlarge(rng.random((2, 2)).astype(np.float32) - 0.5, size)
    image = image * (1 + 0.35 * falloff)
    if rng.random() < 0.3:
        image = blur(image, pick(rng, ((1,), (1,), (1, 1), (1, 2))))
    exposure, warmth, haze = 1 + around(rng, 0.22), around(rng, 0.1), max(0.0, around(rng, 0.08))
    gain = np.array([exposure * (1 + warmth), exposure, exposure * (1 - warmth)], np.float32)
    image = np.clip(image * gain[:, None, None], 0, 1.25)
    image = image / (0.75 + 0.25 * image) * 0.95  # highlights roll off
    image = image * (1 - haze) + haze * 0.8
    contrast = between(rng, 0.0, 0.6)
    image = image + contrast * (smooth(image) - image)
    noise = rng.integers(0, 256, (2, *image.shape), np.uint8).astype(np.float32)
    image = image + (noise[0] + noise[1] - 255) * (between(rng, 0.0, 0.06) / 255)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def jpeg(picture: np.ndarray, quality: int) -> bytes:
    """Encode uint8 H × W × 3. libjpeg-turbo's whole-number DCT gives the same bytes everywhere."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()
