"""Painting: textures tilted, bent and lit, laid over one another on a canvas.

A canvas is float32, 4 × H × W: red, green, blue (0…1) and how much of the pixel the foreground covers. Image
coordinates run right and down; z points at the viewer.
"""

import math
from dataclasses import dataclass

import numpy as np

from petals.sample.exact import around, between, cos, sin
from petals.sample.florist import Bloom
from petals.sample.petal import HEIGHT, S_MARGIN, T_MARGIN, WIDTH

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    towards: Vector  # unit vector to the light
    ambient: float = 0.7
    direct: float = 0.4


def lay(
    canvas: np.ndarray,
    texture: np.ndarray,
    foot: Vector,
    along: Vector,
    side: Vector,
    bend: Vector,
    light: Light,
    tint: Vector,
) -> None:
    """Lay a texture so that (t, s) falls on foot + t·along + s·side + t²·bend, lengths in pixels."""
    ax, ay, bx, by, det = _unfolded(along, side)
    if abs(det) < 1e-3:
        return
    reach = 1 + S_MARGIN
    xs, ys = [], []
    for t in (-T_MARGIN, 0.5, 1.0, 1 + T_MARGIN):
        for s in (-reach, reach):
            xs.append(foot[0] + t * ax + s * bx + t * t * bend[0])
            ys.append(foot[1] + t * ay + s * by + t * t * bend[1])
    height, width = canvas.shape[1:]
    x0, x1 = max(0, int(min(xs))), min(width, int(max(xs)) + 2)
    y0, y1 = max(0, int(min(ys))), min(height, int(max(ys)) + 2)
    if x0 >= x1 or y0 >= y1:
        return

    x = np.arange(x0, x1, dtype=np.float32) + (0.5 - foot[0])
    y = (np.arange(y0, y1, dtype=np.float32) + (0.5 - foot[1]))[:, None]
    t = x * (by / det) - y * (bx / det)
    s = y * (ax / det) - x * (ay / det)
    # The bend in the basis (along, side), then the quadratic solved for t.
    k = max((bend[0] * by - bend[1] * bx) / det, -0.2)  # beyond it the tip would fold back over the petal
    if abs(k) > 0.01:
        t = (np.sqrt(np.maximum(1 + 4 * k * t, 0)) - 1) * (0.5 / k)
        s -= t * t * ((bend[1] * ax - bend[0] * ay) / det)
    row = (t * (HEIGHT / (1 + 2 * T_MARGIN)) + T_MARGIN * HEIGHT / (1 + 2 * T_MARGIN)).astype(np.intp)
    column = (s * (WIDTH / (2 * reach)) + WIDTH / 2).astype(np.intp)
    place = np.minimum(np.maximum(row, 0), HEIGHT - 1) * WIDTH + np.minimum(np.maximum(column, 0), WIDTH - 1)
    seen = texture.reshape(5, -1).take(place, axis=1, mode="clip")
    colour, alpha, shadow = seen[:3], seen[3], seen[4]

    level, across, onwards = _shading(along, side, bend, light)
    colour *= s * across + t * onwards + level
    colour *= np.array(tint, np.float32)[:, None, None]
    area = canvas[:, y0:y1, x0:x1]
    keep = 1 - alpha
    area[:3] *= keep * (1 - 0.38 * shadow * area[3])
    area[:3] += colour
    area[3] *= keep
    area[3] += alpha


def _unfolded(along: Vector, side: Vector) -> tuple[float, float, float, float, float]:
    """The two axes as they are seen, kept apart where a petal shows its edge, and their determinant."""
    ax, ay, bx, by = along[0], along[1], side[0], side[1]
    least = 0.12 * _length(along) * _length(side)
    if abs(ax * by - ay * bx) < least:
        if ax * ax + ay * ay > bx * bx + by * by:
            gain = least / (ax * ax + ay * ay + 1e-6)
            bx, by = bx - ay * gain, by + ax * gain
        else:
            gain = least / (bx * bx + by * by + 1e-6)
            ax, ay = ax + by * gain, ay - bx * gain
    return ax, ay, bx, by, ax * by - ay * bx


def _length(vector: Vector) -> float:
    return math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]) + 1e-6


