"""The validation split of photographs that come without one: a share of each class, near-duplicates kept together."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from petals.seeding import seed_for


def set_aside(labels: np.ndarray, ids: Sequence[str], groups: np.ndarray, fraction: float) -> np.ndarray:
    """The rows (int64, ascending) of about `fraction` of the images of each class: one at least, never all.

    A class of one image keeps it. `labels` and `groups` are int, N. What has one number in `groups` is set aside as a
    whole or not at all, since a photograph whose twin was learnt from is no test; but for a class of which that leaves
    less than half of its share, as where all images are alike but a few that are like none: what it lacks is taken
    one by one.

    Images are taken in an order that depends on the last part of their ids, the file's name, alone. So photographs that
    come later leave most of the others where they were.
    """
    names = [each.rsplit("/", 1)[-1] for each in ids]
    order = sorted(range(len(ids)), key=lambda row: (seed_for("val", names[row]), ids[row]))
    label_of, group_of = labels.tolist(), groups.tolist()
    members: dict[int, list[int]] = defaultdict(list)
    for row in order:
        members[group_of[row]].append(row)
    sizes = Counter(label_of)
    wanted = {label: min(size - 1, max(1, int(size * fraction + 0.5))) for label, size in sizes.items()}
    taken: Counter[int] = Counter()
    aside: set[int] = set()

    def take(group: list[int], goal: Mapping[int, float]) -> None:
        """Set `group` aside if each of its classes keeps an image and comes nearer to its `goal`."""
        here = Counter(label_of[row] for row in group)
        if any(taken[label] + n / 2 > goal[label] or taken[label] + n >= sizes[label] for label, n in here.items()):
            return
        taken.update(here)
        aside.update(group)

    def too_few(label: int) -> bool:
        return 2 * taken[label] < wanted[label]

    own: dict[int, list[list[int]]] = defaultdict(list)  # of each class, its groups
    for group in members.values():
        take(group, wanted)
        for label in {label_of[row] for row in group}:
            own[label].append(group)
    unbounded = dict.fromkeys(sizes, math.inf)
    for label in sorted(sizes):
        # Where its groups are larger than what is wanted: the smallest that leaves an image of each class.
        for group in sorted(own[label], key=len):
            if too_few(label) and group[0] not in aside:
                take(group, unbounded)
    for label in filter(too_few, sorted(sizes)):
        left = [row for group in own[label] for row in group if label_of[row] == label and row not in aside]
        aside.update(left[: wanted[label] - taken[label]])
    return np.sort(np.fromiter(aside, np.int64))
