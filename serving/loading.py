"""The model that serves, and its replacement while the service runs."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from petals.drift import Reference
from petals.errors import PetalsError
from petals.images import square
from petals.inference import Model
from serving.answers import ModelCard
from serving.pictures import Large
from serving.refusals import Refusal
from serving.window import STEP, Window

Decoder = Callable[[int], np.ndarray]  # takes the side S that the model sees, and gives the image, uint8 S × S × 3
POLL = 0.5  # seconds between two looks at the file
log = logging.getLogger("serving")


class Prediction(NamedTuple):
    """What the model says of an image: float32, one a class, and float32, one a feature."""

    probabilities: np.ndarray
    features: np.ndarray


class LoadedModel:
    """A model that has passed its own check, and the window of its latest predictions."""

    def __init__(self, path: Path, window: int) -> None:
        """Raises PetalsError, in one line, where the file is no exported model or fails its check."""
        self.sha256 = digest(path)  # before it is opened: a file that replaces it in between is loaded next
        self.model = Model.open(path, threads=1)
        self.classes, self.image_size = self.model.classes, self.model.image_size
        self.since = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            image = self.model.check()
            reference = Reference.from_json(self.model.metadata["reference"])
            if len(reference.classes) != len(self.classes):
                raise PetalsError(f"{path}: its reference for drift has other classes than it; run dvc repro export")
            self.window = Window(reference, window)
            self.rehearse(image)
        except PetalsError:
            raise
        except Exception as error:  # its texts come from a file, and ONNX Runtime's exceptions have no common base
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise PetalsError(f"{path}: it cannot answer as a service ({said}); run dvc repro export") from None

    def rehearse(self, image: np.ndarray) -> None:
        """Do once all that requests will need, with an image, uint8 H × W × 3, that is not counted."""
        [prediction] = self.run([lambda size: square(image, size)])
        window = Window(self.window.reference, STEP)
        window.add([prediction] * STEP)
        window.compare()
        self.card("", None, None)

    def card(self, name: str, version: str | None, revision: str | None) -> ModelCard:
        return ModelCard(
            name=name,
            version=version,
            revision=revision,
            sha256=self.sha256,
            since=self.since,
            architecture=self.model.architecture,
            image_size=self.image_size,
            scores=self.model.scores,
            classes=self.classes,
        )

    def run(self, decoders: Sequence[Decoder]) -> list[Prediction | Exception]:
        """Decode images, and run the model on all of them together.

        Gives for each its prediction, or the exception that its decoder raised: Refusal, Large, or MemoryError, so
        that one image spoils none beside it.
        """
        results: list[np.ndarray | Prediction | Exception] = []
        for decode in decoders:
            try:
                results.append(decode(self.image_size))
            except (Refusal, Large, MemoryError) as error:
                error.__context__ = None  # it holds this frame, as the traceback does, and so the error itself
                results.append(error.with_traceback(None))
        sound = [at for at, result in enumerate(results) if isinstance(result, np.ndarray)]
        if sound:
            probabilities, features = self.model.run(np.stack([results[at] for at in sound]))
            for at, *row in zip(sound, probabilities, features, strict=True):
                results[at] = Prediction(*row)
        return results


class ModelReloader:
    """Holds the model that serves, and loads it anew when its file changes or a reload is requested.

    Requests keep the model they began with, so none is dropped. A file that fails its check is not tried again by
    itself until it changes.
    """

    def __init__(self, path: Path, window: int, on_reload: Callable[[bool], None]) -> None:
        self.path, self.window = path, window
        self.seen = stamp(path)  # before it is read
        self.current = LoadedModel(path, window)
        self.replaced = False
        self.on_reload = on_reload  # called with True for a new model, and False for a file that is refused
        self.reload_requested = asyncio.Event()

    async def watch(self) -> None:
        """Reload the model whenever that is due, for ever."""
        before = self.seen
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.reload_requested.wait(), POLL)
            now = stamp(self.path)
            settled = now == before and now is not None  # not while it is being written
            if self.reload_requested.is_set() or (settled and now != self.seen):
                self.reload_requested.clear()
                self.seen = now
                await self.reload()
            before = now

    async def reload(self) -> None:
        try:
            fresh = await asyncio.to_thread(LoadedModel, self.path, self.window)
        except Exception as error:  # whatever is in that file, the service goes on
            said = str(error) if isinstance(error, PetalsError) else f"{self.path}: {error!r}"
            log.error("model not loaded, the former one serves on: %s", said)
            self.on_reload(False)
            return
        if fresh.sha256 == self.current.sha256:
            log.info("the model file holds what is served already")
            return
        self.current, self.replaced = fresh, True
        log.info("model loaded", extra={"fields": {"sha256": fresh.sha256}})
        self.on_reload(True)


def digest(path: Path) -> str:
    """The file's SHA-256, or nothing where it cannot be read: Model.open then says why."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None where it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
