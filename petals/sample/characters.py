"""Flowers with a build of their own: with an upper and a lower side, heads of many florets, bracts."""

from petals.sample.exact import around, between
from petals.sample.florist import Bloom, Florist, Part
from petals.sample.kinds import COLOURS
from petals.sample.petal import OUTLINES, Paint, mix, petal_texture


def orchid(f: Florist) -> Bloom:
    """Three sepals, two broad petals and a lip."""
    wide = f.petal("round" if f.look.shape == "oval" else f.look.shape)
    sepal, lip = f.petal("oval", 0.15), f.plain(mix(f.heart, f.tip, 0.15), "fan", "yellow")
    parts = [Part(sepal, a, 0.02, 0.95, 0.3) for a in (0.25, 0.62, 0.88)]
    parts += [Part(wide, a, 0.03, 1.05, 0.55, 0.05, order=0.2) for a in (0.03, 0.47)]
    parts += [Part(lip, 0.75, 0.06, 0.62, 0.34, 0.2, order=0.5)]
    parts += [Part(lip, a, 0.12, 0.3, 0.16, 0.2, order=0.6) for a in (0.08, 0.42)]
    return Bloom((*parts, *f.disc(0.09, 0.1, 0.1, 0.7)), (0.0, 0.09), fixed=True)


def pansy(f: Florist) -> Bloom:
    """Two petals behind, three in front that make a face."""
    back = f.petal(shade=-0.05, plain=True)
    face = petal_texture(OUTLINES["round"], Paint(f.base, f.heart, 0.5, "veins", COLOURS["black"], 0.8), f.seed)
    parts = [Part(back, a, 0.0, 0.95, 0.52) for a in (0.17, 0.33)]
    parts += [Part(face, a, 0.02, 0.85, 0.45, order=0.2) for a in (0.0, 0.5)]
    parts += [Part(face, 0.75, 0.03, 0.9, 0.56, order=0.3)]
    return Bloom((*parts, *f.disc(0.08, 0.05, 0.1)), (0.0, 0.1), fixed=True)


def pea(f: Florist) -> Bloom:
    """A hood, two wings and a lip, as in snapdragons and peas."""
    hood, wing = f.petal("heart"), f.petal("round", 0.4)
    lip = f.plain(mix(f.heart, f.tip, 0.4), "round")
    parts = [Part(hood, 0.25, 0.04, 0.95, 0.75)]
    parts += [Part(wing, a, 0.08, 0.75, 0.38, 0.2, order=0.3) for a in (0.08, 0.42)]
    parts += [
        Part(wing, 0.75, 0.08, 0.8, 0.45, 0.3, order=0.4),
        Part(lip, 0.75, 0.13, 0.4, 0.24, 0.3, order=0.6),
    ]
    return Bloom(tuple(parts), (0.0, 0.1), fixed=True)


def iris(f: Florist) -> Bloom:
    """Three standards that rise and three falls that hang, each with a beard."""
    standard, fall = f.petal(shade=-0.2, plain=True), f.petal()
    beard = f.plain(f.heart, "strap")
    parts = f.ring(standard, 3, 0.17, 1.0, 0.46, curl=0.2, twist=0.25)
    parts += f.ring(fall, 3, -0.01, 1.05, 0.46, curl=-0.55, twist=0.75, order=0.1)
    parts += f.ring(beard, 3, 0.02, 0.42, 0.06, twist=0.75, order=0.3)
    return Bloom(tuple(parts), (0.1, 0.22))


def globe(f: Florist) -> Bloom:
    """A ball of small spiky florets."""
    parts, spike = [], f.petal()
    for lift, count in ((-0.08, 20), (0.0, 20), (0.07, 18), (0.14, 12), (0.2, 7), (0.245, 1)):
        parts += f.ring(spike, count, lift, 0.85, 0.1, start=0.05, twist=lift * 9)
    return Bloom((*f.disc(0.6, 0.0, 0.3, -0.5), *parts), (0.05, 0.3), 0.85)


def brush(f: Florist) -> Bloom:
    """A tuft above a scaly cup, as in thistles."""
    n, hair, scale = f.look.petals, f.petal(), f.plain(f.heart, "pointed", "green")
    parts = []
    for lift, share in ((0.05, 0.34), (0.11, 0.3), (0.17, 0.22), (0.22, 0.14)):
        parts += f.ring(hair, max(3, int(n * share)), lift, 0.95, 0.07 + 1.2 / n, twist=lift * 11, height=0.1)
    for height, radius in ((0.1, 0.3), (-0.05, 0.38), (-0.2, 0.36), (-0.35, 0.26)):
        parts += f.ring(scale, 8, 0.2, 0.36, 0.16, start=radius, height=height - 0.25, twist=height * 9, order=0.3)
    return Bloom(tuple(parts), (0.1, 0.24), 0.95)


def pincushion(f: Florist) -> Bloom:
    """Frilled florets around a cushion of pins."""
    parts = f.ring(f.petal(shade=0.2), f.look.petals, 0.0, 1.0, 0.3)
    parts += f.ring(f.petal(), f.look.petals - 3, 0.04, 0.7, 0.22, twist=0.5)
    return Bloom(tuple(parts + f.disc(0.34, 0.08, 0.5) + f.stamens(26, 0.5, 0.14, 0.03, "lilac")), (0.0, 0.16))


