"""Experiments as a team runs them, with DVC itself in a copy of this repository on a tiny data set."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from project import copy_project, run, tiny_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The project after one run, with its data in DVC: nothing that git and DVC do not carry."""
    folder = copy_project(tmp_path_factory.mktemp("experiments") / "petals", epochs=1)
    tiny_records(folder / "data" / "tiny")
    run("dvc add -q data/tiny && dvc repro -q && git add -A && git commit -qm run", folder)
    return folder


def shown(project: Path) -> list[dict[str, str]]:
    """The rows of `dvc exp show --only-changed`."""
    output = run("dvc exp show --only-changed --csv 2>/dev/null", project).stdout
    return list(csv.DictReader(io.StringIO(output)))


def head_is_clean(project: Path) -> bool:
    return run("git status --porcelain", project).stdout == ""


def test_several_knobs_in_a_temporary_folder(project):
    knobs = "-S lr=1e-5 -S weight_decay=0 -S model=efficientnet_lite1"
    run(f"dvc exp run --temp -n several evaluate {knobs}", project)
    assert head_is_clean(project)
    (row,) = [row for row in shown(project) if row["Experiment"] == "several"]
    assert float(row["lr"]) == 1e-5 and row["model"] == "efficientnet_lite1"


def test_a_sweep_in_the_queue_with_two_workers(project):
    run("dvc exp run --queue train -S 'lr=choice(2e-3,2e-4)'", project)
    run("dvc exp run --run-all --jobs 2", project)
    rates = {row["lr"] for row in shown(project)}
    assert {"0.002", "0.0002"} <= rates and head_is_clean(project)


def test_the_table_of_experiments_has_columns_for_scores_and_none_for_noise(project):
    columns = {name.split(":")[-1] for name in shown(project)[0]}
    assert {"macro_f1", "nll", "ece", "lr"} <= columns
    assert not {name for name in columns if name.startswith(("f1", "step", "petals/", "stages/"))}
    assert len(columns) <= 30


def test_diff_apply_and_branch(project):
    changed = json.loads(run("dvc exp diff --json HEAD several 2>/dev/null", project).stdout)
    assert changed["params"]["params.yaml"]["lr"]["new"] == 1e-5
    assert "macro_f1" in changed["metrics"]["metrics/evaluate.json"]
    run("dvc exp branch several try-several", project)
    assert "efficientnet_lite1" in run("git show try-several:params.yaml", project).stdout
    run("dvc exp apply several", project)
    assert yaml.safe_load((project / "params.yaml").read_text())["model"] == "efficientnet_lite1"
    assert json.loads((project / "models/model.json").read_text())["architecture"] == "efficientnet_lite1"
    run("git checkout -q . && dvc checkout -q", project)


def test_comparisons_need_no_data(project, tmp_path):
    run("dvc exp branch several compared 2>/dev/null; true", project)
    run(
        f"git clone -q --branch main {project} {tmp_path}/clone && cd {tmp_path}/clone && git fetch -q origin compared",
        tmp_path,
    )
    clone = tmp_path / "clone"
    for command in ("metrics", "params"):
        changed = json.loads(run(f"dvc {command} diff --json HEAD FETCH_HEAD 2>/dev/null", clone).stdout)
        assert "params.yaml" in changed if command == "params" else "metrics/evaluate.json" in changed
    assert "file://" in run("dvc plots diff HEAD FETCH_HEAD", clone).stdout
    assert not (clone / "data" / "prepared").exists()


def test_weights_from_a_file_in_a_temporary_folder(project):
    run("cp models/model.safetensors data/weights/flowers.safetensors", project)
    run("dvc add -q data/weights/flowers.safetensors && git add -A && git commit -qm weights", project)
    output = run("dvc exp run --temp train -S pretrained=flowers.safetensors", project).stdout
    assert "pretrained: weights and head from data/weights/flowers.safetensors" in output
    assert head_is_clean(project)


def test_a_search_of_the_pipeline(project, tmp_path):
    search = {"objective": "metrics/evaluate.json:macro_f1", "curve": "val/macro_f1"}
    space = {"lr": {"type": "float", "low": 1e-5, "high": 1e-1}}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(search | {"space": space}))
    options = f"--trials 1 --space {tmp_path}/tune.yaml -S robustness=0"  # so evaluate runs
    output = run(f"{sys.executable} -m petals.tune {options}", project).stdout
    (score,) = re.findall(r"^\| `tune-000` \| (\d\.\d{4}) +\| 0\.0006 ", output, re.MULTILINE)
    assert (project / ".petals/tune/tune/curves.png").is_file() and head_is_clean(project)
    run("dvc exp apply tune-000", project)
    assert f"{json.loads((project / 'metrics/evaluate.json').read_text())['macro_f1']:.4f}" == score
    assert run("dvc status", project).stdout.strip() == "Data and pipelines are up to date."
    run("git checkout -q . && dvc checkout -q", project)
