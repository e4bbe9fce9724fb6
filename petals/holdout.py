"""The validation split of photographs that come without one: a share of each class, near-duplicates kept together."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from petals.seeding import seed_for


def set_aside(labels: np.ndarray, ids: Sequence[str], groups: np.ndarray, fraction: float) -> np.ndarray:
    """The rows (int64, ascending) of about `fraction` of the images of each class: at least one, never all.

    `labels` and `groups` are int, N. What has one number in `groups` is set aside as a whole or not at all, since a
    photograph whose twin was learnt from is no test. A class that is one such group keeps it for training.

    The order in which images are taken hangs on the last part of their ids, the file's name, so that photographs that
    come later leave most of the others where they were.
    """
    names = [each.rsplit("/", 1)[-1] for each in ids]
    order = sorted(range(len(ids)), key=lambda row: (seed_for("val", names[row]), ids[row]))
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(groups[row]), []).append(row)
    sizes = Counter(labels.tolist())
    wanted = {label: min(size - 1, max(1, int(size * fraction + 0.5))) for label, size in sizes.items()}
    taken: Counter[int] = Counter()
    rows: list[int] = []

    def take(group: list[int], wanted: Mapping[int, float]) -> bool:
        """Set `group` aside, where each of its classes comes nearer to `wanted` by it and keeps an image."""
        here = Counter(labels[group].tolist())
        if any(taken[label] + n / 2 > wanted[label] or taken[label] + n >= sizes[label] for label, n in here.items()):
            return False
        taken.update(here)
        rows.extend(group)
        return True

    for group in members.values():
        take(group, wanted)
    for label in sorted(sizes):
        own = [group for group in members.values() if label in labels[group]]
        if not taken[label]:  # all its groups are too large: the smallest that can be had
            any(take(group, dict.fromkeys(sizes, math.inf)) for group in sorted(own, key=len))
    return np.sort(np.asarray(rows, np.int64))
