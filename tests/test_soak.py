"""A small soak: kills in three stages, and every byte is that of the uninterrupted run; and what recovery mends."""

import re
import shutil

import pytest
from click.testing import CliRunner
from conftest import ORIGINAL
from dvc.repo import Repo
from project import SMALL, run, tiny_records

from benchmarks import soak, workspace
from benchmarks.soak import MOMENTS, STAGES, Kill, draw, run_reference, trial
from petals import recovery
from petals.errors import PetalsError
from petals.recovery import CONFLICT, RWLOCK, main, recover

KILLS = (
    Kill("prepare", "working", 0.6, "stage"),
    Kill("augment", "committing", 0.4, "all"),
    Kill("train", "working", 0.5, "dvc"),
    Kill("train", "saving", 0.0, "all"),
)


@pytest.mark.slow
def test_a_pipeline_that_is_killed_ends_in_the_same_bytes(tmp_path, params, monkeypatch):
    monkeypatch.setattr(workspace, "PARAMS", params)
    tiny_records(tmp_path / "tiny")
    knobs = SMALL | {"data": tmp_path / "tiny", "pretrained": "false", "device": "cpu", "epochs": 3}
    root = workspace.make_workspace(tmp_path / "reference", {knob: str(value) for knob, value in knobs.items()})
    reference = run_reference(root, STAGES[:3])
    told = {kill: trial(kill, reference, tmp_path / "trial") for kill in KILLS}
    assert all(same for same, _ in told.values()), told
    assert told[KILLS[-1]][1].startswith("went on from the checkpoint at epoch ")


def test_a_setting_without_a_value_is_refused():
    done = CliRunner().invoke(soak.main, ["-S", "lr"])
    assert done.exit_code == 2 and "lr is not KNOB=VALUE" in done.output


