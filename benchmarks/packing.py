"""Prepare and augment, from the start of their process to its end, against what no such stage can do without."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import stages  # sets what must be set before torch is loaded  # noqa: F401

# isort: split
import kornia.augmentation as K
import torch
from simplejpeg import decode_jpeg
from torch import nn
from torch.nn import functional as F

from benchmarks import lab
from benchmarks.lab import pipeline_folder, put_params, repeated, run_stage
from benchmarks.pairs import Row, alternate, ratios
from petals.augmentation import POLICY_KNOBS, view_policy
from petals.devices import keep_freed_memory
from petals.files import remove
from petals.flowers import SPLIT_SIZES
from petals.operations import DrawnOnly, RandomHue
from petals.packed import PackedSplit
from petals.parallel import cores, in_order
from petals.params import AugmentParams, PrepareParams, load_params
from petals.tfrecord import decode_example, read_records

LIMIT_SECONDS = 4.0


def decode_and_resize(task: tuple[Path, int]) -> tuple[int, float]:
    """Decode and resize the photographs of a file, in memory before the clock starts; images and seconds.

    libjpeg-turbo, at full size where prepare has it reduce large ones already; and torch's antialiased bilinear resize
    of bytes: of Pillow's, kornia_rs's and torch's the fastest by far, several times faster than Pillow's from 512 px.
    """
    path, size = task
    torch.set_num_threads(1)
    files = [decode_example(payload)["image"][0] for _, payload in read_records(path)]
    F.interpolate(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (4, 4), mode="bilinear", antialias=True)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < LIMIT_SECONDS:
        for file in files[done % len(files) :][:64]:
            pixels = torch.from_numpy(decode_jpeg(file))[None].permute(0, 3, 1, 2)
            F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
            done += 1
    return done, time.perf_counter() - began


def measure_prepare(scratch: Path, pairs: int = 3, share: float = 1.0, **settings: object) -> Row:
    """Pack as many photographs of 512 px as the competition has."""
    data = lab.photographs(share)
    folder = scratch / "prepare"
    folder.mkdir()
    put_params(folder, settings)
    size = load_params(PrepareParams, folder / "params.yaml").image_size
    files = sorted(data.rglob("*.tfrec"))
    total = sum(round(full * share) for full in SPLIT_SIZES.values())

    def ours() -> float:
        remove(folder / "data")
        os.sync()  # what an earlier turn wrote is not to be paid for in this one
        began = time.perf_counter()
        run_stage("prepare", folder, data)
        return total / (time.perf_counter() - began)

    def limit() -> float:
        os.sync()
        tasks = [(path, size) for path in files[: cores()]]
        return sum(done / seconds for done, seconds in in_order(decode_and_resize, tasks))

    mine, bare = alternate(ours, limit, pairs)
    remove(folder)
    return Row(
        "prepare, images a second, everything included",
        "bare libjpeg-turbo and the fastest antialiased resize, all cores", ">= 0.8", "images/s",
        ratios(mine, bare), statistics.median(mine), statistics.median(bare), f"{total} photographs of 512 px",
    )  # fmt: skip


def measure_augment(scratch: Path, pairs: int = 3, count: int = 2000, **settings: object) -> Row:
    """Render the views of `count` images."""
    folder = pipeline_folder(scratch / "augment", ("prepare",), **settings)
    train = folder / "data" / "prepared" / "train"
    repeated(train, count, train.with_name("many"))
    remove(train)
    train.with_name("many").rename(train)
    params, split = load_params(AugmentParams, folder / "params.yaml"), PackedSplit(train)
    knobs = {knob: getattr(params, knob) for knob in POLICY_KNOBS}
    batch = torch.from_numpy(split.images.read(np.arange(min(split.at_once, count)))).permute(0, 3, 1, 2).float() / 255

    def ours() -> float:
        began = time.perf_counter()
        run_stage("augment", folder)
        return params.views * count / (time.perf_counter() - began)

    def apply(policy: nn.Sequential) -> float:
        """A policy alone, again and again; images a second."""
        torch.set_num_threads(1)
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < LIMIT_SECONDS:
            policy(batch)
            done += len(batch)
        return done / (time.perf_counter() - began)

    def views_per_second(policy: Callable[[], nn.Sequential]) -> float:
        keep_freed_memory(2**24)
        policies = [policy() for _ in range(cores())]
        with ThreadPoolExecutor(cores()) as pool:  # on all cores in the way that the stage does it
            return sum(pool.map(apply, policies))

    def policy() -> nn.Sequential:
        return view_policy(knobs, split.image_size)

    def limit() -> float:
        return views_per_second(lambda: kornias_own(policy()))

    mine, bare = alternate(ours, limit, pairs)
    remove(folder)
    return Row(
        "augment, views a second, everything included", "Kornia's policy alone on a batch in memory",
        ">= 0.9", "views/s", ratios(mine, bare), statistics.median(mine), statistics.median(bare),
        f"{params.views} views of {count} images; the policy with petals/operations.py is "
        f"{views_per_second(policy) / limit():.2f} times as fast as Kornia's own",
    )  # fmt: skip


def kornias_own(policy: nn.Sequential) -> nn.Sequential:
    """The same policy without what petals/operations.py changes on a processor."""
    operations = (each.operation if isinstance(each, DrawnOnly) else each for each in policy)
    return nn.Sequential(
        *(K.RandomHue(each.hue.tolist(), p=1.0) if isinstance(each, RandomHue) else each for each in operations)
    )
