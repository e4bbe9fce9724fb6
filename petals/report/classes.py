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
    """Pairs of classes newly confused, and newly told apart: from none to some, and from some to none."""
    before, after = (_confusions(comparison, side) for side in (comparison.base, comparison.head))
    newly, apart = _pair_rows(comparison, after, before), _pair_rows(comparison, before, after)
    parts = []
    for title, rows in (("Newly confused", newly), ("Newly told apart", apart)):
        if rows:
            parts.append(f"**{title}**\n\n{listing(['class', 'taken for', 'images'], rows, MOST_PAIRS, 'llr')}")
    if not parts:
        return None
    title = f"{counted(len(newly), 'pair')} newly confused, {len(apart):,} newly told apart"
    return Section(title, "\n\n".join(parts))


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


def _pair_rows(comparison: Comparison, there: dict, not_there: dict) -> list[list[str]]:
    found = [(pair, count) for pair, count in there.items() if pair not in not_there]
    found.sort(key=lambda entry: (-entry[1], entry[0]))
    names = comparison.classes
    return [[code(names[actual]), code(names[taken]), f"{count:,}"] for (actual, taken), count in found]


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
