"""export: write the model as ONNX, once it is proven to say what PyTorch says, and again in 8-bit integers."""

from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import onnx

from petals import onnx_export
from petals.devices import set_up
from petals.errors import PetalsError
from petals.files import replacing
from petals.inference import OUTPUTS, open_session
from petals.models import weights
from petals.packed import PackedSplit
from petals.params import ExportParams, load_params
from petals.predicting import answers
from petals.quantisation import Quantiser
from petals.scores import headline
from petals.tables import write_json
from stages.cli import progress, stage

LEAST_AGREEMENT = 0.999
CALIBRATION = 256  # training images, evenly spaced


@stage(ExportParams)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("exported", type=click.Path(path_type=Path))
@click.argument("quantised", type=click.Path(path_type=Path))
@click.argument("metrics", type=click.Path(path_type=Path))
def main(model: Path, reference: Path, train: Path, val: Path, exported: Path, quantised: Path, metrics: Path) -> None:
    """Write MODEL (.safetensors) as EXPORTED (.onnx), with the preprocessing inside, and in int8 as QUANTISED.

    Input: `image`, uint8 N × H × W × 3 of any N, H and W of 1 and more. Outputs: `probabilities`, float32 N × classes,
    and `features`, float32 N × D. Where ONNX Runtime and PyTorch name the same class for less than 99.9 % of the images
    of VAL, nothing is written; else METRICS (JSON) says how near they are.

    Int8 is calibrated on images of TRAIN. Where macro F1 on VAL falls by more than max_f1_drop, the most
    sensitive layers are left in float, up to half of them; where that does not help, QUANTISED is an empty file. A
    model that has learnt from VAL (`final: true`) has no macro F1: of it, int8 may change the class of that share of
    VAL.

    Both files carry their own scores on VAL, REFERENCE (JSON), and an image of VAL with their answer to it.
    """
    params = load_params(ExportParams)
    device = set_up("cpu", params.threads)
    net, info = weights.load(model)
    seen, split = PackedSplit(train), PackedSplit(val)
    for each in (seen, split):
        each.check(model, info["classes"], info["image_size"])
    kept_for_drift = read(reference)
    expected, _ = answers(net, split.batches(split.at_once), device, len(info["classes"]))

    def ask(graph: onnx.ModelProto) -> np.ndarray:
        session = open_session(graph.SerializeToString(), params.threads)
        batches = split.batches(split.at_once)
        return np.concatenate([session.run(OUTPUTS[:1], {"image": images})[0] for images in batches])

    def scores(probabilities: np.ndarray) -> dict[str, float]:
        return {} if info["final"] else headline(split.labels, probabilities)

    def change(probabilities: np.ndarray) -> float:
        if info["final"]:
            return agreement(probabilities, in_fp32) - 1
        before, after = (scores(each)["macro_f1"] for each in (in_fp32, probabilities))
        return after - before

    def write(graph: onnx.ModelProto, probabilities: np.ndarray, precision: str, path: Path) -> int:
        check = onnx_export.check_text(split.images.read([0])[0], probabilities[0])
        texts = {"precision": precision, "scores": scores(probabilities), "reference": kept_for_drift, "check": check}
        onnx_export.write(graph, info | texts, path)
        return path.stat().st_size

    network = onnx_export.network(net)
    full = onnx_export.assemble(network, info)
    in_fp32 = ask(full)
    agreed, difference = agreement(in_fp32, expected), float(np.abs(in_fp32 - expected).max())
    if agreed < LEAST_AGREEMENT:
        raise PetalsError(
            f"{exported} not written: ONNX Runtime agrees with PyTorch on {agreed:.2%} of {val} only"
            f" (largest difference {difference:.2g})"
        )

    what = "agreement with fp32 on val" if info["final"] else "macro F1 on val"
    rows = np.linspace(0, len(seen) - 1, min(CALIBRATION, len(seen))).astype(int)
    quantiser = Quantiser(network, seen.images.read(rows), params.threads)
    for in_float in quantiser.attempts(lambda groups: progress(groups, "layers", "layer")):
        graph = onnx_export.assemble(quantiser.quantise(in_float), info)
        probabilities = ask(graph)
        changed = change(probabilities)
        small = Int8(graph, probabilities, in_float, kept=changed >= -params.max_f1_drop - 1e-9)
        layers = f"{len(quantiser.layers) - len(in_float)} of {len(quantiser.layers)} layers"
        click.echo(f"int8, {layers}: {what} changes by {changed:+.4f}")
        if small.kept:
            break

    size = write(full, in_fp32, "fp32", exported)
    click.echo(f"{exported}: {size / 1e6:.1f} MB, top-1 agreement {agreed:.2%}, largest difference {difference:.1e}")
    agreed_in_int8 = agreement(small.probabilities, in_fp32)
    if small.kept:
        small_size = write(small.graph, small.probabilities, f"int8: {layers}", quantised)
        click.echo(f"{quantised}: {small_size / 1e6:.1f} MB, names the same class as fp32 for {agreed_in_int8:.2%}")
    else:
        small_size = 0
        with replacing(quantised) as partial:
            partial.touch()
        click.echo(f"{quantised}: left empty, as {what} falls by more than {params.max_f1_drop:g} in int8")
    write_json(
        metrics,
        {
            "top1_agreement": round(agreed, 6),
            "max_abs_diff": float(f"{difference:.1e}"),
            **scores(in_fp32),
            "bytes": size,
            "int8": {
                "kept": small.kept,
                "top1_agreement": round(agreed_in_int8, 6),
                **scores(small.probabilities),
                "bytes": small_size,
                "layers_in_float": small.in_float,
            },
        },
    )


class Int8(NamedTuple):
    """A graph in int8 but for the layers `in_float`, its `probabilities` on val (float32, N × C), and if it is kept."""

    graph: onnx.ModelProto
    probabilities: np.ndarray
    in_float: list[str]
    kept: bool


def agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of the images for which two answers (float, N × C) name the same class."""
    return float((found.argmax(1) == expected.argmax(1)).mean())


def read(reference: Path) -> str:
    try:
        return reference.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PetalsError(f"{reference} is missing; run dvc repro evaluate") from None


if __name__ == "__main__":
    main(prog_name="python -m stages.export")
