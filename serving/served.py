"""The model that answers at the moment, and how another takes its place."""

import asyncio
import hashlib
import logging
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from petals.drift import Reference
from petals.errors import PetalsError
from petals.inference import Model
from serving.window import Window

POLL = 0.5  # seconds between two looks at the file
log = logging.getLogger("serving")


class Served:
    """A model that has answered its own check rightly, and the window of what it has said since."""

    def __init__(self, path: Path, window: int) -> None:
        """Raises PetalsError, in one line, where the file is no exported model or fails its check."""
        self.model = Model.open(path, threads=1)
        self.model.check()
        self.window = Window(Reference.from_json(self.model.metadata["reference"]), window)
        self.classes, self.image_size = self.model.classes, self.model.image_size
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.since = datetime.now(UTC).isoformat(timespec="seconds")

    def run(self, images: list[np.ndarray]) -> np.ndarray:
        """Ask about uint8 images of the model's size; gives float32 probabilities, N × classes."""
        probabilities, features = self.model.run(np.stack(images))
        self.window.add(probabilities, features)
        return probabilities


class Shelf:
    """Holds the model that serves, and takes up another when its file changes or when it is asked to.

    Requests keep the model they began with, so none is dropped. A file that fails its check is left alone until
    it changes again.
    """

    def __init__(self, path: Path, window: int, taken_up) -> None:
        self.path, self.window = path, window
        self.current = Served(path, window)
        self.replaced = False
        self.taken_up = taken_up  # called with True or False after each attempt
        self.asked = asyncio.Event()

    async def watch(self) -> None:
        """Look at the file for ever."""
        seen = before = stamp(self.path)
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.asked.wait(), POLL)
            now = stamp(self.path)
            settled = now == before and now is not None  # not while it is being written
            if self.asked.is_set() or (settled and now != seen):
                self.asked.clear()
                seen = now
                await self.take_up()
            before = now

    async def take_up(self) -> None:
        try:
            fresh = await asyncio.to_thread(Served, self.path, self.window)
        except PetalsError as error:
            log.error("model not taken up, the former one serves on: %s", error)
            self.taken_up(False)
            return
        if fresh.sha256 == self.current.sha256:
            log.info("the model file holds what is served already")
            return
        self.current, self.replaced = fresh, True
        log.info("model taken up", extra={"fields": {"sha256": fresh.sha256}})
        self.taken_up(True)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None where it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
