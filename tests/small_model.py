"""A trained model so small that a test can make it: what serving needs of one, without torch.

Fixed random filters, averaged over blocks, are the features; a logistic regression on them is the head.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from project import COLOURS, picture
from sklearn.linear_model import LogisticRegression

from petals.drift import Reference
from petals.images import decode, square
from petals.inference import Model

CLASSES = list(COLOURS)
SIZE, FILTERS, BLOCKS = 32, 12, 4
WIDTH = FILTERS * BLOCKS**2
GRAPH = f"""
<ir_version: 10, opset_import: ["" : 20]>
small (uint8[N, H, W, 3] image) => (float[N, {len(CLASSES)}] probabilities, float[N, {WIDTH}] features)
<int64[1] two = {{2}}, int64[2] axes = {{2, 3}}, int64[2] target = {{{SIZE}, {SIZE}}}, float white = {{255}}>
{{
    planes = Transpose <perm = [0, 3, 1, 2]> (image)
    extent = Shape <start = 2, end = 4> (planes)
    side = ReduceMin <keepdims = 1> (extent)
    margin = Sub (extent, side)
    start = Div (margin, two)
    end = Add (start, side)
    cut = Slice (planes, start, end, axes)
    resized = Resize <mode = "linear", axes = [2, 3]> (cut, , , target)
    levels = Cast <to = 1> (resized)
    pixels = Div (levels, white)
    filtered = Conv <pads = [1, 1, 1, 1]> (pixels, filters)
    lit = Relu (filtered)
    pooled = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (lit)
    features = Flatten (pooled)
    logits = Gemm <transB = 1> (features, weight, bias)
    probabilities = Softmax <axis = 1> (logits)
}}
"""


def pictures(first: int, each: int) -> tuple[list[bytes], list[int]]:
    """`each` JPEGs of every class, in turn, with their labels; another `first` gives others."""
    numbers = range(first, first + each)
    return [picture(colour, number) for number in numbers for colour in COLOURS.values()], [*range(len(COLOURS))] * each


def pixels(files: list[bytes]) -> np.ndarray:
    return np.stack([square(decode(file, "picture"), SIZE) for file in files])


def write_model(path: Path, seed: int = 0, spoilt: bool = False) -> Path:
    """Train one and write it as export does: with its check and its reference. A `spoilt` one fails its check."""
    files, labels = pictures(0, 20)
    training, validation = pixels(files), pixels(pictures(1000, 70)[0])
    filters = np.random.default_rng(seed).normal(size=(FILTERS, 3, 3, 3)).astype(np.float32)
    filters[::2] -= filters[::2].mean((2, 3), keepdims=True)  # every other one sees edges and grain alone

    write(path, filters, np.zeros((len(CLASSES), WIDTH)), np.zeros(len(CLASSES)), {})
    features = Model.open(path).run(training)[1]
    head = LogisticRegression(C=10, max_iter=500).fit(features, labels)
    write(path, filters, head.coef_, head.intercept_, {})
    probabilities, features = Model.open(path).run(validation)

    png = io.BytesIO()
    Image.fromarray(validation[0]).save(png, "PNG")
    known = probabilities[0][::-1] if spoilt else probabilities[0]
    check = {"image": base64.b64encode(png.getvalue()).decode(), "probabilities": known.tolist()}
    texts = {"check": json.dumps(check), "reference": Reference.of(probabilities, features).to_json()}
    write(path, filters, head.coef_, head.intercept_, texts)
    return path


def write(path: Path, filters: np.ndarray, weight: np.ndarray, bias: np.ndarray, texts: dict[str, str]) -> None:
    model = onnx.parser.parse_model(GRAPH)
    for name, values in (("filters", filters), ("weight", weight), ("bias", bias)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), name))
    scores = json.dumps({"macro_f1": 0.9})
    described = {"architecture": "small", "classes": json.dumps(CLASSES), "image_size": str(SIZE), "scores": scores}
    onnx.helper.set_model_props(model, {"check": "", "reference": "", **described, **texts})
    partial = path.with_suffix(".partial")
    onnx.save(model, partial)
    partial.replace(path)
