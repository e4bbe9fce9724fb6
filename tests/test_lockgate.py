"""The lock gate, on a small pipeline that DVC ran: ahead of the lock fails, absent data does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from petals.errors import PetalsError
from petals.lockgate import main, problems

PIPELINE = """stages:
  prepare:
    cmd: python stages/prepare.py ${data}
    deps: ["${data}", stages/prepare.py]
    params: [size]
    outs: [prepared]
  score:
    cmd: python stages/score.py
    deps: [prepared, stages/score.py]
    params: [lr, pretrained]
    outs: [model.bin]
    metrics: [{score.json: {cache: false}}]
"""
PREPARE = """import pathlib, sys
pathlib.Path("prepared").mkdir()
pathlib.Path("prepared/all").write_text(pathlib.Path(sys.argv[1], "one.txt").read_text())
"""
SCORE = """import pathlib
pathlib.Path("model.bin").write_text("weights")
pathlib.Path("score.json").write_text("{}")
"""
DATA = ("prepared", "model.bin", "photos/one.txt")  # what a runner lacks that has pulled nothing


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A repository whose pipeline DVC has run, its data tracked by a .dvc file."""
    root = tmp_path_factory.mktemp("ran")
    files = {
        "dvc.yaml": PIPELINE.replace("python", sys.executable),
        "params.yaml": "data: photos\nsize: 64\nlr: 1e-3\npretrained: true\n",
        "stages/prepare.py": PREPARE,
        "stages/score.py": SCORE,
        "photos/one.txt": "a rose",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1"}
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True, env=environment)
    dvc(root, "init", "-q")
    dvc(root, "config", "core.analytics", "false")
    dvc(root, "add", "-q", "photos")
    dvc(root, "repro", "-q")
    return root


def dvc(root: Path, *arguments: str) -> None:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, env=environment)


@pytest.fixture
def pipeline(ran, tmp_path) -> Path:
    """A copy of that repository to change at will."""
    root = tmp_path / "copy"
    shutil.copytree(ran, root, symlinks=True)
    return root


def drop_data(root: Path) -> None:
    shutil.rmtree(root / ".dvc" / "cache")
    for path in ("prepared", "photos"):
        shutil.rmtree(root / path)
    (root / "model.bin").unlink()


def edit(root: Path, path: str, old: str, new: str) -> None:
    text = (root / path).read_text()
    assert text.count(old) == 1
    (root / path).write_text(text.replace(old, new))


EDITS = {
    "nothing": ([], []),
    "code": ([("stages/score.py", "weights", "other")], ["score: stages/score.py has changed"]),
    "a parameter": (
        [("params.yaml", "1e-3", "1e-2")],
        ["score: lr in params.yaml is 0.01, in dvc.lock 0.001"],
    ),
    "a parameter of another type": (
        [("params.yaml", "true", "1")],
        ["score: pretrained in params.yaml is 1, in dvc.lock True"],
    ),
    "a whole number with a point": ([("params.yaml", "64", "64.0")], []),
    "a parameter nobody reads": ([("params.yaml", "lr:", "unread: 1\nlr:")], []),
    "a parameter gone": ([("params.yaml", "size: 64\n", "")], ["prepare: size is not in params.yaml"]),
    "a command": (
        [("dvc.yaml", "score.py\n    deps", "score.py now\n    deps")],
        ["score: its command has changed"],
    ),
    "a description": ([("dvc.yaml", "  score:\n", "  score:\n    desc: said better\n")], []),
    "a new dep": (
        [("dvc.yaml", "[prepared, ", "[prepared, params.yaml, ")],
        ["score: params.yaml is not among its deps in dvc.lock"],
    ),
    "a dropped dep": (
        [("dvc.yaml", "[prepared, stages/score.py]", "[prepared]")],
        ["score: stages/score.py is no longer among its deps in dvc.yaml"],
    ),
    "a new parameter": (
        [("dvc.yaml", "[lr, ", "[lr, size, ")],
        ["score: size of params.yaml is not in dvc.lock"],
    ),
    "a dropped parameter": (
        [("dvc.yaml", "[lr, pretrained]", "[pretrained]")],
        ["score: lr is no longer among its params in dvc.yaml"],
    ),
    "another out": (
        [("dvc.yaml", "[model.bin]", "[best.bin]")],
        [
            "score: best.bin is not among its outs in dvc.lock",
            "score: model.bin is no longer among its outs in dvc.yaml",
        ],
    ),
    "a new stage": (
        [("dvc.yaml", "stages:\n", "stages:\n  export:\n    cmd: echo\n    deps: [model.bin]\n")],
        ["export: has no entry in dvc.lock"],
    ),
    "a renamed stage": (
        [("dvc.yaml", "  score:\n", "  evaluate:\n")],
        ["evaluate: has no entry in dvc.lock", "score: in dvc.lock, but not in dvc.yaml; delete its entry"],
    ),
    "a metric": (
        [("score.json", "{}", '{"f1": 1}')],
        ["score: score.json is not the one that dvc.lock names"],
    ),
}


