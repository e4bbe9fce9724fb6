"""What surrounds a flower: leaves and stems, the blurred background, a blade before the lens."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from petals.sample.canvas import Light, Pose, Vector, paint_bloom, paint_leaf
from petals.sample.exact import around, between, blur, enlarge, pick
from petals.sample.florist import Bloom
from petals.sample.petal import OUTLINES, Colour, Paint, mix, petal_texture
from petals.seeding import seed_for

LEAF_SHAPES = ("oval", "pointed", "sharp", "needle", "toothed", "heart")
GREENS = (  # of a leaf's tip and base
    ((0.30, 0.46, 0.18), (0.20, 0.34, 0.14)),
    ((0.20, 0.38, 0.20), (0.13, 0.26, 0.15)),
    ((0.46, 0.56, 0.26), (0.30, 0.42, 0.18)),
    ((0.42, 0.52, 0.42), (0.28, 0.38, 0.30)),
)


@dataclass(frozen=True)
class Scene:
    ground: Colour
    leaves: int
    grain: float = 0.0
    grass: bool = False
    bokeh: bool = False


_FOLIAGE = Scene((0.20, 0.31, 0.13), 16)
_SCENES = (
    _FOLIAGE,
    _FOLIAGE,
    _FOLIAGE,
    Scene((0.34, 0.44, 0.17), 26, grass=True),
    Scene((0.38, 0.29, 0.21), 3, grain=1.0),  # soil
    Scene((0.60, 0.74, 0.92), 2),  # sky
    Scene((0.06, 0.08, 0.06), 5),  # deep shade
    Scene((0.22, 0.32, 0.18), 5, bokeh=True),
    Scene((0.62, 0.58, 0.52), 1, grain=0.3),  # a wall
)


@cache
def leaf_texture(green: int, shape: str) -> np.ndarray:
    """A leaf in one of the GREENS and one of the LEAF_SHAPES."""
    tip, base = GREENS[green]
    paint = Paint(tip, base, 0.3, "veins", mix(tip, (1.0, 1.0, 0.8), 0.25), 0.3)
    return petal_texture(OUTLINES[shape], paint, seed_for("leaf", shape))


@cache
def stem_texture(green: int) -> np.ndarray:
    """A stem in one of the GREENS."""
    return petal_texture(OUTLINES["needle"], Paint(*GREENS[green]), seed_for("stem"))


def leaf_width(shape: str) -> float:
    """Half the width of a leaf, in lengths."""
    return 0.065 if shape == "needle" else 0.24


def background(flower: Bloom, side: int, light: Light, tint: Vector, rng: np.random.Generator) -> np.ndarray:
    """Paint what is out of focus behind the flower: float32, 3 × side × side."""
    scene = pick(rng, _SCENES)
    level = between(rng, 0.75, 1.3)
    ground = np.array([value * level * (1 + around(rng, 0.12)) for value in scene.ground], np.float32)
    clouds = enlarge(rng.random((4, 5, 5)).astype(np.float32) - 0.5, side)
    grain = blur(rng.random((side, side)).astype(np.float32) - 0.5, (1,))
    canvas = np.zeros((4, side, side), np.float32)
    canvas[:3] = ground[:, None, None] * (1 + 0.5 * clouds[:1] + 0.2 * clouds[1:]) * (1 + scene.grain * grain)
    for _ in range(int(scene.leaves * between(rng, 0.5, 1.3))):
        shape = "needle" if scene.grass else pick(rng, LEAF_SHAPES)
        foot = (side * between(rng, -0.1, 1.1), side * between(rng, 0.0, 1.2))
        angle = between(rng, 0.15, 0.35) if scene.grass else between(rng, 0, 1)
        length = side * between(rng, 0.25, 0.7)
        leaf = leaf_texture(int(rng.random() * len(GREENS)), shape)
        shade = between(rng, 0.35, 1.15)
        paint_leaf(canvas, leaf, foot, angle, length, length * leaf_width(shape), light, rng, shade)
    if rng.random() < 0.35:  # its own kind, further off
        for _ in range(pick(rng, (1, 2, 3))):
            x, y, radius = between(rng, 0, 1), between(rng, 0, 1), between(rng, 0.1, 0.2)
            roll, tilt, lean = between(rng, 0, 1), between(rng, *flower.tilt), around(rng, 0.05)
            paint_bloom(canvas, flower, Pose(side * x, side * y, side * radius, roll, tilt, lean), light, rng, tint)
    image = canvas[:3]
    if scene.bokeh:
        return blur(image + _bokeh(side, rng), (1,))
    return blur(image, pick(rng, ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))))


def _bokeh(side: int, rng: np.random.Generator) -> np.ndarray:
    """Discs of light: float32, side × side."""
    x = np.arange(side, dtype=np.float32)
    y = x[:, None]
    glow = np.zeros((side, side), np.float32)
    for _ in range(pick(rng, (8, 14, 20))):
        dx, dy = x - side * between(rng, 0, 1), y - side * between(rng, 0, 1)
        radius, strength = side * between(rng, 0.03, 0.1), between(rng, 0.05, 0.25)
        glow += strength * np.clip(radius - np.sqrt(dx * dx + dy * dy) + 0.5, 0, 1)
    return glow


def occlude(image: np.ndarray, light: Light, rng: np.random.Generator) -> None:
    """Lay a blade or a leaf, out of focus, before the flower: float32, 3 × side × side, changed in place."""
    small = image.shape[-1] // 4
    green, shape = int(rng.random() * len(GREENS)), pick(rng, ("needle", "sharp", "pointed"))
    # All of the veil is green, and it is clear but for the leaf: so the blur brings in no other colour.
    veil = np.zeros((4, small, small), np.float32)
    veil[:3] = np.array(GREENS[green][0], np.float32)[:, None, None]
    foot, length = (small * between(rng, 0, 1), small * 1.05), small * between(rng, 0.4, 1.0)
    paint_leaf(veil, leaf_texture(green, shape), foot, between(rng, 0.12, 0.38), length, length * 0.07, light, rng)
    veil = enlarge(blur(veil, (1, 2)), image.shape[-1])
    image += veil[3] * (veil[:3] - image)
