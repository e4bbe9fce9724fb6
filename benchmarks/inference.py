"""The evaluate stage against the forward pass alone, and ONNX Runtime against PyTorch."""

import contextlib
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import stages  # sets what must be set before torch is loaded  # noqa: F401

# isort: split
import torch

from benchmarks.lab import command, pipeline_folder, repeated
from benchmarks.pairs import Row, alternate, ratios
from petals import models, onnx_export
from petals.augmentation import to_floats
from petals.devices import set_up
from petals.files import remove
from petals.inference import OUTPUTS, open_session
from petals.models import weights
from petals.packed import PackedSplit
from petals.params import ExportParams, TrainParams, load_params
from stages import evaluate


class Turns:
    """Stands in for the progress of the stage: after each of its batches of `size`, one of the limit's."""

    def __init__(self, path: Path, size: int) -> None:
        self.net, info = weights.load(path)
        self.size = size
        self.images = torch.rand(size, 3, info["image_size"], info["image_size"]).to(memory_format=torch.channels_last)
        self.plain: tuple[list[float], list[float]] = ([], [])
        self.corrupted: tuple[list[float], list[float]] = ([], [])

    def progress(self, batches: Iterable, name: str, unit: str, total: int) -> Iterator:
        ours, limit = self.plain if name in ("val", "test") else self.corrupted
        began = time.perf_counter()
        for images in batches:
            yield images
            now = time.perf_counter()
            self.net.answer(self.images)  # the stage is in inference mode here
            if len(images) == self.size:
                ours.append(now - began)
                limit.append(time.perf_counter() - now)
            began = time.perf_counter()


def model(folder: Path) -> Path:
    """Write a model of the pipeline's kind, which has learnt nothing, to the place of the trained one."""
    params = load_params(TrainParams, folder / "params.yaml")
    split = PackedSplit(folder / "data" / "prepared" / "train")
    path = folder / "models" / "model.safetensors"
    path.parent.mkdir()
    net = models.create(params.model, len(split.classes), split.image_size, params.pretrained is True)
    weights.save(net.eval(), split.classes, path, False)
    return path


def in_groups(side: list[float], size: int) -> list[float]:
    """Sums of `size` consecutive times; the first group, which warms up, and an incomplete one are left out."""
    return [sum(side[start : start + size]) for start in range(size, len(side) - size + 1, size)]


def measure_evaluate(scratch: Path, count: int = 1280, **settings: object) -> Row:
    """Predict `count` images of a test split, and 128 of val under each corruption; a pair is an eighth of `count`."""
    settings = {"device": "cpu"} | settings  # as the limit; a GPU takes other batches
    folder = pipeline_folder(scratch / "evaluate", ("prepare",), robustness=1, **settings)
    model(folder)
    prepared = folder / "data" / "prepared"
    for split, images in (("val", min(count, 128)), ("test", count)):
        remove(prepared / split)
        repeated(prepared / "train", images, prepared / split)
    size = PackedSplit(prepared / "test").at_once
    turns = None

    def progress(*arguments: object) -> Iterator:
        nonlocal turns
        turns = turns or Turns(folder / "models" / "model.safetensors", size)
        return turns.progress(*arguments)

    with contextlib.chdir(folder), mock.patch.object(evaluate, "progress", progress):
        evaluate.main.main(command("evaluate"), standalone_mode=False)
    group = max(1, count // 8 // size)
    ours, limit = (in_groups(side, group) for side in turns.plain)
    with_corruption = ratios(*(in_groups(side, group) for side in reversed(turns.corrupted)))
    note = f"{statistics.median(with_corruption):.2f} of the limit where images are corrupted first"
    images = group * size
    return Row(
        "evaluate, images a second", "forward alone on a constant batch", ">= 0.95", "images/s",
        ratios(limit, ours), images / statistics.median(ours), images / statistics.median(limit), note,
    )  # fmt: skip


def measure_onnx(scratch: Path, pairs: int = 15, **settings: object) -> Row:
    """One image from pixels to probabilities, again and again."""
    folder = pipeline_folder(scratch / "onnx", ("prepare",), **settings)
    params = load_params(ExportParams, folder / "params.yaml")
    set_up("cpu", params.threads)
    net, info = weights.load(model(folder))  # in evaluation mode
    onnx_export.write(onnx_export.assemble(onnx_export.network(net), info), info, folder / "models" / "model.onnx")
    session = open_session(folder / "models" / "model.onnx", params.threads)
    image = PackedSplit(folder / "data" / "prepared" / "val").images.read([0])

    def seconds(function, *arguments: object) -> float:
        began = time.perf_counter()
        for _ in range(20):
            function(*arguments)
        return (time.perf_counter() - began) / 20

    def onnx() -> float:
        return seconds(session.run, OUTPUTS[:1], {"image": image})

    @torch.inference_mode()
    def answer() -> None:
        net.answer(to_floats(torch.from_numpy(image)))

    def eager() -> float:
        return seconds(answer)

    onnx(), eager()
    ours, limit = alternate(onnx, eager, pairs)
    return Row(
        "ONNX Runtime, one image: times faster", "PyTorch eager", ">= 2.5", "ms", ratios(limit, ours),
        1e3 * statistics.median(ours), 1e3 * statistics.median(limit),
    )  # fmt: skip
