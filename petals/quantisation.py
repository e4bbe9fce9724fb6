"""A network in 8-bit integers: static quantisation by ONNX Runtime, sensitive layers left in float.

Weights become int8, each output channel with a scale of its own; activations become uint8, with the range that they
have on calibration images (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; Krishnamoorthi's whitepaper of the same year for the scale a channel).
Rounding a convolution's weights shifts the mean of each channel that comes out of it; its bias takes that back (Nagel
et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2).
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, MinMaxCalibrater, QDQQuantizer, QuantType

from petals.inference import open_session

LAYERS = ("Conv", "Gemm", "MatMul")
# A clip is part of the layer before it: else that layer's range is what comes before the clip, which is far wider.
ACTIVATIONS = ("Clip", "Relu")
BATCH = 16
RANKED_BY = 32  # images that the layers' errors are measured on
MOST_GROUPS = 64  # a deeper network's layers are measured a few neighbours at a time
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the layers to leave in float, tried in this order


class Quantiser:
    """Quantises one `network` (petals.onnx_export.network), calibrated on `images` (uint8, N × S × S × 3).

    Made once: the ranges of all activations are measured here. `layers` are the names of the layers that can be
    quantised, by their weights, in the order of the graph. All that lies between them stays in float: normalisation,
    pooling, softmax, attention between activations.
    """

    def __init__(self, network: onnx.ModelProto, images: np.ndarray, threads: int) -> None:
        self.network = onnx.shape_inference.infer_shapes(network)
        self.images, self.threads = images, threads
        weights = {each.name for each in network.graph.initializer}
        self.nodes = {
            node.input[1].removeprefix("classifier.").removesuffix(".weight"): node.name
            for node in network.graph.node
            if node.op_type in LAYERS and node.input[1] in weights
        }
        self.layers = list(self.nodes)
        with tempfile.TemporaryDirectory(prefix="petals-") as folder:
            plain, watched = Path(folder) / "network.onnx", Path(folder) / "watched.onnx"
            onnx.save(self.network, plain)
            calibrator = MinMaxCalibrater(plain, [*LAYERS, *ACTIVATIONS], str(watched))
            calibrator.augment_graph()
            calibrator.infer_session = open_session(watched, threads)  # its own would use all cores
            calibrator.collect_data(Batches(images))
            self.ranges = calibrator.compute_data()
        self.shifts = self.mean_shifts()

    def quantise(self, in_float: Iterable[str]) -> onnx.ModelProto:
        """Give the network in int8 but for the layers `in_float`; the same images give the same bytes."""
        chosen, graph = {self.nodes[layer] for layer in set(self.layers).difference(in_float)}, self.network.graph
        outputs = {output for node in graph.node if node.name in chosen for output in node.output}
        chosen |= {node.name for node in graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs}
        network = copy.deepcopy(self.network)
        biases = {each.name: each for each in network.graph.initializer}
        for node in network.graph.node:
            if node.name in chosen & self.shifts.keys():
                bias = numpy_helper.to_array(biases[node.input[2]]) - self.shifts[node.name]
                biases[node.input[2]].CopyFrom(numpy_helper.from_array(bias, node.input[2]))
        quantizer = QDQQuantizer(
            network,
            per_channel=True,
            reduce_range=False,  # 7-bit weights spare processors without VNNI from saturation, and cost all others
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=sorted(chosen),
            nodes_to_exclude=[],
            op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return quantizer.model.model

    def attempts(self, progress: Callable[[Sequence], Iterable] = iter) -> Iterator[list[str]]:
        """The layers to leave in float: first none, then the most sensitive sixteenth, eighth, quarter and half.

        Which these are is only found out when a second attempt is asked for.
        """
        yield []
        ranked = self.by_sensitivity(progress)
        for share in SHARES:
            yield ranked[: math.ceil(share * len(ranked))]

    def by_sensitivity(self, progress: Callable[[Sequence], Iterable] = iter) -> list[str]:
        """The layers by what each alone does to the features, the most sensitive first.

        One layer at a time is quantised, the others stay in float. Its error is the mean squared difference of the
        features over their mean square: noise over signal, on 32 of the calibration images. Neighbours share one
        measurement where there are more than 64 layers.
        """
        images = self.images[:: -(-len(self.images) // RANKED_BY)]
        expected = self.features(self.network, images)
        together = -(-len(self.layers) // MOST_GROUPS)
        groups = [self.layers[start : start + together] for start in range(0, len(self.layers), together)]
        errors = {}
        for group in progress(groups):
            alone = self.quantise(set(self.layers).difference(group))
            error = float(((self.features(alone, images) - expected) ** 2).mean())
            errors |= dict.fromkeys(group, error / float((expected**2).mean()))
        return sorted(self.layers, key=lambda name: -errors[name])

    def mean_shifts(self) -> dict[str, np.ndarray]:
        """What rounding the weights of each convolution, by node, adds to the mean of its outputs (float32, C).

        That is the rounding's error, summed over the kernel, times the mean of each input channel over the
        calibration images; the zeros around an image are left out of account.
        """
        weights = {each.name: numpy_helper.to_array(each) for each in self.network.graph.initializer}
        nodes = [
            node for node in self.network.graph.node if node.op_type == "Conv" and weights.keys() >= {*node.input[1:]}
        ]
        nodes = [node for node in nodes if len(node.input) == 3]  # those with a bias
        if not nodes:
            return {}
        inputs = list(dict.fromkeys(node.input[0] for node in nodes))
        watched = copy.deepcopy(self.network)
        watched.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "all but channels"))
        for name in inputs:
            mean = f"mean of {name}"
            watched.graph.node.append(helper.make_node("ReduceMean", [name, "all but channels"], [mean], keepdims=0))
            watched.graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, None))
        whole = self.images[: len(self.images) // BATCH * BATCH or None]  # batches, so that each image weighs alike
        means = dict(zip(inputs, self.run(watched, [f"mean of {name}" for name in inputs], whole), strict=True))

        shifts = {}
        for node in nodes:
            weight = weights[node.input[1]]  # outputs × inputs of the group × kernel
            scale = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True) / 127, np.finfo(np.float32).tiny)
            error = (np.round(weight / scale) * scale - weight).sum((2, 3))
            groups = next((each.i for each in node.attribute if each.name == "group"), 1)
            mean = np.mean(means[node.input[0]], 0).reshape(groups, -1).repeat(len(weight) // groups, 0)
            shifts[node.name] = (error * mean).sum(1)
        return shifts

    def features(self, network: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
        return np.concatenate(self.run(network, ["features"], images)[0])

    def run(self, network: onnx.ModelProto, outputs: list[str], images: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Give each of `outputs`, batch by batch."""
        session = open_session(network.SerializeToString(), self.threads)
        answers = [session.run(outputs, batch) for batch in iter(Batches(images).get_next, None)]
        return list(zip(*answers, strict=True))


class Batches(CalibrationDataReader):
    """Images as ONNX Runtime's calibration wants them: a few at a time, then None."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter(images[start : start + BATCH] for start in range(0, len(images), BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        return {"network_pixels": np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32) / 255}
