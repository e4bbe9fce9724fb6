"""export: write the model as ONNX, once it is proven to say what PyTorch says."""

from pathlib import Path

import click
import numpy as np

from petals.devices import set_up
from petals.errors import PetalsError
from petals.files import replacing
from petals.models import weights
from petals.onnx_export import export, open_session, predict
from petals.packed import PackedSplit
from petals.params import ExportParams, load_params
from petals.predicting import BATCH, probabilities
from petals.scores import macro_f1
from petals.tables import write_json
from stages.cli import stage

LEAST_AGREEMENT = 0.999


@stage(ExportParams)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("exported", type=click.Path(path_type=Path))
@click.argument("metrics", type=click.Path(path_type=Path))
def main(model: Path, val: Path, exported: Path, metrics: Path) -> None:
    """Write MODEL (.safetensors) as EXPORTED (.onnx), with the preprocessing inside.

    Input: `image`, uint8 N × H × W × 3 of any N, H and W. Output: `probabilities`, float32 N × classes. Where
    ONNX Runtime and PyTorch name the same class for less than 99.9 % of the images of VAL, nothing is written;
    else METRICS (JSON) says how near they are.
    """
    params = load_params(ExportParams)
    device = set_up("cpu", params.threads)
    net, info = weights.load(model)
    split = PackedSplit(val)
    split.check(model, info["classes"], info["image_size"])
    expected = probabilities(net, split.batches(BATCH), device, len(info["classes"]))

    with replacing(exported) as partial:
        export(net, info, partial)
        session = open_session(partial, params.threads)
        found = np.concatenate([predict(session, images) for images in split.batches(BATCH)])
        agreement = float((found.argmax(1) == expected.argmax(1)).mean())
        difference = float(np.abs(found - expected).max())
        if agreement < LEAST_AGREEMENT:
            raise PetalsError(
                f"{exported} not written: ONNX Runtime agrees with PyTorch on {agreement:.2%} of {val} only"
                f" (largest difference {difference:.2g})"
            )
        size = partial.stat().st_size

    score = {} if info["final"] else {"macro_f1": round(macro_f1(split.labels, found.argmax(1)), 6)}
    write_json(
        metrics,
        {
            "top1_agreement": round(agreement, 6),
            "max_abs_diff": float(f"{difference:.1e}"),
            **score,
            "bytes": size,
        },
    )
    click.echo(f"{exported}: {size / 1e6:.1f} MB, top-1 agreement {agreement:.2%}, largest difference {difference:.1e}")


if __name__ == "__main__":
    main(prog_name="python -m stages.export")
