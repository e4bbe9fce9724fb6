"""The settings that somebody types in for a training run: what is let through, and what is not."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ORIGINAL

from petals.errors import PetalsError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".github" / "scripts" / "overrides.py"
script = runpy.run_path(str(SCRIPT))
checked = script["checked"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A checkout with the sample in git, and other data and weights in DVC."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "params.yaml").write_text(ORIGINAL)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "data/sample").mkdir(parents=True)
    (folder / "data/weights").mkdir()
    for name in ("data/petals.dvc", "data/weights/roses.safetensors.dvc"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("lr=1e-4", "lr=1e-4"),
        ("  model=tiny_vit_5m\n epochs=30\t", "model=tiny_vit_5m epochs=30"),
        ("data=data/petals image_size=224", "data=data/petals image_size=224"),
        ("data=data/petals/small", "data=data/petals/small"),
        ("pretrained=roses.safetensors", "pretrained=roses.safetensors"),
        ("pretrained=false device=cuda:0", "pretrained=false device=cuda:0"),
        ("mixup=0.6 cutmix=0.4", "mixup=0.6 cutmix=0.4"),
    ],
)
def test_good_settings_come_out_on_one_line(root, text, expected):
    assert checked(text, root) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lr=1e-3; rm -rf /", "not a setting; write"),
        ("lr=$(id)", "not a setting; write"),
        ("lr=`id`", "not a setting; write"),
        ("lr=${oc.env:HOME}", "not a setting; write"),
        ("lr=choice(1,2)", "not a setting; write"),
        ("lr=1,2", "not a setting; write"),
        ("lr=1e-3&&id", "not a setting; write"),
        ("lr='1e-3'", "not a setting; write"),
        ("+lr=1e-3", "not a setting; write"),
        ("~lr", "not a setting; write"),
        ("--queue", "not a setting; write"),
        ("lr=1e-3 | tee x", "not a setting; write"),
        ("epochs=３", "not a setting; write"),
        ("epochs=3\nname=oops", "no stage reads 'name'"),
        ("epochs=3\r\x00lr=1", "not a setting; write"),
        ("learning_rate=1", "no stage reads 'learning_rate'; the knobs are those of params.yaml"),
        ("lr=1e-3 lr=1e-4", "lr is set twice"),
        ("lr=11", "lr: should be less than or equal to 10"),
        ("lr=nan", "lr: should be a finite number"),
        ("lr=fast", "lr: should be a valid number"),
        ("epochs=1.5", "epochs: should be a valid integer"),
        ("pretrained=yes", "pretrained: should be true, false, or the name of a .safe"),
        ("mixup=0.6 cutmix=0.6", "cutmix: mixup and cutmix"),
        ("seed=" + "9" * 101, "not a setting; write"),
        ("data=/etc", "data: should be a folder in data/"),
        ("data=data/../../etc", "data: should be a folder in data/"),
        ("data=null", "data: should be a valid string"),
        ("data=data", "data: should be apart from data/prepared/train"),
        ("data=data/prepared", "data: should be apart from data/prepared/train"),
        ("data=data/./prepared/train/", "data: should be apart from data/prepared/train"),
        ("data=data/augmented/train", "data: should be apart from data/augmented"),
        ("data=data/submission.csv", "data: should be apart from data/submission.csv"),
        ("data=data/roses", "data: data/roses is not in this commit; dvc add data/roses, commit, and make push"),
        ("pretrained=x.safetensors", "pretrained: data/weights/x.safetensors is not in this commit; dvc add data/we"),
        ("epochs=010", "epochs: should be a valid integer"),
        ("model=vit_zz", "model: there is no 'vit_zz'; did you mean vit_"),
        ("model=1e-3", "model: should be a valid string"),
        ("model=...", "model: there is no '...'"),
        ("model=mobilevit_s image_size=96 pretrained=false", "image_size: mobilevit_s cannot take 96"),
        ("model=vit_ti_conv", "pretrained: there are no published weights of vit_ti_conv"),
        ("pretrained=data/weights/x.safetensors", "pretrained: should be true, false, or the name of a .safe"),
    ],
)
def test_bad_settings_are_one_line(root, text, reason):
    with pytest.raises(PetalsError, match=re.escape(reason)) as error:
        checked(text, root)
    assert "\n" not in str(error.value)


def test_data_of_params_yaml_that_are_not_there_are_refused_too(root, tmp_path):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path)
    with pytest.raises(PetalsError, match=r"^settings: data: data/sample is not in this commit"):
        checked("epochs=3", tmp_path)


def test_the_check_reads_settings_as_dvc_does_without_pytorch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, SCRIPT], cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, check=True)


@pytest.mark.parametrize(("text", "code"), [("lr=1e-4\nepochs=3", 0), ("lr=$(touch pwned)", 1)])
def test_the_settings_command_writes_one_output_or_nothing(root, text, code):
    environment = os.environ | {"OVERRIDES": text, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == ("overrides=lr=1e-4 epochs=3\n" if code == 0 else "")
    assert done.stderr.count("\n") == (0 if code == 0 else 1)
