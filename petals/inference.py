"""An exported model in use: one ONNX file, ONNX Runtime and numpy; torch is not needed."""

import base64
import json
import stat
from pathlib import Path

import numpy as np
import onnxruntime

from petals.errors import PetalsError
from petals.images import decode

OUTPUTS = ["probabilities", "features"]
TEXTS = ("architecture", "check", "classes", "image_size", "reference", "scores")  # that the file must carry
LARGEST = 1024  # px of `image_size`, as in petals.params
TOLERANCE = 0.05  # of a probability, between processors: one without VNNI may saturate in int8


class Model:
    """A model file that is open.

    `classes` are the names in label order, `image_size` is the side in pixels that the network sees, `scores` are those
    of this very file on validation, empty where it has learnt from validation too; `metadata` holds all texts that the
    file carries: docs/export.md lists them.
    """

    def __init__(self, path: str | Path, session: onnxruntime.InferenceSession) -> None:
        self.path = Path(path)
        self.session = session
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        missing = [name for name in OUTPUTS if name not in [output.name for output in session.get_outputs()]]
        missing += [name for name in TEXTS if name not in self.metadata]
        if missing:
            raise PetalsError(f"{path}: export has not written it, as it has no {missing[0]}; run dvc repro export")
        try:
            self.classes: list[str] = json.loads(self.metadata["classes"])
            self.image_size: int = json.loads(self.metadata["image_size"])
            self.scores: dict[str, float | None] = json.loads(self.metadata["scores"])
        except ValueError as error:
            raise PetalsError(
                f"{path}: what it says of itself cannot be read ({error}); run dvc repro export"
            ) from None
        sound = {
            "classes": isinstance(self.classes, list) and all(isinstance(name, str) for name in self.classes),
            "image_size": type(self.image_size) is int and 0 < self.image_size <= LARGEST,
            "scores": isinstance(self.scores, dict),
        }
        if wrong := [name for name in sound if not sound[name]]:
            raise PetalsError(f"{path}: what it says of its {wrong[0]} makes no sense; run dvc repro export")
        self.architecture: str = self.metadata["architecture"]

    @classmethod
    def open(cls, path: str | Path, threads: int = 1) -> "Model":
        """Open a file that export has written, on the processor; raises PetalsError where it is no such file."""
        path = Path(path)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise PetalsError(f"{path}: not found; dvc repro makes the model, dvc pull brings it") from None
        except OSError as error:
            raise PetalsError(f"{path}: cannot be read ({error.strerror})") from None
        if stat.S_ISDIR(status.st_mode):
            raise PetalsError(f"{path}: is a folder; name the model file in it")
        if not status.st_size:
            of_int8 = path.name.endswith(".int8.onnx")
            why = "as export found that int8 loses too much; take model.onnx" if of_int8 else "run dvc repro export"
            raise PetalsError(f"{path}: empty, {why}")
        return cls(path, open_session(path, threads))

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ask about uint8 images (N, H, W, 3), RGB, any N, H and W of 1 and more.

        Gives float32 probabilities (N, C), and features (N, D), which petals.drift compares. Images of several sizes
        are best made square before, with petals.images.square and `image_size`: the graph does the same to each.
        """
        probabilities, features = self.session.run(OUTPUTS, {"image": np.ascontiguousarray(images)})
        return probabilities, features

    def check(self) -> np.ndarray:
        """Ask about the image that the file carries, and give it, uint8 (H, W, 3).

        Raises PetalsError where it does not answer as it did, and what json raises where it carries something else.
        """
        known = json.loads(self.metadata["check"])
        image = decode(base64.b64decode(known["image"]), f"{self.path}: check")
        found, expected = self.run(image[None])[0][0], np.asarray(known["probabilities"])
        if found.shape != expected.shape or not np.abs(found - expected).max() <= TOLERANCE:
            raise PetalsError(f"{self.path}: on this machine it does not answer its own check as it should")
        if len(self.classes) != len(found):
            names = f"{len(self.classes)} classes and answers with {len(found)} probabilities"
            raise PetalsError(f"{self.path}: it names {names}; run dvc repro export")
        return image


def open_session(model: str | Path | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an ONNX file, or the bytes of one, on the processor; raises PetalsError where it cannot be read."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    content = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        where = "model" if isinstance(model, bytes) else model
        raise PetalsError(f"{where}: ONNX Runtime cannot read it ({' '.join(str(error).split())})") from None
