"""python -m petals.tune with DVC's own queue and workers, and a stage of moments."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from project import copy_project, environment, run

from petals.tune.__main__ import main
from petals.tune.experiments import Experiments

pytestmark = pytest.mark.slow
SPACE = {
    "objective": "metrics/evaluate.json:macro_f1",
    "startup": 1,
    "curve": "val/macro_f1",
    "space": {
        "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "head_lr": {"type": "int", "low": 1, "high": 30},
    },
}
PIPELINE = """
stages:
  train:
    cmd: python stage.py
    deps: [stage.py]
    params: [lr, head_lr, epochs, seed]
    outs:
      - plots/train: {cache: false}
    metrics:
      - metrics/evaluate.json: {cache: false}
"""
STAGE = '''
"""Stands in for the pipeline: as quick as the name of its experiment allows."""
import json, os, pathlib, shutil, signal, sys
name = os.environ["DVC_EXP_NAME"]
knobs = dict(line.rstrip().split(": ", 1) for line in open("params.yaml"))
score = 1 / (1 + float(knobs["lr"])) - 0.1 * int(knobs["seed"])
if name == "mixed-001":
    sys.exit("Error: the loss is no longer finite at step 7 of 9")
live = pathlib.Path(".petals/live/plots/metrics/val")
live.mkdir(parents=True)
(live / "macro_f1.tsv").write_text("step\\tmacro_f1\\n" + f"0\\t{score / 2 if name != 'mixed-002' else 0.01}\\n")
if name == "mixed-002":  # it would never end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    while True:
        signal.pause()
if (gate := pathlib.Path(GATES) / name).exists():
    gate.open().read()  # until the test opens and closes it
(live / "macro_f1.tsv").open("a").write(f"1\\t{score}\\n")
shutil.copytree(".petals/live/plots/metrics", "plots/train")
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/evaluate.json").write_text(json.dumps({"macro_f1": score}))
'''


@pytest.fixture(autouse=True)
def deadline():
    """A worker that never comes fails the test."""
    signal.alarm(500)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of this repository whose pipeline is the stand-in; its stages wait at the gates that are there."""
    root = tmp_path_factory.mktemp("tune")
    folder, gates = copy_project(root / "petals"), root / "gates"
    gates.mkdir()
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "stage.py").write_text(STAGE.replace("GATES", repr(str(gates))))
    (folder / "tune.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    (folder / "data" / "tiny").mkdir()
    (folder / "data" / "tiny" / "rose.jpg").touch()
    run("git add -A && git add -f data/tiny && git commit -qm stand-in", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment().items():
            patch.setenv(name, value)
        yield folder


def tune(*arguments: str) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def begin(*arguments: str) -> subprocess.Popen:
    """A search in a process of its own, whose trials no worker takes along that is about to end."""
    for worker in Experiments().workers():
        worker.kill()
        worker.wait()
    command = [sys.executable, "-m", "petals.tune", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def gate(project: Path, name: str) -> Path:
    os.mkfifo(path := project.parent / "gates" / name)
    return path


def experiments(prefix: str) -> list[str]:
    names = run("git for-each-ref --format='%(refname)' refs/exps", Path.cwd()).stdout.split()
    return [name for ref in names if (name := ref.split("/")[-1]).startswith(prefix)]


@pytest.fixture(scope="module")
def mixed(project) -> str:
    """What a search printed in which a trial fails and one is hopeless."""
    with (project / "README.md").open("a") as file:
        file.write("a change that is not committed\n")
    done = tune("--trials", "4", "--name", "mixed", "-S", "lr=0.1", "-S", "epochs=3")
    assert done.exit_code == 0, done.output
    return done.output


def test_a_trial_that_fails_is_told_apart_with_the_line_of_its_stage(mixed):
    assert "mixed-001: failed: the loss is no longer finite at step 7 of 9 (lr " in mixed
    assert re.search(r"\| `mixed-001` \| failed ", mixed)
    assert "\n\nmixed-001 failed: the loss is no longer finite at step 7 of 9\n" in mixed


def test_a_hopeless_trial_is_stopped(mixed):
    assert "mixed-002: given up after epoch 1, below the median of the others" in mixed
    assert re.search(r"\| `mixed-002` \| given up after epoch 1 \|", mixed)


def test_the_first_trial_has_the_settings_to_start_from(mixed):
    assert re.search(r"mixed-000: macro_f1 0.8091 \(lr 0.1, head_lr 3\)", mixed)


def test_every_trial_that_ended_is_an_experiment_to_show_and_the_best_is_applied(mixed, project):
    assert experiments("mixed") == ["mixed-000", "mixed-003"]
    shown = run("dvc exp show --only-changed --csv 2>/dev/null", project).stdout
    states = {row["Experiment"]: row["State"] for row in csv.DictReader(io.StringIO(shown)) if row["Experiment"]}
    assert states["mixed-001"] == states["mixed-002"] == "Failed"

    name = re.search(r"^  dvc exp apply (\S+)$", mixed, re.MULTILINE)[1]
    rows = dict(re.findall(r"^\| `(mixed-\d+)` \| (0\.\d+)", mixed, re.MULTILINE))
    assert name == max(rows, key=rows.get)
    run(f"dvc exp apply {name}", project)
    assert f"{json.loads((project / 'metrics/evaluate.json').read_text())['macro_f1']:.4f}" == rows[name]
    knobs = yaml.safe_load((project / "params.yaml").read_text())
    assert f"(lr {knobs['lr']}, head_lr {knobs['head_lr']})" in mixed and knobs["epochs"] == 3
    run("git checkout -q params.yaml dvc.yaml && rm -rf dvc.lock metrics plots && git reset -q", project)


def test_what_was_not_committed_stays(mixed, project):
    assert "not committed" in (project / "README.md").read_text()


def test_the_pictures_can_be_opened(mixed, project):
    listed = re.findall(r"^  (\S+\.png)$", mixed, re.MULTILINE)
    assert [Path(path).name for path in listed] == ["history.png", "curves.png", "importance.png"]
    for path in listed:
        with Image.open(project / path) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 20)) > 2


def test_a_search_that_has_all_its_trials_only_shows_them_again(mixed, project):
    again = tune("--trials", "4", "--name", "mixed", "-S", "lr=0.1", "-S", "epochs=3")
    assert again.exit_code == 0 and again.output == mixed[mixed.index("\n| ") :]


def test_another_search_of_that_name_is_refused(mixed, project):
    other = tune("--trials", "4", "--name", "mixed", "-S", "epochs=4")
    assert other.exit_code == 1 and "no longer what the search 'mixed' began with" in other.output
    (project / ".petals/tune/mixed/study.journal").rename(project / "kept")
    lost = tune("--trials", "4", "--name", "mixed", "-S", "lr=0.1", "-S", "epochs=3")
    (project / "kept").rename(project / ".petals/tune/mixed/study.journal")
    assert lost.exit_code == 1 and "mixed-000 is of another search" in lost.output
    assert experiments("mixed") == ["mixed-000", "mixed-003"]


def kill_worker(name: str) -> None:
    """Kill what runs the experiment `name`, DVC's worker included, as when a machine goes down; not its stage."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("DVC_EXP_NAME") == name and Path(process.cwd()).is_relative_to(Path.cwd()):
                for parent in process.parents():
                    if {"exec-run", "queue-worker"} & set(parent.cmdline()):
                        parent.kill()


def test_two_trials_run_at_once_and_outlive_a_search_that_is_killed(project, monkeypatch):
    gates = [gate(project, name) for name in ("killed-000", "killed-001")]
    arguments = ("--trials", "2", "--jobs", "2", "--name", "killed", "-S", "lr=0.01", "-S", "epochs=5")
    search = begin(*arguments)
    opened = [path.open("w") for path in gates]  # both stages are at their gates
    search.kill()
    search.communicate()
    assert search.returncode == -signal.SIGKILL
    kill_worker("killed-001")
    for each in opened:
        each.close()
    monkeypatch.setattr(Experiments, "PATIENCE", 15.0)
    done = tune(*arguments)
    assert done.exit_code == 0, done.output
    assert [f"killed-00{number}: taken up again" in done.output for number in (0, 1)] == [True, True]
    settings = re.search(r"killed-001: its worker is gone; its settings are tried again (.*)", done.output)[1]
    assert re.search(rf"killed-002: macro_f1 0\.\d+ {re.escape(settings)}", done.output)
    assert experiments("killed") == ["killed-000", "killed-002"]
    assert len(re.findall(r"^\| `killed-\d+` \| 0\.", done.output, re.MULTILINE)) == 2


def test_a_search_that_is_told_to_stop_ends_its_trials_and_goes_on_later(project):
    path = gate(project, "stopped-000-seed1")
    (project / "tune.yaml").write_text(yaml.safe_dump(SPACE | {"seeds": [1, 2]}, sort_keys=False))
    arguments = ("--trials", "1", "--name", "stopped", "-S", "lr=0.02", "-S", "epochs=6")
    search = begin(*arguments)
    opened = path.open("w")
    search.terminate()
    output = search.communicate()[0]
    opened.close()
    assert search.returncode == 143, output
    assert output.splitlines()[-1] == "stopped by SIGTERM; the same command goes on from here"
    assert not experiments("stopped")
    path.unlink()

    done = tune(*arguments)
    assert done.exit_code == 0, done.output
    # Its number is another where DVC's worker, about to end since its queue was empty, took the trial along.
    trial = re.search(r"^\| `(stopped-00[0-3])-seed1` \| 0\.8304 ± 0\.0707 \| 0\.02 ", done.output, re.MULTILINE)[1]
    assert experiments("stopped")[-2:] == [f"{trial}-seed1", f"{trial}-seed2"], done.output
    assert f"the mean of 2 seeds; this takes the first\n\n  dvc exp apply {trial}-seed1\n" in done.output
    run("git checkout -q tune.yaml", project)
