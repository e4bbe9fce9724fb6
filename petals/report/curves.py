"""Training curves of both sides as mermaid charts, which GitHub draws from text."""

import math
import re

import numpy as np

from petals.report.markdown import LONGEST, Section, code, counted
from petals.report.sides import Side

# A chart of more than 33 steps is thinned to 33 points: mermaid walks along the axis by adding up
# (last - first) / 32, and a fraction of 32 adds up without rounding, so the last point is not lost.
POINTS = 33
COLOURS = {"base": "#8c959f", "head": "#0969da"}  # grey and blue, legible on GitHub's light and dark pages
LARGEST = 1e12  # beyond it a run has blown up, and there is nothing to draw
Curve = list[tuple[float, float]]


def training_curves(base: Side, head: Side) -> Section | None:
    """One chart for each curve that differs and has at least two steps on a side; those that blew up are named."""
    found = base.curves.keys() | head.curves.keys() | {*base.diverged, *head.diverged}
    names = sorted(found, key=lambda name: (not name.startswith("val/"), name))
    same = [
        name
        for name in names
        if base.curves.get(name) == head.curves.get(name) and (name in base.diverged) == (name in head.diverged)
    ]
    pairs = {name: {"base": base.curves.get(name), "head": head.curves.get(name)} for name in names if name not in same}
    charts = [chart for name, curves in pairs.items() if (chart := _chart(name, curves))]
    sides = {"base": base, "head": head}
    blown = [f"{code(name)} in {label}" for label, side in sides.items() for name in pairs if _blown(name, side)]
    if not charts and not blown:
        return None
    parts = ["Base is grey, head is blue.", *charts] if charts else []
    if blown:
        parts.append(f"Not drawn, or not in full, as not finite or beyond {LARGEST:g}: {', '.join(blown)}.")
    if same:
        parts.append(f"The same on both sides: {', '.join(map(code, same))}.")
    return Section(f"Training curves ({counted(len(charts), 'chart')})", "\n\n".join(parts))


def _blown(name: str, side: Side) -> bool:
    """Whether a curve has values that cannot be drawn."""
    return name in side.diverged or any(abs(value) > LARGEST for _, value in side.curves.get(name, ()))


def _chart(name: str, curves: dict[str, Curve | None]) -> str | None:
    arrays = {label: np.array(curve).T for label, curve in curves.items() if curve and len(curve) > 1}
    if not arrays or any(np.abs(array).max() > LARGEST for array in arrays.values()):
        return None
    grids, x_axis = _grids({label: steps for label, (steps, _) in arrays.items()})
    lines = {label: np.interp(grids[label], *arrays[label]) for label in arrays}
    low, high = _range(np.concatenate(list(lines.values())))
    digits = min(10, max(0, 4 - math.floor(math.log10(high - low))))
    palette = ", ".join(COLOURS[label] for label in lines)
    chart = [
        "```mermaid",
        '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "' + palette + '"}}}}%%',
        "xychart-beta",
        f'    title "{_title(name)}"',
        f"    x-axis {x_axis}",
        f"    y-axis {_decimal(low, digits)} --> {_decimal(high, digits)}",
        *(f'    line "{label}" [{", ".join(_decimal(y, digits) for y in ys)}]' for label, ys in lines.items()),
        "```",
    ]
    return "\n".join(chart)


def _grids(steps: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Evenly spaced steps at which to draw each side, and the axis they share.

    Mermaid spreads every line over the whole axis, so runs of different length share no axis of steps.
    """
    spans = {(values[0], values[-1]) for values in steps.values()}
    if len(spans) > 1:
        grids = {label: np.linspace(values[0], values[-1], POINTS) for label, values in steps.items()}
        return grids, '"share of the run in %, as the runs differ in length" 0 --> 100'
    ((first, last),) = spans
    whole = last - first + 1
    as_logged = all(len(values) == whole <= POINTS for values in steps.values())
    grid = np.linspace(first, last, int(whole) if as_logged else POINTS)
    return dict.fromkeys(steps, grid), f'"epoch" {_decimal(first, 3)} --> {_decimal(last, 3)}'


def _range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value, with room around them where all are alike."""
    low, high = float(values.min()), float(values.max())
    room = max(abs(low), abs(high)) / 10 or 1.0
    return (low, high) if high - low > 1e-6 * room else (low - room, high + room)


def _decimal(value: float, digits: int) -> str:
    """`value` without an exponent, which mermaid does not read."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _title(name: str) -> str:
    """`name` with only those characters that mean nothing to mermaid or to markdown."""
    return re.sub(r"[^A-Za-z0-9 _./-]", "?", name)[:LONGEST]
