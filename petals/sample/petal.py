"""One petal as a flat texture: its outline, its colours and its markings.

A texture is float32, 5 × HEIGHT × WIDTH: red, green and blue times opacity, opacity, and the
soft shadow around the outline.
Rows run along the petal (t = 0 at its base, 1 at its tip) and columns across it (s = −1…1), both with a
margin, so that the outermost cells are always clear. Leaves, stamens, discs and stems are petals too.
"""

from dataclasses import dataclass

import numpy as np

from petals.sample.exact import between, blur, enlarge, generator, smooth, waves

HEIGHT, WIDTH = 96, 64
T_MARGIN, S_MARGIN = 0.16, 0.3

Colour = tuple[float, float, float]

_t = ((np.arange(HEIGHT, dtype=np.float32) + 0.5) / HEIGHT * (1 + 2 * T_MARGIN) - T_MARGIN)[:, None]
_s = ((np.arange(WIDTH, dtype=np.float32) + 0.5) / WIDTH * 2 - 1)[None] * (1 + S_MARGIN)


@dataclass(frozen=True)
class Outline:
    """The half-width along a petal: `base` at t = 0, 1 at t = `widest`, 0 at the tip."""

    base: float = 0.3
    widest: float = 0.62
    blunt: float = 1.0  # 1: a round tip, 0: a pointed one
    notch: float = 0.0  # depth of the cut in the tip; below 0 a drawn-out point
    ruffle: float = 0.0
    teeth: float = 0.0


OUTLINES = {
    "round": Outline(0.28, 0.6, 1.0),
    "broad": Outline(0.5, 0.62, 1.0, ruffle=0.02),
    "oval": Outline(0.3, 0.5, 0.75),
    "pointed": Outline(0.35, 0.42, 0.1),
    "sharp": Outline(0.5, 0.3, 0.0, notch=-0.06),
    "heart": Outline(0.2, 0.68, 1.0, notch=0.16),
    "strap": Outline(0.6, 0.7, 0.9),
    "toothed": Outline(0.4, 0.74, 1.0, teeth=0.07),
    "ruffled": Outline(0.4, 0.66, 1.0, ruffle=0.07),
    "spoon": Outline(0.35, 0.8, 1.0),
    "fan": Outline(0.5, 0.8, 0.9, notch=0.03, ruffle=0.03),
    "needle": Outline(0.9, 0.25, 0.15),
}


@dataclass(frozen=True)
class Paint:
    """The colours of a petal and what is drawn on it."""

    tip: Colour
    base: Colour
    reach: float = 0.35  # how far up the petal the base colour goes
    mark: str = ""  # "veins", "spots", "stripe", "edge", "eye", "checks" or nothing
    ink: Colour = (0.4, 0.1, 0.2)
    strength: float = 0.5


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def _half_width(o: Outline, t: np.ndarray) -> np.ndarray:
    rise = np.where(t < o.widest, o.base + (1 - o.base) * 2 * smooth(t / (2 * o.widest)), 1)
    u = np.clip((t - o.widest) / (1 - o.widest), 0, 1)
    fall = o.blunt * np.sqrt(1 - u * u) + (1 - o.blunt) * (1 - u) * (1 + 0.5 * u)
    return np.where((t < -0.04) | (t > 1), -0.2, rise * fall)


def _mottle(seed: int, cells: int) -> np.ndarray:
    """Smooth noise about 0, HEIGHT × WIDTH."""
    coarse = generator(seed).random((cells, cells)).astype(np.float32) - 0.5
    return enlarge(coarse, HEIGHT)[:, :WIDTH]


def _markings(paint: Paint, across: np.ndarray, seed: int) -> np.ndarray:
    """How much of the ink shows, 0…1."""
    rng = generator(seed)
    t, wide = np.clip(_t, 0, 1), np.abs(across)
    if paint.mark == "veins":
        count = between(rng, 2.5, 5)
        fan = across * (1.15 - 0.5 * t) * count
        return smooth((waves(fan + 0.15 * waves(t + 0 * across)) - 0.55) * 3) * smooth(1.3 - 1.1 * t)
    if paint.mark == "spots":
        noise = _mottle(seed, 26)
        return smooth((noise - 0.2) * 14) * smooth(1.6 - 1.5 * t - 0.6 * wide) * smooth(8 * t)
    if paint.mark == "checks":
        return smooth(waves(_t * 7 + 0 * _s) * waves(_s * 3 + 0 * _t) * 4 + 0.5)
    if paint.mark == "stripe":
        return smooth((0.34 - wide) * 6) * smooth(1.35 - t)
    if paint.mark == "edge":
        return smooth((wide - between(rng, 0.55, 0.7)) * 5) * smooth(3 * t) + smooth((t - 0.86) * 9)
    if paint.mark == "eye":
        reach = between(rng, 0.28, 0.42)
        return smooth((reach - t + 0.05 * waves(across * 2)) * 12)
    return np.zeros_like(t * across)


