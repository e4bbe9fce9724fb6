"""A classifier as one ONNX file with its preprocessing inside: pixels in, probabilities out."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import compose
from torch import nn

from petals.errors import PetalsError
from petals.files import replacing
from petals.models import Classifier

OPSET, IR_VERSION = 20, 10

# What petals.images.square does, in ONNX; Resize on uint8 rounds and clips as Pillow's bicubic does.
PREPROCESSING = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
preprocessing (uint8[N, H, W, 3] image) => (float[N, 3, {size}, {size}] pixels)
<int64[1] two = {{2}}, int64[2] axes = {{2, 3}}, int64[2] target = {{{size}, {size}}}, float white = {{255}}>
{{
    planes = Transpose <perm = [0, 3, 1, 2]> (image)
    extent = Shape <start = 2, end = 4> (planes)
    side = ReduceMin <keepdims = 1> (extent)
    margin = Sub (extent, side)
    start = Div (margin, two)
    end = Add (start, side)
    square = Slice (planes, start, end, axes)
    resized = Resize <
        mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1,
        coordinate_transformation_mode = "half_pixel", axes = [2, 3]
    > (square, , , target)
    levels = Cast <to = 1> (resized)
    pixels = Div (levels, white)
}}
"""


class Probabilities(nn.Module):
    """What the classifier answers, as the module that torch's exporter takes."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classifier.probabilities(pixels)


def export(classifier: Classifier, info: dict[str, Any], path: str | Path) -> None:
    """Write `classifier` to `path`; the same weights give the same bytes.

    Input `image`: uint8 (N, H, W, 3), RGB, any N, H and W. Output `probabilities`: float32 (N, classes).
    Inside, the image is cut to the central square and resized as `petals.images.square` does it. `info` is
    what model.json holds; the file's metadata carries it as JSON texts, and the preprocessing in words.
    """
    size = info["image_size"]
    preprocessing = onnx.parser.parse_model(PREPROCESSING.format(ir=IR_VERSION, opset=OPSET, size=size))
    network = exported(classifier, size)
    model = compose.merge_models(preprocessing, network, io_map=[("pixels", "network_pixels")])
    strip(model)
    model.graph.name = info["architecture"]
    model.producer_name, model.producer_version = "petals", ""
    del model.opset_import[1:]  # each part brought the same one
    described = {key: value if isinstance(value, str) else json.dumps(value) for key, value in info.items()}
    described["preprocessing"] = (
        f"centre crop to a square, bicubic antialiased resize to {size} px, / 255, - mean, / std"
    )
    onnx.helper.set_model_props(model, dict(sorted(described.items())))
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))


def exported(classifier: Classifier, size: int) -> onnx.ModelProto:
    """Export the network alone: float32 `network_pixels` (N, 3, size, size) in [0, 1] to `probabilities`."""
    network = Probabilities(copy.deepcopy(classifier)).cpu().to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros(2, 3, size, size)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
            input_names=["network_pixels"],
            output_names=["probabilities"],
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = IR_VERSION
    return model


def strip(model: onnx.ModelProto) -> None:
    """Drop what tells where and from which source lines the graph was made."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.initializer, *graph.value_info)
    for part in (model, graph, *graph.node, *values):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's progress and its advice to its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def open_session(path: str | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an exported file with ONNX Runtime on the CPU; raises PetalsError where it cannot be read."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise PetalsError(f"{path}: ONNX Runtime cannot read it ({' '.join(str(error).split())})") from None


def predict(session: onnxruntime.InferenceSession, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Run uint8 images (N, H, W, 3), N > 0, through the model; gives float32 probabilities (N, classes)."""
    batches = [
        session.run(["probabilities"], {"image": np.ascontiguousarray(images[start : start + batch_size])})[0]
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(batches)
