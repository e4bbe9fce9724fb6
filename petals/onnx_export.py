"""A classifier as one ONNX file with its preprocessing inside: pixels in, probabilities and features out."""

import base64
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
import torch
from onnx import compose
from PIL import Image
from torch import nn

from petals.files import replacing
from petals.inference import OUTPUTS
from petals.models import Classifier

OPSET, IR_VERSION = 20, 10

# What petals.images.square does, in ONNX; Resize on uint8 rounds and clips as Pillow's bicubic does.
PREPROCESSING = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
preprocessing (uint8[N, H, W, 3] image) => (float[N, 3, {size}, {size}] pixels)
<int64[1] two = {{2}}, int64[2] axes = {{2, 3}}, int64[2] target = {{{size}, {size}}}, float white = {{255}}>
{{
    planes = Transpose <perm = [0, 3, 1, 2]> (image)
    outer = Shape <start = 0, end = 2> (planes)
    extent = Shape <start = 2, end = 4> (planes)
    side = ReduceMin <keepdims = 1> (extent)
    margin = Sub (extent, side)
    start = Div (margin, two)
    end = Add (start, side)
    square = Slice (planes, start, end, axes)
    sizes = Concat <axis = 0> (outer, target)
    resized = Resize <
        mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1,
        coordinate_transformation_mode = "half_pixel"
    > (square, , , sizes)
    levels = Cast <to = 1> (resized)
    pixels = Div (levels, white)
}}
"""


class Answers(nn.Module):
    """What the classifier answers, as the module that torch's exporter takes."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.classifier.answer(pixels)


def network(classifier: Classifier) -> onnx.ModelProto:
    """Export the network alone, without preprocessing.

    Input `network_pixels`: float32 (N, 3, S, S) in [0, 1], any N of 1 and more, S the classifier's image size. Outputs:
    `probabilities`, float32 (N, classes), and `features`, float32 (N, D), pooled, as the head sees them.
    """
    module = Answers(copy.deepcopy(classifier)).cpu().to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros(2, 3, classifier.image_size, classifier.image_size)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
            input_names=["network_pixels"],
            output_names=OUTPUTS,
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = IR_VERSION
    strip(model)
    return model


def assemble(network: onnx.ModelProto, info: dict[str, Any]) -> onnx.ModelProto:
    """Put the preprocessing before `network`; the same network gives the same bytes.

    Input `image`: uint8 (N, H, W, 3), RGB, any N, H and W. Inside, the image is cut to the central square and resized
    as `petals.images.square` does it. Outputs: those of `network`. `info` is what model.json holds.
    """
    preprocessing = onnx.parser.parse_model(PREPROCESSING.format(ir=IR_VERSION, opset=OPSET, size=info["image_size"]))
    model = compose.merge_models(preprocessing, network, io_map=[("pixels", "network_pixels")])
    strip(model)
    model.graph.name = info["architecture"]
    model.producer_name, model.producer_version = "petals", ""
    del model.opset_import[1:]  # each part brought the same one
    return model


def write(model: onnx.ModelProto, info: dict[str, Any], path: str | Path) -> None:
    """Write `model` to `path`.

    Its metadata carries what `info` holds, as JSON texts where it is not text already, and the preprocessing in words.
    """
    described = {key: value if isinstance(value, str) else json.dumps(value) for key, value in info.items()}
    described["preprocessing"] = (
        f"centre crop to a square, bicubic antialiased resize to {info['image_size']} px, / 255, - mean, / std"
    )
    onnx.helper.set_model_props(model, dict(sorted(described.items())))
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))


def check_text(image: np.ndarray, probabilities: np.ndarray) -> str:
    """An image (uint8, H × W × 3) and the answer to it (float, C) as the JSON text that a file carries as `check`."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    answer = [float(f"{each:.6g}") for each in probabilities]
    return json.dumps({"image": base64.b64encode(png.getvalue()).decode(), "probabilities": answer})


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
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
