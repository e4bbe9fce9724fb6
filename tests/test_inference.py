"""An exported model in use."""

import json
from contextlib import nullcontext

import numpy as np
import onnx
import pytest
from tiny_model import CLASSES, NETWORK, SIZE, plain, tiny_model

from petals.errors import PetalsError
from petals.inference import Model
from petals.onnx_export import check_text


def test_a_model_says_what_it_is_and_answers(tmp_path):
    model = Model.open(tiny_model(tmp_path / "model.onnx"))
    assert (model.classes, model.image_size, model.architecture) == (CLASSES, SIZE, "mean_levels")
    assert model.scores == {"macro_f1": 0.5} and model.metadata["reference"] == "{}"
    model.check()
    probabilities, features = model.run(np.stack([plain("blue", 30, 20), plain("green", 30, 20)]))
    assert probabilities.argmax(1).tolist() == [2, 1] and features.dtype == np.float32
    assert np.allclose(features, [[0, 0, 1], [0, 1, 0]], atol=0.01)


def test_what_is_no_model_is_one_line(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(PetalsError, match=r"model\.onnx: not found; dvc repro"):
        Model.open(path)
    with pytest.raises(PetalsError, match=r"cannot be read \(File name too long\)"):
        Model.open(tmp_path / ("x" * 300))
    with pytest.raises(PetalsError, match="is a folder; name the model file in it"):
        Model.open(tmp_path)
    path.touch()
    with pytest.raises(PetalsError, match="empty, run dvc repro export"):
        Model.open(path)
    (tmp_path / "model.int8.onnx").touch()
    with pytest.raises(PetalsError, match="empty, as export found that int8 loses too much"):
        Model.open(tmp_path / "model.int8.onnx")
    path.write_bytes(b"not a graph")
    with pytest.raises(PetalsError, match="ONNX Runtime cannot read it") as error:
        Model.open(path)
    assert "\n" not in str(error.value)
    onnx.save(onnx.parser.parse_model(NETWORK), path)
    with pytest.raises(PetalsError, match="export has not written it, as it has no architecture"):
        Model.open(path)
    with pytest.raises(PetalsError, match="it has no reference"):
        Model.open(tiny_model(path, reference=None))
    for name in ("classes", "image_size", "scores"):
        with pytest.raises(PetalsError, match="what it says of itself cannot be read") as error:
            Model.open(tiny_model(path, **{name: "{nothing"}))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0), ("image_size", "224"), ("image_size", 100_000), ("image_size", True),
        ("classes", "red"), ("classes", [1, 2, 3]), ("scores", [0.5]), ("scores", None),
    ],
)  # fmt: skip
def test_what_a_model_says_of_itself_must_make_sense(tmp_path, name, value):
    path = tiny_model(tmp_path / "model.onnx", **{name: json.dumps(value)})
    with pytest.raises(PetalsError, match=f"what it says of its {name} makes no sense; run dvc repro export"):
        Model.open(path)


def test_a_model_that_names_other_classes_than_it_tells_apart(tmp_path):
    model = Model.open(tiny_model(tmp_path / "model.onnx", classes=["red", "green"]))
    with pytest.raises(PetalsError, match="it names 2 classes and answers with 3 probabilities; run dvc repro export"):
        model.check()


@pytest.mark.parametrize("off", [0.04, 0.06])
def test_a_check_may_be_off_by_five_hundredths(tmp_path, off):
    answer = Model.open(tiny_model(tmp_path / "model.onnx")).run(plain("red")[None])[0][0]
    check = check_text(plain("red"), answer + np.array([off, -off, 0]))
    model = Model.open(tiny_model(tmp_path / "model.onnx", check=check))
    with pytest.raises(PetalsError, match="own check") if off > 0.05 else nullcontext():
        model.check()


@pytest.mark.parametrize("answer", [[0.1, 0.8, 0.1], [1.0, 0.0], [float("nan")] * 3])
def test_a_model_that_fails_its_own_check(tmp_path, answer):
    model = Model.open(tiny_model(tmp_path / "model.onnx", check=check_text(plain("red"), np.array(answer))))
    with pytest.raises(PetalsError, match="does not answer its own check"):
        model.check()
