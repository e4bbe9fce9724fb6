"""Checkpoints of a run that may be killed: one file, moved in whole, named by the fingerprint of the run."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from petals.errors import PetalsError
from petals.files import STATE, replacing

if TYPE_CHECKING:
    from petals.optim import AdamW, AveragedWeights

EVERY_SECONDS = 45.0  # so that less than a minute is lost
LOCK = Path("dvc.lock")
KEPT = 3  # checkpoints of runs that were broken off, the latest


class Checkpoint:
    """The state of a training run on disk: weights, averaged weights, optimiser, and `progress`.

    `progress` is plain JSON, with the number of `step`s done and, in words, where the run stands: `at`. Only with
    `writes` is there a file: of several processes one has it.
    """

    def __init__(
        self,
        key: str,
        model: nn.Module,
        optimizer: "AdamW",
        average: "AveragedWeights",
        writes: bool = True,
    ) -> None:
        self.path = STATE / f"train-{key}.safetensors"
        self.model, self.optimizer, self.average, self.writes = model, optimizer, average, writes
        self.learning = [each for group in optimizer.param_groups for each in group["params"]]
        self.saved_at = time.monotonic()

    def due(self, ahead: float = 0.0) -> bool:
        """Whether in `ahead` seconds so long has passed that what is new should be saved by now.

        It has no influence on the result.
        """
        return time.monotonic() + ahead - self.saved_at > EVERY_SECONDS

    def save(self, progress: dict) -> None:
        """Write the present state beside the former one and move it onto it.

        Raises PetalsError, and keeps the former, where a number in it is not finite.
        """
        if not self.writes:
            return
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= {f"average.{number}": tensor for number, tensor in enumerate(self.average.average)}
        for number, parameter in enumerate(self.learning):
            slots = self.optimizer.state.get(parameter, {})
            state |= {f"optimizer.{number}.{slot}": tensor for slot, tensor in slots.items()}
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        floats = [tensor for tensor in state.values() if tensor.is_floating_point() and tensor.numel()]
        if not torch.stack(torch._foreach_norm(floats, torch.inf)).isfinite().all():
            raise PetalsError(
                f"the weights are no longer finite at {progress['at']}: lower lr; the last checkpoint stays"
            )
        with replacing(self.path) as partial:
            partial.write_bytes(to_safetensors(state, metadata={"progress": json.dumps(progress)}))
        self.saved_at = time.monotonic()

    def finish(self, progress: dict, model: Path) -> None:
        """Note what the run has made of `model`: it is taken up again only until dvc.lock names that."""
        if not self.writes:
            return
        with model.open("rb") as file:
            self.save(progress | {"md5": hashlib.file_digest(file, "md5").hexdigest()})

    def load(self, tell: Callable[[bytes], bytes] = bytes) -> dict | None:
        """Put the saved state back and give its `progress`; None where there is nothing to go on from.

        A finished run whose model dvc.lock names is nothing to go on from: who runs it again wants it run.
        `tell` gives what the process that keeps the file has read to those that do not.
        """
        content = tell(self.content() if self.writes else b"")
        if not content:
            return None
        state, progress = parse_safetensors(content), progress_in(content)
        own = self.model.state_dict()
        self.model.load_state_dict({name: state[f"model.{name}"] for name in own})
        for number, tensor in enumerate(self.average.average):
            tensor.copy_(state[f"average.{number}"])
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".")
                parameter = self.learning[int(number)]
                # Laid out like the parameter: a fused step goes through memory as it lies.
                like = parameter.detach() if tensor.shape == parameter.shape else tensor
                kept = torch.empty_like(like, device=parameter.device).copy_(tensor)
                self.optimizer.state.setdefault(parameter, {})[slot] = kept
        return progress

    def content(self) -> bytes:
        """The file to go on from; empty where there is none, or not a whole one."""
        try:
            with safe_open(self.path, "pt"):
                content = self.path.read_bytes()
        except (FileNotFoundError, SafetensorError):
            return b""
        done = progress_in(content).get("md5")
        return b"" if done and LOCK.is_file() and done in LOCK.read_text(encoding="utf-8") else content


def progress_in(content: bytes) -> dict:
    """What `Checkpoint.save` noted in the header of the file, which is JSON after its length in eight bytes."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["progress"])


def discard_finished() -> None:
    """Remove the checkpoints of runs that have written their model, and all but three others."""
    latest = sorted(STATE.glob("train-*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    unfinished = [path for path in latest if not is_finished(path)]
    cut_short = STATE.glob(".train-*.partial")  # by a kill while they were written
    for path in {*latest, *cut_short} - {*unfinished[:KEPT]}:
        path.unlink(missing_ok=True)


def is_finished(path: Path) -> bool:
    """Whether there is nothing to go on with in the checkpoint at `path`: its model is written, or it is not whole."""
    try:
        with safe_open(path, "pt") as file:
            return "md5" in json.loads(file.metadata()["progress"])
    except SafetensorError:
        return True