def petal_texture(outline: Outline, paint: Paint, seed: int) -> np.ndarray:
    """Draw a petal: float32, 5 × HEIGHT × WIDTH."""
    phase = between(generator(seed), 0, 1)
    t = _t + 0.8 * outline.notch * np.clip(1 - np.abs(_s) * 2.2, -0.2, 1) * np.clip(_t, 0, 1)
    t = t + outline.ruffle * waves(_s * 1.6 + phase) * _t + outline.teeth * np.abs(waves(_s * 2.6 + phase))
    width = _half_width(outline, t)
    s = _s + outline.ruffle * waves(_t * 2.7 + phase)
    inside = np.minimum(width - np.abs(s), (1.0 - t) * 1.5)
    across = s / np.maximum(width, 0.08)

    texture = np.empty((5, HEIGHT, WIDTH), np.float32)
    to_tip = smooth((np.clip(_t, 0, 1) - paint.reach * 0.4) / max(paint.reach * 1.2, 0.05) + 0 * _s)
    inked = paint.strength * np.clip(_markings(paint, np.clip(across, -1.2, 1.2), seed), 0, 1)
    # A crease down the middle, fine veining and a darker rim give the petal a surface.
    surface = 1 + 0.1 * _mottle(seed + 1, 9) + 0.035 * waves(across * 6 + 0 * _t) - 0.07 * smooth(1 - np.abs(s) * 9)
    surface = (surface - 0.12 * smooth(1 - inside * 9)) * (0.8 + 0.2 * smooth(_t * 4 + 0.2))
    for channel in range(3):
        colour = paint.base[channel] + to_tip * (paint.tip[channel] - paint.base[channel])
        colour = colour + inked * (paint.ink[channel] - colour)
        texture[channel] = colour * surface
    texture[3] = np.clip(inside * 14 + 0.5, 0, 1)
    texture[4] = smooth(inside * 4 + 0.9)
    return _finished(texture)


def disc_texture(rim: Colour, heart: Colour, grain: float, seed: int) -> np.ndarray:
    """Draw a round centre seen from above, studded with florets: float32, 5 × HEIGHT × WIDTH."""
    x, y = 2 * _t - 1 + 0 * _s, _s + 0 * _t
    radius = np.sqrt(x * x + y * y)
    texture = np.empty((5, HEIGHT, WIDTH), np.float32)
    studs = 1 + grain * (waves(x * 4.5 + 0.5 * y) * waves(y * 4.5 - 0.5 * x) * (0.3 + 0.7 * radius))
    studs = studs + 0.5 * grain * _mottle(seed, 20)
    dome = 1.1 - 0.45 * radius * radius
    out = smooth((radius - 0.15) * 1.6)
    for channel in range(3):
        texture[channel] = (heart[channel] + out * (rim[channel] - heart[channel])) * studs * dome
    inside = 1 - radius + 0.03 * waves(x * 5) * waves(y * 5)
    texture[3] = np.clip(inside * 16 + 0.5, 0, 1)
    texture[4] = smooth(inside * 4 + 0.9)
    return _finished(texture)


def stamen_texture(filament: Colour, anther: Colour) -> np.ndarray:
    """Draw a thread with a knob at its end: float32, 5 × HEIGHT × WIDTH."""
    texture = np.empty((5, HEIGHT, WIDTH), np.float32)
    knob = smooth((_t - 0.8) * 30 + 0 * _s)
    u = (_t - 0.9) * 10
    width = np.where(_t < 0.8, 0.34, np.sqrt(np.clip(1 - u * u, 0, 1)))
    inside = np.where((_t > 0) & (_t < 1), width - np.abs(_s), -1.0)
    for channel in range(3):
        colour = filament[channel] + knob * (anther[channel] - filament[channel])
        texture[channel] = colour * (1 - 0.25 * _s)
    texture[3] = np.clip(inside * 5 + 0.5, 0, 1)
    texture[4] = 0.6 * smooth(inside * 3 + 0.9)
    return _finished(texture)


def _finished(texture: np.ndarray) -> np.ndarray:
    texture[4] = blur(texture[4], (1, 2))
    texture[3:, [0, -1]] = 0
    texture[3:, :, [0, -1]] = 0
    texture[:3] *= texture[3]
    return texture
