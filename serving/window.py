"""The last predictions, to be compared with what the model saw on validation."""

from collections.abc import Sequence
from threading import Lock

import numpy as np

from petals.drift import Reference

STEP = 50  # images: the limits depend on the number compared and take time to find, so few numbers are used


class Window:
    """What the model said of the last `size` images, and their distances; safe to use from several threads.

    They should be independent of each other, or the limits are too low. Of the images themselves nothing is kept.
    """

    def __init__(self, reference: Reference, size: int) -> None:
        self.reference, self.size = reference, size
        self.probabilities = np.empty((size, len(reference.classes)), np.float32)
        self.distances = np.empty(size, np.float32)
        self.seen = 0
        self.lock, self.comparing = Lock(), Lock()

    def add(self, predictions: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take in what the model said of some images, one or more: of each its probabilities and features, float32."""
        probabilities, features = map(np.stack, zip(*predictions, strict=True))
        distances = self.reference.distances(features)
        with self.lock:
            rows = (self.seen + np.arange(len(distances))) % self.size
            self.probabilities[rows], self.distances[rows] = probabilities, distances
            self.seen += len(distances)

    def compare(self) -> dict[str, float]:
        """What petals.drift.Reference.compare says of the last images, their number a multiple of STEP.

        Below STEP images little can be told: everything is 0 then, and nothing drifts.
        """
        with self.lock:
            count = min(self.seen, self.size) // STEP * STEP
            rows = (self.seen - count + np.arange(count)) % self.size
            probabilities, distances = self.probabilities[rows], self.distances[rows]
        with self.comparing:  # one at a time, as each new limit takes memory to find; the next has it from a cache
            return self.reference.compare(probabilities, distances)
