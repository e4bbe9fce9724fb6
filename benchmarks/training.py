"""The train stage in steady state against bare steps on one constant batch."""

import contextlib
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import stages  # sets what must be set before torch is loaded  # noqa: F401

# isort: split
import torch
from torch import nn

from benchmarks.lab import command, pipeline_folder
from benchmarks.pairs import Row, ratios
from petals import models
from petals.optim import adamw
from petals.packed import PackedSplit
from petals.params import TrainParams, load_params
from stages import train

STRIDE = 4  # steps of one side before the other's turn


class Enough(Exception):
    """Ends the stage once all is measured."""


class BareSteps:
    """The limit: forward, backward and optimiser of the same model on one constant batch."""

    def __init__(self, folder: Path) -> None:
        params = load_params(TrainParams, folder / "params.yaml")
        split = PackedSplit(folder / "data" / "prepared" / "train")
        net = models.create(params.model, len(split.classes), split.image_size, params.pretrained is True)
        self.net = net.to(memory_format=torch.channels_last).train()
        self.net.freeze(params.frozen, params.freeze_stats)
        size = models.train_size(models.MODELS[params.model], split.image_size, params.train_size)
        self.images = torch.rand(params.batch_size, 3, size, size).to(memory_format=torch.channels_last)
        self.targets = torch.rand(params.batch_size, len(split.classes)).softmax(1)
        self.optimizer = adamw(self.net, 1e-6, params.weight_decay, params.head_lr)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=params.label_smoothing)

    def step(self) -> None:
        loss = self.criterion(self.net(self.images), self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Turns:
    """Stands in for two functions of the stage: every few of its steps, and where it would validate, the limit's turn.

    So all that the stage does between its first step and its last is measured, but for the validation.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder, self.epochs = folder, epochs
        self.limit: BareSteps | None = None
        self.steps = 0
        self.spent: list[list[float]] = [[], []]
        self.pair = [0.0, 0.0]

    def progress(self, rows: Iterable, description: str, unit: str) -> Iterator:
        self.resumed = time.perf_counter() if self.limit is None else self.resumed
        for each in rows:
            if self.steps == STRIDE:
                self.pause()
            self.steps += 1
            yield each

    def pause(self) -> None:
        now = time.perf_counter()
        self.pair[0] += now - self.resumed
        if self.limit is None:
            with torch.random.fork_rng(devices=[]):
                self.limit = BareSteps(self.folder)
            self.limit.step()
            now = time.perf_counter()
        for _ in range(self.steps):
            self.limit.step()
        self.resumed, self.steps = time.perf_counter(), 0
        self.pair[1] += self.resumed - now

    def watch(self, *_: object) -> dict[str, float]:
        self.pause()
        for side, seconds in zip(self.spent, self.pair, strict=True):
            side.append(seconds)
        self.pair = [0.0, 0.0]
        if len(self.spent[0]) > self.epochs:
            raise Enough
        return {"macro_f1": 0.0, "nll": 0.0}


def measure(scratch: Path, epochs: int = 6, **settings: object) -> Row:
    """Train on the sample for `epochs` and one to warm up; a pair is an epoch and as many bare steps."""
    folder = pipeline_folder(scratch / "training", ("prepare", "augment"), epochs=1000, **settings)
    turns = Turns(folder, epochs)
    with (
        contextlib.chdir(folder),
        mock.patch.object(train, "progress", turns.progress),
        mock.patch.object(train, "watch", turns.watch),
        contextlib.suppress(Enough),
    ):
        train.main.main(command("train"), standalone_mode=False)
    ours, limit = (side[1:] for side in turns.spent)
    params = load_params(TrainParams, folder / "params.yaml")
    images = len(PackedSplit(folder / "data" / "prepared" / "train")) // params.batch_size * params.batch_size
    return Row(
        "train", "train, images a second in steady state", "forward, backward, optimiser on one constant batch",
        ">= 0.97", "images/s", ratios(limit, ours), images / statistics.median(ours), images / statistics.median(limit),
    )  # fmt: skip
