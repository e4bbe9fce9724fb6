"""Flowers that are the same all around: petals in rows about an axis."""

from petals.sample.exact import around, between, pick
from petals.sample.florist import Bloom, Florist, Part
from petals.sample.kinds import COLOURS
from petals.sample.petal import OUTLINES, Paint, mix, petal_texture, stamen_texture


def flat(f: Florist) -> Bloom:
    """One row of petals, spread flat."""
    n = f.look.petals
    parts = f.ring(f.petal(), n, between(f.rng, 0.0, 0.06), 1.0, curl=around(f.rng, 0.08), start=0.04)
    if n >= 8:
        parts += f.ring(f.petal(shade=0.15), n, 0.05, 0.9, start=0.04, twist=0.5)[: n // 2]
    radius = between(f.rng, 0.1, 0.2) if n < 8 else 0.22
    parts += f.disc(radius, 0.06)
    if f.look.habit == "single":
        parts += f.stamens(pick(f.rng, (8, 12, 18)), between(f.rng, 0.26, 0.42))
    return Bloom(tuple(parts), (0.0, 0.13))


def daisy(f: Florist) -> Bloom:
    """Rows of narrow rays about a disc of florets."""
    n, long = f.look.petals, between(f.rng, 0.92, 1.0)
    radius = f.look.middle or between(f.rng, 0.22, 0.33)
    width = 3.3 / n * f.girth * (0.8 if n > 20 else 0.9)
    parts = f.ring(f.petal(shade=0.25), n, -0.01, long - radius * 0.6, width, start=radius * 0.6, twist=0.5)
    parts += f.ring(f.petal(), n, 0.02, long - radius * 0.6, width, start=radius * 0.6, curl=around(f.rng, 0.1))
    if 28 <= n < 40:
        parts += f.ring(f.petal(shade=0.4), n // 2, 0.06, 0.62 - radius * 0.4, width, start=radius * 0.6)
    return Bloom(tuple(parts + f.disc(radius, 0.05, 0.4)), (0.0, 0.13))


def cone(f: Florist) -> Bloom:
    """Hanging rays below a high dome."""
    parts = f.ring(f.petal(), f.look.petals, -0.05, 0.85, 0.16, start=0.2, curl=-0.25)
    orange = COLOURS["orange"]
    for step, radius in enumerate((0.36, 0.33, 0.27, 0.18)):
        parts += f.disc(radius, 0.06 + 0.08 * step, 0.5, 0.3 + 0.1 * step, mix(f.heart, orange, 0.25 * step))
    return Bloom(tuple(parts), (0.06, 0.2))


def double(f: Florist) -> Bloom:
    """Whorl within whorl, each shorter and more upright, as in roses and dahlias."""
    n, parts = f.look.petals, []
    whorls = 3 if n < 20 else 4 if n < 30 else 5
    closed = between(f.rng, 0.11, 0.2)
    for whorl in range(whorls):
        far = 1 - whorl / whorls
        count = max(3, round(n * far / (0.5 * (whorls + 1))))
        texture = f.petal(shade=0.5 * (1 - far))
        lift = closed * (1 - far) + 0.01 * whorl
        length = 0.3 + 0.7 * far
        width = length * min(0.68, 4.2 / count) * f.girth
        parts += f.ring(
            texture, count, lift, length, width, curl=0.25 * (1 - far), twist=0.37 * whorl, order=0.12 * whorl
        )
    if n >= 40 or f.look.shape == "round":
        parts += f.disc(0.14, 0.12, 0.5, 1.0)
    return Bloom(tuple(parts), (0.0, 0.12))


def lotus(f: Florist) -> Bloom:
    """Pointed petals in rising rows about a seed head."""
    n = f.look.petals
    parts = f.ring(f.petal(), n // 2, 0.03, 1.0, 0.3, curl=0.15)
    parts += f.ring(f.petal(shade=-0.15), n // 3, 0.08, 0.9, 0.28, curl=0.15, twist=0.5)
    parts += f.ring(f.petal(shade=-0.3), max(4, n // 5), 0.13, 0.7, 0.22, curl=0.1)
    return Bloom(tuple(parts + f.disc(0.17, 0.16) + f.stamens(18, 0.3, 0.13)), (0.03, 0.17))


def cup(f: Florist) -> Bloom:
    """Upright petals that close to a cup, mostly seen from the side."""
    n, lift = f.look.petals, between(f.rng, 0.13, 0.18)
    inner = f.ring(f.petal(shade=0.12), (n + 1) // 2, lift + 0.015, 1.1, 0.46, curl=0.28, start=0.08)
    outer = f.ring(f.petal(), n // 2, lift, 1.15, 0.48, curl=0.22, start=0.1, twist=0.5)
    return Bloom(tuple(inner + outer + f.disc(0.12, 0.05, order=0) + f.stamens(6, 0.4, 0.2)), (0.08, 0.22), 0.9)


def lily(f: Florist) -> Bloom:
    """Three petals before three sepals, bent back, with long stamens."""
    half = (f.look.petals + 1) // 2
    lift, curl = between(f.rng, 0.03, 0.1), -between(f.rng, 0.1, 0.4)
    wide = between(f.rng, 0.24, 0.36)
    parts = f.ring(f.petal(shade=0.1), half, lift, 1.05, wide, curl=curl)
    parts += f.ring(f.petal(), f.look.petals - half, lift + 0.01, 1.0, wide * 1.2, curl=curl, twist=0.5, order=0.1)
    parts += f.stamens(6, between(f.rng, 0.55, 0.75), 0.13, 0.05, "palegreen")
    return Bloom(tuple(parts), (0.0, 0.15))


def trumpet(f: Florist) -> Bloom:
    """Petals grown together around a deep throat."""
    n = f.look.petals
    parts = f.ring(f.petal(), n, 0.05, 1.0, 0.66 if f.look.shape in ("fan", "broad", "round") else 0.52, curl=-0.14)
    throat = mix(f.base, COLOURS["darkgreen"], 0.5)
    parts += f.disc(between(f.rng, 0.16, 0.24), 0.07, 0.1, 0.3, throat) + f.stamens(3, 0.2, 0.2, 0.04)
    return Bloom(tuple(parts), (0.02, 0.15))


def corona(f: Florist) -> Bloom:
    """A ring of tepals behind a frilled tube, as in daffodils."""
    parts = f.ring(f.petal(), f.look.petals, 0.0, 1.0, 0.36)
    tube = petal_texture(OUTLINES["toothed"], Paint(f.heart, mix(f.heart, COLOURS["orange"], 0.4)), f.seed)
    parts += f.disc(0.3, 0.04, 0.1, 0.2, mix(f.heart, COLOURS["brown"], 0.5))
    parts += f.ring(tube, 7, 0.17, 0.55, 0.24, start=0.22, order=0.4, curl=-0.2)
    return Bloom(tuple(parts + f.stamens(4, 0.3, 0.2)), (0.0, 0.2))


def column(f: Florist) -> Bloom:
    """Five broad petals about a long column of stamens, as in hibiscus."""
    bloom = flat(f)
    parts = [part for part in bloom.parts if part.order < 0.3]
    style = f.plain(mix(f.tip, f.heart, 0.4), "needle")
    parts += [Part(style, 0.2, 0.12, 0.75, 0.06, order=0.5)]
    knobs = stamen_texture(COLOURS["blush"], f.heart)
    parts += [Part(knobs, 0.2 + around(f.rng, 0.09), 0.12, 0.5 + 0.035 * i, 0.035, order=0.6) for i in range(9)]
    return Bloom((*parts, *f.disc(0.12, 0.02, heart=f.base)), bloom.tilt)


def reflexed(f: Florist) -> Bloom:
    """Petals swept back, as in cyclamen: the flower nods and they stand up."""
    parts = f.ring(f.petal(), f.look.petals, -0.17, 1.05, 0.34, start=0.1, curl=0.1)
    return Bloom(tuple(parts + f.disc(0.2, 0.02, 0.1)), (-0.24, -0.12), 0.95)


def bell(f: Florist) -> Bloom:
    """Petals that close to a tube and hang."""
    parts = f.ring(f.petal(), f.look.petals, 0.2, 1.3, 0.5, start=0.12, curl=0.1 if f.look.habit == "single" else -0.1)
    return Bloom(tuple(parts + f.disc(0.2, 0.02, 0.1, -0.1) + f.stamens(3, 0.9, 0.24)), (-0.23, -0.11), 0.85)
