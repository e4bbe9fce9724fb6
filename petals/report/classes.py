"""Where the difference comes from: classes, pairs of classes, single images."""

from collections.abc import Iterable

import numpy as np

from petals.report.comparison import Comparison
from petals.report.markdown import Section, code, counted, listing, signed
from petals.report.sides import Side
from petals.scores import class_scores

MOST_CLASSES = 10
MOST_PAIRS = 10
MOST_IMAGES = 20
COLUMNS = ["class", "images", "base", "head", "difference"]


def movers(comparison: Comparison) -> Section | None:
    """The classes whose F1 moved most, either way."""
    rows = _f1_rows(comparison)
    if not rows:
        return None
    body = listing(COLUMNS, rows, MOST_CLASSES, "lrrrr")
    return Section(f"Classes whose F1 moved most ({len(rows)} moved)", body)


def every_mover(comparison: Comparison) -> Section | None:
    """All classes whose F1 moved, where the section above does not hold them."""
    rows = _f1_rows(comparison)
    if len(rows) <= MOST_CLASSES:
        return None
    return Section(f"All {len(rows)} classes whose F1 moved", listing(COLUMNS, rows, len(rows), "lrrrr"))


def pairs(comparison: Comparison) -> Section | None:
    """Pairs of classes of which the one was taken for the other more often, or less, than before."""
    before, after = (_confusions(comparison, side) for side in (comparison.base, comparison.head))
    moved = [(after.get(pair, 0) - before.get(pair, 0), pair) for pair in before.keys() | after.keys()]
    moved = sorted(((change, pair) for change, pair in moved if change), key=lambda each: (-abs(each[0]), each[1]))
    if not moved:
        return None
    names = comparison.classes
    rows = [
        [code(names[actual]), code(names[taken]), *(f"{side.get((actual, taken), 0):,}" for side in (before, after))]
        for _, (actual, taken) in moved
    ]
    more = sum(change > 0 for change, _ in moved)
    title = f"{counted(more, 'pair')} of classes confused more often, {len(moved) - more:,} less often"
    return Section(title, listing(["class", "taken for", "images in base", "in head"], rows, MOST_PAIRS, "llrr"))


def images(comparison: Comparison, base: Side, head: Side) -> Section | None:
    """Images that one side alone gets right, the most confident mistakes first."""
    right_before = comparison.base == comparison.actual
    right_after = comparison.head == comparison.actual
    wrong = _image_rows(comparison, np.flatnonzero(right_before & ~right_after), head)
    right = _image_rows(comparison, np.flatnonzero(~right_before & right_after), base)
    parts = []
    for title, said, rows in (("Newly wrong", "head says", wrong), ("Newly right", "base said", right)):
        if rows:
            header = ["image", "class", said, "confidence"]
            parts.append(f"**{title}**\n\n{listing(header, rows, MOST_IMAGES, 'lllr')}")
    if not parts:
        return None
    return Section(f"{counted(len(wrong), 'image')} newly wrong, {len(right):,} newly right", "\n\n".join(parts))


def _f1_rows(comparison: Comparison) -> list[list[str]]:
    classes = len(comparison.classes)
    before, _, _, support = class_scores(comparison.actual, comparison.base, classes)
    after, *_ = class_scores(comparison.actual, comparison.head, classes)
    moved = np.flatnonzero((support > 0) & (before != after))
    order = sorted(moved, key=lambda index: (-abs(after[index] - before[index]), index))
    return [
        [
            code(comparison.classes[index]),
            f"{support[index]:,}",
            f"{before[index]:.3f}",
            f"{after[index]:.3f}",
            signed(after[index] - before[index], 3),
        ]
        for index in order
    ]


def _confusions(comparison: Comparison, predicted: np.ndarray) -> dict[tuple[int, int], int]:
    """How often each class was taken for another."""
    wrong = predicted != comparison.actual
    cells, counts = np.unique(np.stack([comparison.actual[wrong], predicted[wrong]]), axis=1, return_counts=True)
    return dict(zip(map(tuple, cells.T.tolist()), counts.tolist(), strict=True))


def _image_rows(comparison: Comparison, positions: Iterable[int], mistaken: Side) -> list[list[str]]:
    assert mistaken.predictions is not None  # a comparison exists
    rows = []
    for key in (comparison.ids[position] for position in positions):
        prediction = mistaken.predictions[key]
        rows.append((_confidence(prediction.confidence), key, prediction))
    rows.sort(key=lambda row: (-(row[0] or 0), row[1]))
    return [
        [
            code(key),
            code(prediction.actual),
            code(prediction.predicted),
            "–" if confidence is None else f"{confidence:.3f}",
        ]
        for confidence, key, prediction in rows
    ]


def _confidence(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
