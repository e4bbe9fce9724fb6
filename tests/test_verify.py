"""make verify: the same bytes, the same scores or neither, on a small pipeline whose machine can change."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from project import run

from petals import machine
from petals.errors import PetalsError
from petals.git import git
from petals.verify import bounds, compare_scores, main

PIPELINE = """stages:
  train:
    cmd: python train.py ${data}
    deps: ["${data}", train.py]
    outs: [model.bin]
  evaluate:
    cmd: python evaluate.py
    deps: [model.bin, evaluate.py]
    metrics: [{metrics/evaluate.json: {cache: false}}]
"""
TRAIN = """import os, pathlib, sys
text = pathlib.Path(sys.argv[1], "one.txt").read_text()
pathlib.Path("model.bin").write_text(text + os.environ.get("LAST_BITS", ""))
"""
EVALUATE = """import json, os, pathlib
better = float(os.environ.get("BETTER_BY", "0"))
scores = {"macro_f1": 0.5 + better, "accuracy": 0.6, "top5_accuracy": 0.9, "nll": 1.5 * (1 + better)}
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/evaluate.json").write_text(json.dumps(scores))
pathlib.Path("metrics/prepare.json").write_text(json.dumps({"images": {"val": 400}}))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A repository whose pipeline has run and is committed."""
    root = tmp_path_factory.mktemp("ran") / "checkout"
    files = {
        "dvc.yaml": PIPELINE,
        "params.yaml": "data: photos\nthreads: 2\n",
        "train.py": TRAIN,
        "evaluate.py": EVALUATE,
        "photos/one.txt": "a rose",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    run("git init -q -b main && dvc init -q && dvc repro", root)
    machine.record(root)
    run("git add -A && git commit -qm state", root)
    return root


@pytest.fixture
def checkout(ran, tmp_path, monkeypatch) -> Path:
    """A copy of that repository to change at will; the process stands in it."""
    root = tmp_path / "checkout"
    shutil.copytree(ran, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


def commit() -> None:
    run("git add -A && git commit -qm state", Path.cwd())


def record_another_machine() -> None:
    recorded = json.loads(Path("machine.json").read_text())
    recorded["fingerprint"]["cpu"] = "Abacus"
    Path("machine.json").write_text(json.dumps(recorded))
    commit()


def verify() -> Result:
    result = CliRunner().invoke(main)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def row(output: str, path: str) -> list[str]:
    return next(line.split() for line in output.splitlines() if line.startswith(f"{path} "))


def test_the_same_bytes(checkout):
    done = verify()
    assert done.exit_code == 0, done.output
    assert "Same bytes: all 2 outputs" in done.output
    assert row(done.output, "model.bin")[3] == row(done.output, "metrics/evaluate.json")[3] == "yes"
    assert "uncommitted" not in done.output and "  ! " not in done.output
    assert f"  torch         {machine.description()['torch']}" in done.output


def test_nothing_of_the_checkout_is_used_but_head(checkout):
    (checkout / "train.py").write_text("raise SystemExit('not this one')")
    (checkout / "notes.txt").write_text("new")
    done = verify()
    assert done.exit_code == 0 and "Same bytes" in done.output
    assert done.output.startswith("2 files with uncommitted changes are left out")


def test_other_last_bits_with_the_same_scores(checkout, monkeypatch):
    record_another_machine()
    monkeypatch.setenv("LAST_BITS", "1")
    monkeypatch.setenv("BETTER_BY", "-0.09")
    done = verify()
    assert done.exit_code == 0
    assert "Same scores, not the same bytes" in done.output
    assert row(done.output, "model.bin")[3] == "NO"
    assert "macro_f1        recorded 0.5000, new 0.4100: within 0.4000 … 0.6000" in done.output
    assert "nll             recorded 1.5000, new 1.3650: within 0.7500 … 3.0000" in done.output


def test_a_final_model_is_compared_by_its_bytes_alone(checkout, monkeypatch):
    (checkout / "evaluate.py").write_text(EVALUATE.replace("json.dumps(scores)", "json.dumps({'final': True})"))
    run("dvc repro", checkout)
    commit()
    assert verify().exit_code == 0
    record_another_machine()
    monkeypatch.setenv("LAST_BITS", "1")
    done = verify()
    assert done.exit_code == 1 and "no scores to compare: metrics/evaluate.json has none, as after final" in done.output


def test_other_scores_are_neither(checkout, monkeypatch):
    record_another_machine()
    monkeypatch.setenv("BETTER_BY", "0.11")
    done = verify()
    assert done.exit_code == 1
    assert "Neither the same bytes nor the same scores." in done.output
    assert row(done.output, "model.bin")[3] == "yes"
    assert "macro_f1        recorded 0.5000" in done.output and "NOT within 0.4000 … 0.6000" in done.output


def test_other_bytes_on_the_recorded_machine_are_no_matter_of_tolerance(checkout, monkeypatch):
    monkeypatch.setenv("LAST_BITS", "1")
    done = verify()
    assert done.exit_code == 1 and "something is not repeatable.\n" in done.output
    assert row(done.output, "model.bin")[3] == "NO"


def test_a_tampered_hash_is_found(checkout):
    lock = (checkout / "dvc.lock").read_text()
    recorded = hashlib.md5(b"a rose").hexdigest()
    assert recorded in lock
    (checkout / "dvc.lock").write_text(lock.replace(recorded, "f" * 32))
    commit()
    done = verify()
    assert done.exit_code == 1 and "something is not repeatable" in done.output
    assert row(done.output, "model.bin")[1] == "f" * 12


def test_a_lock_that_has_changed_since_the_record_is_said_to_be(checkout, monkeypatch):
    (checkout / "machine.json").write_text(json.dumps({"fingerprint": machine.description(), "dvc_lock_md5": "0"}))
    commit()
    monkeypatch.setenv("LAST_BITS", "1")
    done = verify()
    assert done.exit_code == 1 and "or dvc.lock has changed since and is of another machine" in done.output


def test_what_no_stage_makes_any_more_is_not_the_same(checkout):
    lock = yaml.safe_load((checkout / "dvc.lock").read_text())
    lock["stages"]["gone"] = {"cmd": "true", "outs": [{"path": "gone.bin", "md5": "0" * 32, "hash": "md5"}]}
    (checkout / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    commit()
    done = verify()
    assert done.exit_code == 1 and row(done.output, "gone.bin")[3] == "NO"


def test_scores_that_cannot_be_compared_are_neither(checkout, monkeypatch):
    (checkout / "metrics/evaluate.json").write_text("{}")
    record_another_machine()
    monkeypatch.setenv("LAST_BITS", "1")
    done = verify()
    assert done.exit_code == 1 and "do not compare" in done.output


def test_another_machine_or_another_lock_is_said(checkout):
    recorded = json.loads((checkout / "machine.json").read_text())
    recorded["fingerprint"]["cpu"] = "Abacus"
    recorded["dvc_lock_md5"] = "0" * 32
    (checkout / "machine.json").write_text(json.dumps(recorded))
    here = machine.description()["cpu"]
    assert machine.compare() == [
        f"cpu differs: recorded Abacus, here {here}",
        "machine.json was recorded for another dvc.lock; make record after each dvc repro that changes it",
    ]
    machine.record()
    assert machine.compare() == []
    (checkout / "machine.json").write_text("[]")
    assert machine.compare()[0].startswith("machine.json is missing or damaged")
    (checkout / "machine.json").unlink()
    assert machine.compare()[0].startswith("machine.json is missing or damaged")


def test_threads_are_part_of_the_machine(checkout):
    (checkout / "params.yaml").write_text("data: photos\nthreads: 3\n")
    assert machine.compare() == ["threads differs: recorded 2, here 3"]


def test_data_of_dvc_comes_from_the_cache_of_the_checkout_and_if_not_pulled_that_is_one_line(checkout):
    run("git rm -rq --cached photos && dvc add -q photos && dvc repro -q", checkout)
    machine.record(checkout)
    commit()
    (checkout / "photos/one.txt").unlink()  # what lies in the folder now does not count
    done = verify()
    assert done.exit_code == 0 and "Same bytes" in done.output

    run("rm -rf .dvc/cache photos", checkout)
    done = verify()
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("Error: photos: neither in git at HEAD nor in DVC's cache")


def test_settings_of_dvc_that_cannot_be_read_are_one_line(checkout):
    run("git rm -rq --cached photos && dvc add -q photos && dvc repro -q", checkout)
    commit()
    (checkout / ".dvc/config.local").write_text("[core\n")
    done = verify()
    assert done.exit_code == 1 and done.output.splitlines()[-1].startswith("Error: dvc cache dir: ERROR: ")


def test_a_stage_that_fails_is_one_line(checkout):
    (checkout / "train.py").write_text("raise SystemExit('no')")
    commit()
    done = verify()
    assert done.exit_code == 1
    assert "  ! dvc.lock of HEAD is behind: train: train.py has changed\n" in done.output
    assert "dvc repro ended with exit code" in done.output.splitlines()[-1]


def test_without_a_lock_or_a_repository_there_is_nothing_to_verify(checkout, tmp_path, monkeypatch):
    run("git rm -q --cached dvc.lock && git commit -qm without", checkout)
    assert "HEAD has no dvc.lock" in verify().output
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", os.fspath(tmp_path.parent))
    done = verify()
    assert done.exit_code == 1 and done.output.startswith("Error: git rev-parse: not a git repository")
    with pytest.raises(PetalsError, match=r"dvc\.lock: not found"):
        machine.record(tmp_path)


def test_the_tolerance_shrinks_with_the_images():
    assert bounds("accuracy", 0.7, 400) == pytest.approx((0.6, 0.8))
    assert bounds("macro_f1", 0.7, 3712) == pytest.approx((0.667, 0.733), abs=1e-3)


def test_seeds_and_last_bits_of_the_recipe_are_the_same_scores():
    """What docs/experiments.md has for the sample: one thread with seeds 1 to 3, and the recorded run with two."""
    for recorded in (0.191, 0.151, 0.208, 0.235):
        low, high = bounds("nll", recorded, 271)
        assert all(low <= other <= high for other in (0.191, 0.151, 0.208, 0.235))


def test_the_command_records(checkout):
    (checkout / "machine.json").unlink()
    shown = CliRunner().invoke(machine.main)
    assert shown.exit_code == 0 and not Path("machine.json").exists()
    assert re.search(r"^  threads +2$", shown.output, re.MULTILINE)
    assert "written to machine.json" in CliRunner().invoke(machine.main, ["--record"]).output
    assert machine.compare() == []


def test_what_this_machine_lacks_differs_too(checkout):
    recorded = json.loads(Path("machine.json").read_text())
    recorded["fingerprint"]["abacus"] = "1.0"
    Path("machine.json").write_text(json.dumps(recorded))
    assert machine.compare() == ["abacus differs: recorded 1.0, here none"]


def test_an_arm_processor_has_features(checkout, monkeypatch):
    monkeypatch.setattr(machine, "cpu_info", lambda: {"Features": "fp asimd sve"})
    assert machine.description()["flags"] == "asimd sve"


SCORES = {"macro_f1": 0.5, "accuracy": 0.6, "top5_accuracy": 0.9, "nll": 1.5, "images": 400.0}


def test_worse_scores_are_no_more_within_the_tolerance_than_better_ones():
    assert not compare_scores(SCORES, SCORES | {"macro_f1": 0.39}) and not compare_scores(SCORES, SCORES | {"nll": 3.1})
    assert compare_scores(SCORES, SCORES | {"macro_f1": 0.41})


@pytest.mark.parametrize("other", [SCORES | {"images": 399.0}, {}])
def test_scores_of_other_images_or_of_none_do_not_compare(capsys, other):
    for recorded, made in ((SCORES, other), (other, SCORES)):
        assert not compare_scores(recorded, made)
        assert "do not compare" in capsys.readouterr().out


def test_weights_to_start_from_come_from_the_cache_of_the_checkout(checkout):
    Path("data/weights").mkdir(parents=True)
    Path("data/weights/w.safetensors").write_text("weights")
    Path("params.yaml").write_text("data: photos\nthreads: 2\npretrained: w.safetensors\n")
    Path("dvc.yaml").write_text(PIPELINE.replace("train.py]", "train.py, data/weights/w.safetensors]"))
    run("dvc add -q data/weights/w.safetensors && dvc repro -q", checkout)
    machine.record(checkout)
    commit()
    done = verify()
    assert done.exit_code == 0, done.output


def test_a_git_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PetalsError, match="git is not installed"):
        git("status")