@pytest.mark.parametrize("pulled", [True, False], ids=["pulled", "bare"])
@pytest.mark.parametrize("name", EDITS)
def test_what_is_ahead_of_the_lock_is_named_with_and_without_data(pipeline, name, pulled):
    if not pulled:
        drop_data(pipeline)
    edits, expected = EDITS[name]
    for path, old, new in edits:
        edit(pipeline, path, old, new)
    assert problems(pipeline) == expected


def test_the_lock_of_one_stage_that_no_longer_fits_the_other_is_named(pipeline):
    drop_data(pipeline)
    text = (pipeline / "dvc.lock").read_text()
    head, score = text.split("  score:\n")
    digest = head[head.index("path: prepared") :].split("md5: ")[1].split()[0]
    (pipeline / "dvc.lock").write_text(f"{head}  score:\n{score.replace(digest, 'f' * 32 + '.dir')}")
    assert problems(pipeline) == ["score: prepared is tracked in another version than the one it ran with"]


def test_data_that_moved_on_without_a_run_is_named(pipeline):
    (pipeline / "photos" / "one.txt").unlink()
    (pipeline / "photos" / "one.txt").write_text("an iris")
    assert problems(pipeline) == ["prepare: photos has changed"]
    dvc(pipeline, "add", "-q", "photos")
    drop_data(pipeline)
    assert problems(pipeline) == ["prepare: photos is tracked in another version than the one it ran with"]


def test_outs_that_are_not_those_of_the_lock_are_named(pipeline):
    (pipeline / "model.bin").unlink()
    (pipeline / "model.bin").write_text("of another run")
    assert problems(pipeline) == ["score: model.bin is not the one that dvc.lock names"]


def test_missing_files_of_git_are_named(pipeline):
    (pipeline / "score.json").unlink()
    (pipeline / "stages" / "score.py").unlink()
    assert problems(pipeline) == [
        "score: stages/score.py is missing",
        "score: score.json is missing, though git should have it",
    ]
    (pipeline / "dvc.lock").unlink()
    assert problems(pipeline) == ["dvc.lock is missing"]


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("dvc.yaml", "stages: [", "DVC cannot read the pipeline"),
        ("dvc.yaml", "stages:\n  a:\n    cmd: ${nobody}\n", "DVC cannot read the pipeline"),
        ("dvc.lock", "<<<<<<< ours\nstages: {}\n", "DVC cannot read the pipeline"),
        (
            "dvc.lock",
            "schema: '2.0'\nstages: 3\n",
            "cut short, python -m petals.recovery restores it",
        ),
        ("params.yaml", "lr: [", "DVC cannot read the pipeline"),
    ],
)
def test_a_pipeline_that_cannot_be_read_is_one_line(pipeline, path, text, message):
    (pipeline / path).write_text(text)
    with pytest.raises(PetalsError, match=message) as error:
        problems(pipeline)
    assert "\n" not in str(error.value)


def test_the_command(pipeline, monkeypatch, tmp_path):
    monkeypatch.chdir(pipeline)
    drop_data(pipeline)
    result = CliRunner().invoke(main)
    assert (result.exit_code, result.output) == (0, "dvc.lock is in step.\n")
    edit(pipeline, "params.yaml", "64", "128")
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert result.output.startswith("prepare: size in params.yaml is 128, in dvc.lock 64\nTo fix it: dvc repro")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "There is no dvc.yaml here" in result.output


def test_a_dep_inside_an_out_that_is_not_pulled_is_no_problem(pipeline):
    edit(pipeline, "dvc.yaml", "deps: [prepared, ", "deps: [prepared/all, ")
    dvc(pipeline, "repro", "-q")
    drop_data(pipeline)
    assert problems(pipeline) == []


def test_a_folder_of_which_a_part_is_not_pulled_has_not_changed(pipeline):
    (pipeline / "both").mkdir()
    (pipeline / "both/notes.txt").write_text("in git")
    with open(pipeline / "dvc.yaml", "a") as file:
        file.write("  join:\n    cmd: echo x > both/made\n    deps: [prepared]\n    outs: [both/made]\n")
        file.write("  read:\n    cmd: echo\n    deps: [both]\n")
    dvc(pipeline, "repro", "-q")
    assert problems(pipeline) == []
    (pipeline / "both/made").unlink()
    assert problems(pipeline) == []


def test_a_stage_that_reads_a_whole_file_of_settings_is_in_step(pipeline):
    (pipeline / "more.yaml").write_text("a: 1\n")
    edit(pipeline, "dvc.yaml", "params: [lr, pretrained]", "params: [lr, pretrained, {more.yaml: }]")
    dvc(pipeline, "repro", "-q")
    assert problems(pipeline) == []
    (pipeline / "more.yaml").write_text("a: 2\n")
    assert problems(pipeline) == ["score: a in more.yaml is 2, in dvc.lock 1"]