def _shading(along: Vector, side: Vector, bend: Vector, light: Light) -> tuple[float, float, float]:
    """Brightness of a petal at its base, and how it changes across and along."""
    normal = (
        along[1] * side[2] - along[2] * side[1],
        along[2] * side[0] - along[0] * side[2],
        along[0] * side[1] - along[1] * side[0],
    )
    facing = _towards(normal, light) * (1 if normal[2] > 0 else -1)
    level = light.ambient + light.direct * (0.25 + 0.75 * max(facing, -0.3))
    across = 0.3 * light.direct * _towards(side, light)
    onwards = -0.5 * light.direct * _towards(bend, light) * _length(bend) / _length(along)
    return level, across, max(-0.3, min(0.3, onwards))


def _towards(vector: Vector, light: Light) -> float:
    """Cosine of the angle between a vector and the light."""
    x, y, z = light.towards
    return (vector[0] * x + vector[1] * y + vector[2] * z) / _length(vector)


@dataclass(frozen=True)
class Pose:
    """Where a bloom stands in the picture and how it is turned: all angles in turns, lengths in pixels."""

    x: float
    y: float
    radius: float
    roll: float  # about the bloom's own axis
    tilt: float  # 0: facing the viewer, 0.25: seen from the side
    lean: float  # turns the whole in the picture's plane; 0: tilted upwards


def paint_bloom(
    canvas: np.ndarray,
    bloom: Bloom,
    pose: Pose,
    light: Light,
    rng: np.random.Generator,
    tint: Vector,
    disorder: float = 1.0,
) -> None:
    """Paint a bloom, far petals first; `disorder` says how unlike one another its petals are."""
    ct, st, cl, sl = cos(pose.tilt), sin(pose.tilt), cos(pose.lean), sin(pose.lean)

    def seen(x: float, y: float, z: float) -> Vector:
        # y of the bloom points up, y of the picture down.
        up, depth = y * ct + z * st, z * ct - y * st
        return (pose.radius * (x * cl - up * sl), -pose.radius * (x * sl + up * cl), pose.radius * depth)

    jobs = []
    for part in bloom.parts:
        loose = disorder * part.loose
        angle = part.angle + pose.roll * (part.along == 0) + around(rng, 0.012) * loose
        lift = part.lift + around(rng, 0.02) * loose
        length = part.length * (1 + around(rng, 0.09) * loose)
        width = part.width * (1 + around(rng, 0.12) * loose)
        curl = part.curl + around(rng, 0.15) * loose
        shade = 1 + around(rng, 0.06) * loose
        ca, sa, ce, se = cos(angle), sin(angle), cos(lift), sin(lift)
        foot = seen(part.start * ca, part.start * sa + part.along, part.height)
        along = seen(length * ca * ce, length * sa * ce, length * se)
        twist = around(rng, 0.25) * loose
        side = seen(-width * sa, width * ca, width * twist)
        bend = seen(-length * curl * ca * se, -length * curl * sa * se, length * curl * ce)
        depth = (foot[2] + 0.6 * along[2] + 0.4 * bend[2]) / pose.radius + part.order
        jobs.append((depth, len(jobs), part.texture, foot, along, side, bend, shade))
    for _, _, texture, foot, along, side, bend, shade in sorted(jobs, key=lambda job: job[:2]):
        place = (pose.x + foot[0], pose.y + foot[1], foot[2])
        lay(
            canvas,
            texture,
            place,
            along,
            side,
            bend,
            light,
            (tint[0] * shade, tint[1] * shade, tint[2] * shade),
        )


def paint_leaf(
    canvas: np.ndarray,
    texture: np.ndarray,
    foot: tuple[float, float],
    angle: float,
    length: float,
    width: float,
    light: Light,
    rng: np.random.Generator,
    shade: float = 1.0,
) -> None:
    """Paint a leaf or a blade of grass; `angle` in turns from the right, anticlockwise."""
    ca, sa, lean = cos(angle), sin(angle), between(rng, -0.5, 0.5)
    curl = around(rng, 0.35) * length
    along = (length * ca, -length * sa, length * lean)
    side = (width * sa, width * ca, width * around(rng, 0.5))
    bend = (curl * sa, curl * ca, -0.3 * length)
    lay(canvas, texture, (*foot, 0.0), along, side, bend, light, (shade, shade, shade))
