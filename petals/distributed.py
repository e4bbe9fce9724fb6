"""One run in several processes: who they are, what each computes, and what they tell each other.

torchrun starts them and says in the environment who each is. Without it there is one, and nothing here costs anything.
"""

import atexit
import math
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from petals.draws import DrawsOfWholeBatch
from petals.errors import PetalsError
from petals.models import BATCH_NORMS, Classifier
from petals.packed import PackedSplit
from petals.predicting import answers

SECONDS = 60.0  # how long a step waits for a process that says nothing, unless PETALS_TIMEOUT says otherwise
MEETING = timedelta(minutes=10)  # before the first step: one machine may read its data much faster than another
# As gloo, NCCL and torch's store put it where the other end is gone or silent.
LOST = re.compile(
    r"gloo|NCCL|Connection (closed|reset)|Timed out|TCPStore|Dist\w+Error|Broken pipe|unreachable|No route", re.I
)
ADDRESS = re.compile(r"\[?((?:\d{1,3}\.){3}\d{1,3})\]?")


def local_device(name: str) -> str:
    """The device of this process, where `name` is what params.yaml says: on a machine of many GPUs each has its own.

    Raises PetalsError where there are fewer GPUs than processes, or `name` is one that they cannot share.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes == 1 or name == "cpu":
        return name
    gpus = torch.cuda.device_count()
    if name == "auto" and not gpus:
        return "cpu"
    if name not in ("auto", "cuda"):
        raise PetalsError(f"device: {processes} processes cannot share {name}; set device: auto or cpu")
    if gpus < processes:
        raise PetalsError(f"device: {processes} processes but {gpus} GPUs on this machine; start fewer, or device: cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def join(device: torch.device) -> "Group":
    """Meet the other processes of this run; alone where torchrun did not start it, or started only one."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return Group(0, 1, device)
    of_a_step = patience()
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a lost process is an error here, and no abort
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=MEETING)
        atexit.register(leave)
    return Group(rank, size, device, dist.new_group(timeout=of_a_step))


