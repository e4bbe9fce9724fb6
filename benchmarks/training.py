"""The train stage in steady state against bare steps on one constant batch."""

import contextlib
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import stages  # sets what must be set before torch is loaded  # noqa: F401

# isort: split
import numpy as np
import torch
from torch import nn

from benchmarks.lab import command, pipeline_folder
from benchmarks.pairs import Row, ratios
from petals import models
from petals.augmentation import BatchAugmentation, online_policy, to_floats
from petals.devices import autocast, choose_precision, set_up
from petals.optim import adamw
from petals.packed import PackedSplit
from petals.params import TrainParams, load_params
from petals.training_images import TrainingImages
from stages import train

STRIDE = 8  # steps of one side before the other's turn


class Enough(Exception):
    """Ends the stage once all is measured."""


class BareSteps:
    """The limit: forward, backward and optimiser of the same model on one constant batch."""

    def __init__(self, folder: Path) -> None:
        params = load_params(TrainParams, folder / "params.yaml")
        split = PackedSplit(folder / "data" / "prepared" / "train")
        self.device, self.precision = set_up(params.device, params.threads), params.precision
        if self.precision == "auto":
            self.precision, _ = choose_precision(self.device, models.MODELS[params.model].attention)
        net = models.create(params.model, len(split.classes), split.image_size, params.pretrained is True)
        self.net = net.to(self.device, memory_format=torch.channels_last).train()
        if params.pretrained:
            self.net.freeze(params.frozen, params.freeze_stats)
        if params.compile:
            self.net.compile()
        size = models.train_size(models.MODELS[params.model], split.image_size, params.train_size)
        images = torch.rand(params.batch_size, 3, size, size)
        self.images = images.to(self.device, memory_format=torch.channels_last)
        self.targets = torch.rand(params.batch_size, len(split.classes)).softmax(1).to(self.device)
        self.optimizer = adamw(self.net, 1e-6, params.weight_decay, params.head_lr)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=params.label_smoothing)

    def step(self) -> None:
        with autocast(self.device, self.precision):
            loss = self.criterion(self.net(self.images), self.targets)
        self.net.zero_grad()
        loss.backward()
        self.optimizer.step()


def clock() -> float:
    """The time, once a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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

    def progress(self, steps: Iterable, description: str, unit: str, total: int) -> Iterator:
        self.resumed = clock() if self.limit is None else self.resumed
        for each in steps:
            self.steps += 1
            yield each
            if self.steps == STRIDE:  # and before the next batch is asked for, so that none is read in the limit's turn
                self.pause()

    def pause(self) -> None:
        now = clock()
        self.pair[0] += now - self.resumed
        if self.limit is None:
            with torch.random.fork_rng(devices=[]):
                self.limit = BareSteps(self.folder)
            self.limit.step()
            now = clock()
        for _ in range(self.steps):
            self.limit.step()
        self.resumed, self.steps = clock(), 0
        self.pair[1] += self.resumed - now

    def validate(self, *_: object) -> dict[str, float]:
        self.pause()
        for side, seconds in zip(self.spent, self.pair, strict=True):
            side.append(seconds)
        self.pair = [0.0, 0.0]
        if len(self.spent[0]) > self.epochs:
            raise Enough
        return {"macro_f1": 0.0, "nll": 0.0}


def kornia_seconds(folder: Path, device: torch.device, times: int = 20) -> float:
    """What the augmentation of one batch takes, with nothing else at work."""
    params = load_params(TrainParams, folder / "params.yaml")
    split = PackedSplit(folder / "data" / "prepared" / "train")
    size = models.train_size(models.MODELS[params.model], split.image_size, params.train_size)
    data = TrainingImages(split, folder / "data" / "augmented", params.seed, size=size)
    policy = online_policy(data.policy, split.image_size, size) if data.versions == 1 else None
    augment = BatchAugmentation(
        len(data.split.classes), params.flip, params.erasing, params.mixup, params.cutmix, policy
    )
    images, labels = (each.to(device) for each in data.read(np.arange(params.batch_size) % len(data.split), 0))
    spent = []
    for _ in range(times):
        began = clock()
        augment(to_floats(images), labels)
        spent.append(clock() - began)
    return statistics.median(spent)


def measure(scratch: Path, epochs: int = 4, name: str = "train", **settings: object) -> Row:
    """Train on the sample for `epochs` and one to warm up; a pair is an epoch and as many bare steps."""
    folder = pipeline_folder(scratch / name, ("prepare", "augment"), epochs=1000, **settings)
    turns = Turns(folder, epochs)
    with (
        contextlib.chdir(folder),
        mock.patch.object(train, "progress", turns.progress),
        mock.patch.object(train, "validate", turns.validate),
        contextlib.suppress(Enough),
    ):
        train.main.main(command("train"), standalone_mode=False)
    ours, limit = (side[1:] for side in turns.spent)
    params = load_params(TrainParams, folder / "params.yaml")
    steps = len(PackedSplit(folder / "data" / "prepared" / "train")) // params.batch_size
    images, a_step = steps * params.batch_size, statistics.median(ours) / steps
    what = "train, images a second in steady state" if name == "train" else f"{name}: train, images a second"
    return Row(
        what, "forward, backward, optimiser on one constant batch", ">= 0.97", "images/s",
        ratios(limit, ours), images / statistics.median(ours), images / statistics.median(limit),
        f"Kornia's part of a step {kornia_seconds(folder, turns.limit.device) / a_step:.0%}",
    )  # fmt: skip


def measure_on_gpu(model: str, scratch: Path) -> Row | str:
    """The same on a GPU at 224 px, with Kornia's whole policy in every step."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    knobs = {"image_size": 224, "train_size": 1.0, "views": 0, "batch_size": 128, "precision": "auto"}
    return measure(scratch, name=f"{model} on a GPU", model=model, pretrained=False, **knobs)
