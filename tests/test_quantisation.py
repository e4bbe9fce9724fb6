"""Int8 of a network of three convolutions, whose errors are known."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from petals.quantisation import Quantiser

NETWORK = """
<ir_version: 10, opset_import: ["" : 20]>
network (float[N, 3, 8, 8] network_pixels) => (float[N, 4] probabilities, float[N, 4] features)
<float zero = {0}, float six = {6}, int64[2] plane = {2, 3}>
{
    a = Conv (network_pixels, first, first_bias)
    a6 = Clip (a, zero, six)
    b = Conv <group = 4> (a6, second, second_bias)
    b6 = Clip (b, zero, six)
    c = Conv (b6, third, third_bias)
    features = ReduceMean <keepdims = 0> (c, plane)
    probabilities = Softmax <axis = 1> (features)
}
"""
SHAPES = {"first": (4, 3, 1, 1), "second": (4, 1, 3, 3), "third": (4, 4, 1, 1)}


@pytest.fixture(scope="module")
def quantiser() -> Quantiser:
    random, network = np.random.default_rng(0), onnx.parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        # Channels of very different size, so that one scale for all of them would lose the small ones.
        weight = random.normal(size=shape) * np.geomspace(0.1, 2, 4).reshape(-1, 1, 1, 1)
        for each, values in ((name, weight), (f"{name}_bias", random.uniform(1, 3, 4))):
            network.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), each))
    for number, node in enumerate(network.graph.node):
        node.name = f"node {number}"
    return Quantiser(network, random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), threads=1)


def error(quantiser: Quantiser, *layers: str) -> float:
    """Noise over signal of the features, with these layers alone in int8."""
    found = quantiser.features(quantiser.quantise(set(SHAPES).difference(layers)), quantiser.images)
    expected = quantiser.features(quantiser.network, quantiser.images)
    return float(((found - expected) ** 2).mean() / (expected**2).mean())


def shift(quantiser: Quantiser) -> float:
    """How far the mean features of the network in int8 are from those in float, at most."""
    found = quantiser.features(quantiser.quantise([]), quantiser.images)
    return float(np.abs((found - quantiser.features(quantiser.network, quantiser.images)).mean(0)).max())


def test_the_most_sensitive_layers_are_left_in_float_first(quantiser):
    assert quantiser.layers == list(SHAPES)
    ranked = quantiser.by_sensitivity()
    assert ranked == sorted(SHAPES, key=lambda name: -error(quantiser, name))
    assert list(quantiser.attempts()) == [[], *[ranked[:n] for n in (1, 1, 1, 2)]]


def test_a_network_without_biases_has_none_to_correct():
    network = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]>
    network (float[N, 3, 8, 8] network_pixels) => (float[N, 4] features)
    <float[4, 3, 1, 1] first = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, int64[2] plane = {2, 3}>
    { a = Conv (network_pixels, first)  features = ReduceMean <keepdims = 0> (a, plane) }
    """)
    assert Quantiser(network, np.zeros((2, 8, 8, 3), np.uint8), threads=1).shifts == {}


def test_biases_take_back_what_rounding_the_weights_adds(quantiser, monkeypatch):
    """Against the means measured of the network with rounded weights, layer by layer."""
    weights = {each.name: numpy_helper.to_array(each) for each in quantiser.network.graph.initializer}
    for node in quantiser.network.graph.node:
        if node.name in quantiser.shifts:
            rounded, plain = onnx.ModelProto(), quantiser.network
            rounded.CopyFrom(plain)
            weight = weights[node.input[1]]
            scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
            for each in rounded.graph.initializer:
                if each.name == node.input[1]:
                    each.CopyFrom(numpy_helper.from_array(np.round(weight / scale) * scale, each.name))
            means = []
            for network in (rounded, plain):
                watched = onnx.ModelProto()
                watched.CopyFrom(network)
                watched.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], 1, None))
                outputs = np.concatenate(quantiser.run(watched, [node.output[0]], quantiser.images[:32])[0])
                means.append(outputs.mean((0, 2, 3)))
            assert quantiser.shifts[node.name] == pytest.approx(means[0] - means[1], rel=0.05, abs=1e-5)
    corrected = shift(quantiser)
    monkeypatch.setattr(quantiser, "shifts", {})
    assert corrected < shift(quantiser) / 2


def test_each_output_channel_has_a_scale_of_its_own_and_clips_are_within(quantiser):
    graph = quantiser.quantise([]).graph
    scales = {each.name: numpy_helper.to_array(each).shape for each in graph.initializer if each.name.endswith("scale")}
    assert [scales[f"{name}_scale"] for name in SHAPES] == [(4,)] * 3
    assert not [node for node in graph.node if node.op_type == "Clip"]