def patience() -> timedelta:
    """How long another process may be silent: PETALS_TIMEOUT in the environment, or SECONDS; raises PetalsError."""
    text = os.environ.get("PETALS_TIMEOUT", str(SECONDS))
    try:
        seconds = float(text)
        if not 0 < seconds < math.inf:
            raise ValueError
    except ValueError:
        raise PetalsError(f"PETALS_TIMEOUT: should be a number of seconds above 0, but is {text!r}") from None
    return timedelta(seconds=seconds)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of the batch of a step, which go through the network at once."""

    rows: slice
    count: int  # images in the batch
    last: bool  # of those that this process takes, one after the other

    @property
    def weight(self) -> float:
        """Its share of the mean over the batch."""
        return (self.rows.stop - self.rows.start) / self.count

    @contextmanager
    def taken_by(self, learner: nn.Module) -> Iterator[None]:
        """For forward and backward: draws are those of the whole batch, gradients are exchanged after the last."""
        with ExitStack() as stack:
            if self.weight < 1:
                stack.enter_context(DrawsOfWholeBatch(self.rows, self.count))
            if isinstance(learner, DistributedDataParallel) and not self.last:
                stack.enter_context(learner.no_sync())
            yield


@dataclass(frozen=True)
class Group:
    """The processes of a run, as this one, number `rank` of `size`, sees them."""

    rank: int
    size: int
    device: torch.device
    steps: dist.ProcessGroup | None = None  # for what happens in every step, where none should be waited for long

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def data_parallel(self, net: nn.Module) -> nn.Module:
        """What the training step calls: `net`, or around it what averages the gradients of all processes."""
        if self.size == 1:
            return net
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            net, devices, process_group=self.steps, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def sync_batch_norms(self, net: nn.Module) -> nn.Module:
        """On GPUs, let batch norms that learn their statistics see the batches of all processes."""
        if self.size == 1 or self.device.type != "cuda":
            return net
        return nn.SyncBatchNorm.convert_sync_batchnorm(net, self.steps)

    def micro_batches(self, count: int, accumulate: int) -> list[MicroBatch]:
        """The rows of a batch of `count` images that this process takes, in `accumulate` micro-batches.

        Raises PetalsError where there are not enough images for all processes.
        """
        pieces = self.size * accumulate
        if pieces > count:
            advice = "lower accumulate" if accumulate > 1 else "start fewer processes"
            parts = f"{self.size} processes × {accumulate}"
            raise PetalsError(f"accumulate: {parts} are more than the {count} images of a step; {advice}")
        bounds = [count * piece // pieces for piece in range(pieces + 1)]
        first, end = self.rank * accumulate, (self.rank + 1) * accumulate
        return [
            MicroBatch(slice(start, stop), count, stop == bounds[end])
            for start, stop in pairwise(bounds[first : end + 1])
        ]

    def agree(self, loss: float, signal: int) -> tuple[float, int]:
        """The sum of all processes' losses, and the signal that one of them received, or 0."""
        if self.size == 1:
            return loss, signal
        told = [torch.zeros(2, dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(told, torch.tensor([loss, signal], dtype=torch.float64), group=self.steps)
        return sum(each[0].item() for each in told), int(max(each[1].item() for each in told))

    def average_statistics(self, net: nn.Module) -> None:
        """Make one of what the batch norms of all processes have learned in this step."""
        if self.size == 1:
            return
        norms = [each for each in net.modules() if isinstance(each, BATCH_NORMS) and each.training]
        if not norms:
            return
        buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        flat = torch.cat(buffers)
        dist.all_reduce(flat, group=self.steps)
        for buffer, mean in zip(buffers, (flat / self.size).split([len(each) for each in buffers]), strict=True):
            buffer.copy_(mean)

    def barrier(self) -> None:
        """Wait for all processes, as long as for their first step: one may have much to load or to write.

        What is broadcast is no barrier: who has it, and has passed it on, need not wait for the others.
        """
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))

    def broadcast(self, content: bytes) -> bytes:
        """What the main process gives, in every process."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0)
        data = torch.empty(int(length), dtype=torch.uint8)
        if self.main and content:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        if len(data):
            dist.broadcast(data, 0)
        return data.numpy().tobytes()

    @contextmanager
    def borrowed(self, *paths: Path) -> Iterator[list[Path]]:
        """The files of the main process: in the others copies, for as long as this lasts.

        Raises PetalsError in the others where the main process has no such file.
        """
        contents = [self.broadcast(path.read_bytes() if self.main and path.is_file() else b"") for path in paths]
        if self.main:
            yield list(paths)
            return
        for path, content in zip(paths, contents, strict=True):
            if not content:
                raise PetalsError(f"{path} is missing where the first process runs")
        with tempfile.TemporaryDirectory() as folder:
            copies = [Path(folder) / path.name for path in paths]
            for copy, content in zip(copies, contents, strict=True):
                copy.write_bytes(content)
            yield copies

    def check(self, key: str) -> None:
        """Raise PetalsError where `key`, the fingerprint of code, data and settings, is another in some process."""
        if self.broadcast(key.encode()) != key.encode():
            raise PetalsError(
                f"process {self.rank} of {self.size} has other code, data, settings or libraries than the first:"
                " bring all machines to the same commit, dvc.lock and params.yaml"
            )

    def answers(
        self, net: Classifier, split: PackedSplit, progress: Callable[[Iterable, int], Iterable] = lambda each, _: each
    ) -> tuple[np.ndarray, np.ndarray]:
        """The probabilities (float32, N × C) and features (float32, N × D) of a split.

        Each process takes every `size`-th batch, and all get all. `progress` is told the batches and their number.
        """
        size = split.at_once * (1 if self.device.type == "cpu" else 8)  # so few keep no GPU busy
        starts = range(self.rank * size, len(split), self.size * size)
        batches = progress(split.batches(size, self.rank, self.size), len(starts))
        mine = answers(net, batches, self.device, len(split.classes))
        if self.size == 1:
            return mine
        widths = len(split.classes), net.head.in_features
        probabilities, features = (np.zeros((len(split), width), np.float32) for width in widths)
        for whole, part in zip((probabilities, features), mine, strict=True):
            for number, start in enumerate(starts):
                whole[start : start + size] = part[number * size : (number + 1) * size]
            dist.all_reduce(torch.from_numpy(whole))  # a slower machine may need minutes more for its share
        return probabilities, features

    def predict(self, net: Classifier, split: PackedSplit) -> np.ndarray:
        """The probabilities (float32, N × C) of `answers` alone."""
        return self.answers(net, split)[0]


def lost(error: BaseException) -> str | None:
    """One line for an error that means that another process is gone; None for any other."""
    text = f"{type(error).__name__} {error}"
    if not dist.is_available() or "WORLD_SIZE" not in os.environ or not LOST.search(text):
        return None
    address = ADDRESS.search(text)
    where = f" at {address[1]}" if address else ""
    lines = [line for line in text.splitlines() if line.strip()]
    # Of NCCL's lines the first says what failed and the last why, which may be this machine's own set-up.
    why = f" ({'; '.join(dict.fromkeys([lines[0], lines[-1]]))})" if "NCCL" in text else ""
    return f"another process of this run{where} was lost{why}; dvc repro goes on from the last checkpoint"


def first_to_fail() -> bool:
    """Whether no other process of this run has failed before, and told why."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    key = f"petals/failed/{os.environ.get('GROUP_RANK', 0)}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    try:
        socket.create_connection(place, timeout=2).close()  # where this fails, the store would write pages about it
        return dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=2)).add(key, 1) == 1
    except (OSError, RuntimeError):  # cut off from the machine that keeps the list: others cannot have told it here
        return True