def bracts(f: Florist) -> Bloom:
    """Coloured leaves about a head of tiny flowers."""
    n, under = f.look.petals, f.plain("darkgreen", "pointed", "green")
    parts = f.ring(under, 6, -0.03, 1.1, 0.3, twist=0.4)
    parts += f.ring(f.petal(shade=0.15), n // 2, 0.0, 1.0, 0) + f.ring(f.petal(), n // 2, 0.04, 0.8, 0, twist=0.5)
    parts += f.disc(between(f.rng, 0.16, 0.26), 0.12, 0.5) + f.stamens(14, 0.26, 0.16, 0.035)
    return Bloom(tuple(parts), (0.0, 0.15))


def chalice(f: Florist) -> Bloom:
    """A bowl of stiff pointed bracts about a woolly dome: the king protea."""
    n, parts = f.look.petals, []
    for whorl, (lift, length) in enumerate(((0.07, 1.0), (0.11, 1.0), (0.15, 0.92))):
        parts += f.ring(
            f.petal(shade=-0.12 * whorl), n // 2, lift, length, 0.19, start=0.1, twist=0.5 * whorl, curl=0.1
        )
    parts += f.disc(0.36, 0.12, 0.4, 0.1) + f.stamens(30, 0.42, 0.17, 0.04)
    return Bloom(tuple(parts), (0.03, 0.18))


def passion(f: Florist) -> Bloom:
    """Tepals below a crown of threads, anthers on top."""
    parts = f.ring(f.petal(), f.look.petals, 0.0, 1.0, 0.3)
    thread = petal_texture(OUTLINES["needle"], Paint(f.heart, COLOURS["maroon"], 0.6), f.seed)
    parts += f.ring(thread, 40, 0.02, 0.66, 0.035, order=0.2)
    parts += f.disc(0.16, 0.1, 0.2, 0.4, COLOURS["palegreen"])
    anther = f.plain("lemon", "strap", "palegreen")
    return Bloom((*parts, *f.ring(anther, 5, 0.08, 0.36, 0.07, order=0.5, height=0.12)), (0.0, 0.12))


def spathe(f: Florist) -> Bloom:
    """One large bract with a rod of tiny flowers before it."""
    rod = petal_texture(OUTLINES["strap"], Paint(f.heart, f.heart, 0.3, "checks", COLOURS["brown"], 0.25), f.seed)
    leaf = f.petal()
    parts = [Part(leaf, 0.25, 0.03, 1.5, 0.8, 0.1, along=-0.45)]
    if f.look.shape == "broad":
        parts += [
            Part(leaf, 0.1, 0.1, 0.8, 0.4, 0.3, along=-0.3),
            Part(leaf, 0.4, 0.1, 0.8, 0.4, 0.3, along=-0.3),
        ]
    parts += [Part(rod, 0.25 + around(f.rng, 0.03), 0.1, 0.85, 0.09, 0.1, along=-0.12, height=0.05, order=0.8)]
    return Bloom(tuple(parts), (0.0, 0.12), fixed=True)


def crane(f: Florist) -> Bloom:
    """Bird of paradise: a beak, upright orange blades and a blue tongue. Drawn in the picture's plane."""
    beak, blade = f.plain("green", "needle", "maroon"), f.petal("pointed")
    parts = [Part(beak, 0.97, 0.0, 1.2, 0.15, start=-0.3, order=0.9)]
    for i in range(f.look.petals):
        parts += [Part(blade, 0.1 + 0.06 * i, 0.02, between(f.rng, 0.8, 1.0), 0.17, order=0.1 * i)]
    parts += [Part(f.plain("blue", "sharp", "indigo"), 0.13, 0.04, 0.8, 0.09, order=0.7)]
    return Bloom(tuple(parts), (0.0, 0.07), fixed=True)


def plume(f: Florist) -> Bloom:
    """Bracts or feathers packed along an upright axis."""
    n, parts = f.look.petals, []
    light, deep, width = f.petal(), f.petal(shade=0.35), 0.2 if f.look.petals < 30 else 0.1
    for i in range(n):
        up, texture = i / (n - 1), light if i % 3 else deep
        angle = 0.25 + (0.2 - 0.14 * up) * (1 if i % 2 else -1) * between(f.rng, 0.35, 1)
        parts += [Part(texture, angle, 0.03, 0.62 - 0.24 * up, width, 0.15, along=1.3 * up - 0.8, order=-up)]
    return Bloom(tuple(parts), (0.0, 0.08), fixed=True)


def quill(f: Florist) -> Bloom:
    """A flat paddle of overlapping bracts with a flower at its side."""
    n, parts = f.look.petals, []
    for i in range(n):
        up = i / (n - 1)
        angle = 0.25 + (0.09 - 0.05 * up) * (1 if i % 2 else -1)
        parts += [Part(f.petal(shade=0.3 * up), angle, 0.02, 0.55, 0.16, 0.1, along=1.35 * up - 0.9, order=-up)]
    flower = f.plain(f.heart, "round")
    parts += [Part(flower, angle, 0.05, 0.4, 0.2, start=0.35, order=1.0) for angle in (0.02, 0.1, 0.94)]
    return Bloom(tuple(parts), (0.0, 0.1), fixed=True)
