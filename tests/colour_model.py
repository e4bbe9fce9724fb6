"""An exported model as petals.onnx_export writes it, but so small that it is made and asked in milliseconds."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from petals.drift import Reference

CLASSES = ("crocus", "daisy", "tulip")


def colour_model(path: Path, seed: int = 0) -> Path:
    """Write a model that tells three classes apart by an image's mean colour; `seed` chooses its weights."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(3, len(CLASSES))).astype(np.float32) / 50
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["features"], keepdims=0),
        helper.make_node("MatMul", ["features", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(CLASSES)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    images = random.integers(0, 256, (40, 8, 8, 3), np.uint8)
    probabilities, features = session.run(None, {"image": images})
    png = io.BytesIO()
    Image.fromarray(images[0]).save(png, "PNG")
    check = {"image": base64.b64encode(png.getvalue()).decode(), "probabilities": probabilities[0].tolist()}
    texts = {
        "architecture": "tiny",
        "check": json.dumps(check),
        "classes": json.dumps(CLASSES),
        "image_size": "8",
        "reference": Reference.of(probabilities, features).to_json(),
        "scores": json.dumps({"macro_f1": 0.5}),
    }
    helper.set_model_props(model, texts)
    onnx.save(model, path)
    return path