def test_kills_spread_over_stages_moments_and_time():
    kills = draw(30, seed=1)
    assert kills == draw(30, seed=1) != draw(30, seed=2)
    for stage in STAGES:
        shares = sorted(kill.share for kill in kills if kill.stage == stage)
        assert [int(share * 6) for share in shares] == list(range(6))
        assert {kill.moment for kill in kills if kill.stage == stage} >= {"working", "committing"}
    assert {kill.moment for kill in kills if kill.stage == "train"} == set(MOMENTS)
    assert {kill.victim for kill in kills} == {"all", "dvc", "stage"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project of one stage, run."""
    root = tmp_path_factory.mktemp("ran")
    (root / "in.txt").write_text("rose")
    (root / "dvc.yaml").write_text(
        "stages:\n  a:\n    cmd: cp in.txt out.txt\n    deps: [in.txt]\n    outs: [out.txt]\n"
    )
    run("git init -q && dvc init -q && dvc repro", root)
    return root


@pytest.fixture
def folder(ran, tmp_path, monkeypatch):
    shutil.copytree(ran, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(recovery, "SETTLED", 0.0)
    return tmp_path / "copy"


@pytest.mark.parametrize("keep", [0, 1, 60])
def test_files_of_dvc_that_are_cut_short_are_mended_and_nothing_runs_again(folder, keep):
    lock = (folder / "dvc.lock").read_text()
    (folder / "dvc.lock").write_text(lock[:keep])
    (folder / RWLOCK).write_text('{"write": {')
    assert run("dvc repro", folder, check=False).returncode
    said = CliRunner().invoke(main).output
    assert f"{RWLOCK} was cut short; removed" in said
    output = run("dvc repro", folder).stdout
    assert "Running stage" not in output
    assert (folder / "dvc.lock").read_text() == lock


def test_what_a_dvc_is_just_writing_is_left_to_it(folder, monkeypatch):
    lock = (folder / "dvc.lock").read_text()

    def written(seconds: float) -> None:
        (folder / "dvc.lock").write_text(lock)
        (folder / RWLOCK).write_text("{}")

    monkeypatch.setattr(recovery.time, "sleep", written)
    (folder / RWLOCK).write_text("")
    (folder / "dvc.lock").write_text(lock[:60])
    assert recover() == [] and (folder / RWLOCK).exists() and (folder / "dvc.lock").read_text() == lock


def test_a_lock_that_git_has_is_put_back(folder):
    """So that what was pulled, and never ran here, does not run."""
    lock = (folder / "dvc.lock").read_text()
    run("git add -A && git commit -qm run", folder)
    (folder / "dvc.lock").write_text(lock[:60])
    assert CliRunner().invoke(main).output.startswith("dvc.lock was cut short; put back as it is in HEAD\n")
    assert (folder / "dvc.lock").read_text() == lock
    (folder / "dvc.lock").write_text(lock[:60])
    run("git commit -qam broken", folder)
    assert "removed, dvc repro writes it again" in CliRunner().invoke(main).output
    assert not (folder / "dvc.lock").exists()


def test_a_lock_that_is_cut_anywhere_is_one_that_dvc_can_read_or_gone(folder):
    lock = (folder / "dvc.lock").read_text()
    for keep in range(len(lock)):
        (folder / "dvc.lock").write_text(lock[:keep])
        if not recover():
            with Repo() as repo:
                assert [stage.name for stage in repo.index.stages] == ["a"]
            assert lock[keep - 1] == "\n", lock[:keep]


def test_a_lock_that_ends_before_a_hash_was_cut_short(folder):
    lock = (folder / "dvc.lock").read_text()
    (folder / "dvc.lock").write_text(lock[: lock.rindex("hash: md5\n") + len("hash: md5\n")])
    assert ["cut short" in each for each in recover()] == [True]


def test_a_mistake_elsewhere_does_not_cost_the_lock(folder):
    lock = (folder / "dvc.lock").read_text()
    (folder / ".dvc/config.local").write_text("[core]\n    autostagee = true\n[cache")
    shutil.rmtree(folder / ".git")
    assert recover() == []
    (folder / "dvc.lock").write_text(lock.replace("2.0", "3.0").replace("    cmd:", "    new: 1\n    cmd:"))
    assert recover() == [] and (folder / "dvc.lock").exists()


def test_the_lock_of_a_killed_git_is_named(folder):
    (folder / ".git/index.lock").touch()
    result = CliRunner().invoke(main)
    assert result.exit_code == 1 and ".git/index.lock is there" in result.output
    (folder / ".git/index.lock").unlink()
    run("git commit -q --allow-empty -m state && git worktree add -q ../other", folder)
    (folder / ".git/worktrees/other/index.lock").touch()
    with pytest.raises(PetalsError, match=r"worktrees/other/index\.lock is there"):
        recover(folder.parent / "other")


def test_a_mistake_in_params_is_said_before_dvc_removes_an_output(folder):
    (folder / "params.yaml").write_text("image_size: 8\n")
    result = CliRunner().invoke(main)
    assert result.exit_code == 1 and result.output.startswith("Error: params.yaml: ")


def test_whole_files_and_a_merge_conflict_stay(folder):
    assert recover() == []
    conflict = f"{CONFLICT} ours\nschema: '2.0'\n=======\nschema: '2.1'\n>>>>>>> theirs\n"
    (folder / "dvc.lock").write_text(conflict)
    assert recover() == []
    assert (folder / "dvc.lock").read_text() == conflict
    (folder / "dvc.lock").unlink()
    assert recover() == []


@pytest.mark.parametrize(
    ("knob", "value", "path"),
    [("data", "data/nine", "data/nine"), ("pretrained", "rose.safetensors", "data/weights/rose.safetensors")],
)
def test_a_file_that_is_not_there_is_told_before_dvc_removes_an_output(folder, knob, value, path):
    (folder / "data/sample").mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(re.sub(f"^{knob}: .*$", f"{knob}: {value}", ORIGINAL, flags=re.M))
    told = f"Error: {knob}: there is no {path}, and no {path}.dvc to pull it by; set it in params.yaml\n"
    assert CliRunner().invoke(main).output == told
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{path}.dvc").touch()
    assert CliRunner().invoke(main).output == ""
    (folder / f"{path}.dvc").unlink()
    pipeline = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(pipeline.replace("[out.txt]", f"[{{{path}: {{push: false}}}}]"))
    assert CliRunner().invoke(main).output == ""
