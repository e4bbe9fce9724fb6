"""What flowers are built from: parts on an axis, and the florist who knows one kind's traits."""

from dataclasses import dataclass

import numpy as np

from petals.sample.exact import around, between, generator
from petals.sample.kinds import COLOURS, Look
from petals.sample.petal import OUTLINES, Colour, Paint, disc_texture, mix, petal_texture, stamen_texture


@dataclass(frozen=True)
class Part:
    """One texture and how it stands in the flower: where it points (`angle`, `lift`: turns), its size and place."""

    texture: np.ndarray
    angle: float
    lift: float
    length: float
    width: float  # half of it
    curl: float = 0.0  # how far the tip bends towards the inside (+) or the outside (−), in lengths
    start: float = 0.0  # distance of its base from the axis
    height: float = 0.0
    along: float = 0.0  # moves its base in the bloom's plane, for what grows along a line
    order: float = 0.0  # drawn later where larger, beside what depth says
    loose: float = 1.0  # how much it varies from picture to picture


@dataclass(frozen=True)
class Bloom:
    """A flower in its own frame: z is the axis that it opens along, lengths are in radii of the bloom."""

    parts: tuple[Part, ...]
    tilt: tuple[float, float]  # how far it leans from the viewer, turns
    size: float = 1.0
    fixed: bool = False  # has an upper and a lower side, so it is not turned about its axis


class Florist:
    """What the forms draw from: one kind's look, its traits and its textures."""

    def __init__(self, look: Look, variety: int, seed: int):
        self.look, self.seed = look, seed
        self.rng = generator(seed)
        tip, _, base = look.colours[variety].partition("/")
        self.tip, self.base = self._colour(tip), self._colour(base or tip)
        self.heart = self._colour(look.heart)
        self.reach = between(self.rng, 0.2, 0.55)
        self.strength = between(self.rng, 0.45, 0.8)
        self.girth = between(self.rng, 0.74, 1.05)

    def _colour(self, name: str) -> Colour:
        return tuple(value + around(self.rng, 0.03) for value in COLOURS[name])

    def petal(self, shape: str = "", shade: float = 0.0, plain: bool = False) -> np.ndarray:
        """A texture in the kind's colours; `shade` above 0 mixes in the base colour, below 0 white."""
        other = self.base if shade > 0 else (1.0, 1.0, 1.0)
        tip, base = mix(self.tip, other, abs(shade)), mix(self.base, other, abs(shade))
        mark = "" if plain else self.look.mark
        paint = Paint(tip, base, self.reach, mark, COLOURS[self.look.ink], self.strength)
        return petal_texture(OUTLINES[shape or self.look.shape], paint, self.seed)

    def plain(self, colour: str | Colour, shape: str = "pointed", base: str = "") -> np.ndarray:
        """A texture in another colour, without markings."""
        tip = COLOURS[colour] if isinstance(colour, str) else colour
        return petal_texture(OUTLINES[shape], Paint(tip, COLOURS[base] if base else tip), self.seed)

    def ring(
        self,
        texture: np.ndarray,
        count: int,
        lift: float,
        length: float,
        width: float = 0.0,
        twist: float = 0.0,
        **more: float,
    ) -> list[Part]:
        """Petals evenly around the axis; `width` defaults to what makes neighbours overlap a little."""
        width = width or length * min(0.62, 3.6 / count) * self.girth
        return [Part(texture, (i + twist) / count, lift, length, width, **more) for i in range(count)]

    def disc(
        self,
        radius: float,
        height: float = 0.05,
        grain: float = 0.25,
        order: float = 0.3,
        heart: Colour | None = None,
    ) -> list[Part]:
        """The flower's centre, seen from above."""
        heart = heart or mix(self.heart, COLOURS["green"], between(self.rng, 0, 0.4))
        texture = disc_texture(self.heart, heart, grain, self.seed)
        # A disc is a part that starts on the far side of the axis and is as wide as long.
        return [Part(texture, 0.0, 0.0, 2 * radius, radius, start=-radius, height=height, order=order, loose=0.0)]

    def stamens(
        self, count: int, length: float, lift: float = 0.14, thick: float = 0.035, colour: str = "cream"
    ) -> list[Part]:
        """Threads around the axis, a little at random."""
        texture = stamen_texture(COLOURS[colour], self.heart)
        parts = []
        for i in range(count):
            turn, rise = (i + between(self.rng, 0, 0.6)) / count, lift + around(self.rng, 0.05)
            reach = length * between(self.rng, 0.75, 1.1)
            parts.append(Part(texture, turn, rise, reach, thick, start=0.02, height=0.03, order=0.4))
        return parts
