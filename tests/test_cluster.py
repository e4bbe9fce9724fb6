"""Several machines: which one this is, what it runs, and the job of Vertex AI that starts them."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import REPOSITORY
from project import copy_project

from petals import cluster
from petals.errors import PetalsError
from petals.params import KNOBS

TRAIN = "exec torchrun -m stages.train data/prepared/train"
SPEC = {
    "cluster": {
        "workerpool0": ["cmle-training-workerpool0-ab-0:2222"],
        "workerpool1": ["cmle-training-workerpool1-ab-0:2222", "cmle-training-workerpool1-ab-1:2222"],
    },
    "task": {"type": "workerpool1", "index": 1},
    "environment": "cloud",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("cluster") / "petals")


@pytest.fixture
def ran(project: Path, tmp_path: Path, monkeypatch) -> list[list[str]]:
    """The commands that are run, in a copy of the project, instead of running them."""
    monkeypatch.chdir(shutil.copytree(project, tmp_path, dirs_exist_ok=True))
    for name in ("CLUSTER_SPEC", "AIP_MODEL_DIR", "PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    commands: list[list[str]] = []

    monkeypatch.setattr(cluster, "run", lambda *command: commands.append(list(command)))
    return commands


CHECK, PUSH = ([sys.executable, "-m", "petals.remote", command] for command in ("check", "push"))
RECORD = [sys.executable, "-m", "petals.machine", "--record"]


def test_the_first_machine_leads_and_keeps_what_git_would(ran, monkeypatch, tmp_path):
    monkeypatch.setenv("AIP_MODEL_DIR", str(tmp_path / "bucket"))
    Path("metrics").mkdir()
    Path("metrics/evaluate.json").write_text("{}")
    done = CliRunner().invoke(cluster.main, ["-S", "launch=torchrun -m", "--push"])
    assert done.exit_code == 0, done.output
    trained = [sys.executable, "-m", "dvc", "exp", "run", "--pull", "-S", "launch=torchrun -m"]
    assert ran == [CHECK, trained, RECORD, PUSH]

    bucket = tmp_path / "bucket"
    (bucket / "metrics/robustness.json").write_text("of a former job")
    Path("metrics/evaluate.json").write_text('{"macro_f1": 0.9}')
    assert CliRunner().invoke(cluster.main, ["-S", "launch=torchrun -m"]).exit_code == 0, "another job"
    kept = {str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file()}
    assert kept == {"params.yaml", "metrics/evaluate.json"}
    assert "0.9" in (bucket / "metrics/evaluate.json").read_text()


@pytest.mark.parametrize(("fails", "begun", "kept"), [("check", 1, False), ("push", 4, True)])
def test_a_bucket_that_is_shut_is_told_before_the_run_and_costs_no_scores(
    ran, monkeypatch, tmp_path, fails: str, begun: int, kept: bool
):
    def run(*command: str) -> None:
        ran.append(list(command))
        if command[-1] == fails:
            raise SystemExit(1)

    monkeypatch.setattr(cluster, "run", run)
    monkeypatch.setenv("AIP_MODEL_DIR", str(tmp_path / "bucket"))
    done = CliRunner().invoke(cluster.main, ["--push"])
    assert (done.exit_code, len(ran), (tmp_path / "bucket/params.yaml").exists()) == (1, begun, kept)


def test_results_that_cannot_be_kept_are_a_line_and_cost_no_model(ran, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AIP_MODEL_DIR", str(tmp_path / "file/bucket"))
    done = CliRunner().invoke(cluster.main, ["--push"])
    assert done.exit_code == 1 and ran[-1] == PUSH
    assert done.output.startswith(f"Error: AIP_MODEL_DIR: {tmp_path}/file/bucket cannot be written to: ")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_machines_need_a_launch_for_several(ran, monkeypatch, rank: str):
    for name, value in {"NNODES": "2", "NODE_RANK": rank, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    done = CliRunner().invoke(cluster.main, ["-S", "lr=1e-4"])
    assert done.output == "Error: launch: 'python -m' starts on one machine alone; add -S launch=\"torchrun -m\"\n"
    assert not ran


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PET_NNODES": "1:4"}, "PET_NNODES: should be a whole number of 1 or more, but is '1:4'"),
        ({"PET_NNODES": "two"}, "PET_NNODES: should be a whole number of 1 or more, but is 'two'"),
        ({"PET_NNODES": "0"}, "PET_NNODES: should be a whole number of 1 or more, but is '0'"),
        ({"PET_NNODES": "2"}, "PET_MASTER_ADDR and PET_MASTER_PORT should say where the first machine is"),
    ],
)
def test_machines_that_cannot_meet_begin_nothing(ran, monkeypatch, rank: str, variables: dict, said: str):
    for name, value in ({"PET_NODE_RANK": rank} | variables).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(cluster.main, [])
    assert (done.exit_code, done.output, ran) == (1, f"Error: {said}\n", [])


def test_a_machine_without_a_number_begins_nothing(ran, monkeypatch):
    monkeypatch.setenv("PET_NODE_RANK", "first")
    done = CliRunner().invoke(cluster.main, [])
    assert done.output == "Error: PET_NODE_RANK: should be a whole number of 0 or more, but is 'first'\n" and not ran


def test_the_others_prepare_and_then_run_what_launch_starts(ran, monkeypatch):
    monkeypatch.setenv("CLUSTER_SPEC", json.dumps(SPEC))
    monkeypatch.setattr(cluster.os, "environ", dict(cluster.os.environ))
    monkeypatch.setattr(cluster, "announced", lambda: iter(["stages.train", "stages.evaluate"]))
    done = CliRunner().invoke(cluster.main, ["-S", "launch=torchrun -m", "-S", "lr=1e-4"])
    assert done.exit_code == 0, done.output
    prepare, train, evaluate = ran
    assert prepare == [sys.executable, "-m", "dvc", "repro", "--pull", "augment"]
    assert train[:2] == ["sh", "-c"] and train[2].startswith(TRAIN)
    assert evaluate[2].startswith("exec torchrun -m stages.evaluate models/model.safetensors")
    assert yaml.safe_load(Path("params.yaml").read_text())["lr"] == 1e-4
    assert cluster.os.environ["PET_NODE_RANK"] == "2" and cluster.os.environ["PET_NNODES"] == "3"


def test_a_command_that_fails_ends_it():
    with pytest.raises(SystemExit, match=r"^3$"):
        cluster.run(sys.executable, "-c", "raise SystemExit(3)")


def test_torchrun_waits_for_machines_that_still_render(monkeypatch):
    waits = "import os; raise SystemExit(os.environ['PET_RDZV_CONF'] != 'timeout=1800')"
    monkeypatch.delenv("PET_RDZV_CONF", raising=False)
    cluster.run(sys.executable, "-c", waits)
    monkeypatch.setenv("PET_RDZV_CONF", "timeout=60")
    with pytest.raises(SystemExit):
        cluster.run(sys.executable, "-c", waits)


@pytest.mark.parametrize("as_dvc", [True, False])
def test_a_signal_goes_on_to_the_stage_not_to_dvc_or_its_shell(tmp_path: Path, monkeypatch, as_dvc: bool):
    """The command tells the name of what ends; each waits for the end of its child, as DVC does."""
    told = tmp_path / "told"
    stage = (
        "import os, pathlib, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(told)!r}).write_text('stage'), sys.exit(9)))\n"
        f"os.kill({os.getpid()}, signal.SIGTERM)\n"
        "while True: signal.pause()\n"
    )
    (tmp_path / "stage.py").write_text(stage)
    (tmp_path / "dvc.py").write_text(
        "import subprocess, sys\n"
        f"subprocess.run('{sys.executable} stage.py; exit 7', shell=True)\n"
        f"open({str(told)!r}, 'a').write(' and then dvc')\n"
        "sys.exit(5)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = (*cluster.DVC, "repro") if as_dvc else ("sh", "-c", f"exec {sys.executable} stage.py")
    with pytest.raises(SystemExit, match=r"^143$"):
        cluster.run(*command)
    assert told.read_text() == ("stage and then dvc" if as_dvc else "stage")


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("launch=rm -rf", "params.yaml: launch: should be a command that ends"),
        ("lrr=1", "-S: no stage reads 'lrr'; did you mean lr?"),
        ("nolaunch", "-S nolaunch: is not KNOB=VALUE"),
        ("lr=1,2", "-S lr=1,2: Error merging override lr=1,2"),
        ("lr=100", "params.yaml: lr: should be less than or equal to 10, but is 100"),
        ("launch=torchrun --nproc-per-node=8 -m", "-S launch=torchrun --nproc-per-node=8 -m: DVC takes = inside "),
    ],
)
def test_a_setting_that_will_not_do_is_one_line(ran, monkeypatch, rank: str, setting: str, said: str):
    monkeypatch.setenv("PET_NODE_RANK", rank)
    done = CliRunner().invoke(cluster.main, ["-S", setting])
    assert done.exit_code == 1 and done.output.startswith(f"Error: {said}"), done.output
    assert done.output.count("\n") == 1 and not ran


@pytest.mark.parametrize(("pool", "index", "rank"), [("workerpool0", 0, "0"), ("workerpool1", 1, "2")])
def test_a_place_in_the_cluster(pool: str, index: int, rank: str):
    assert cluster.place(json.dumps(SPEC | {"task": {"type": pool, "index": index}})) == {
        "PET_NNODES": "3",
        "PET_NODE_RANK": rank,
        "PET_MASTER_ADDR": "cmle-training-workerpool0-ab-0",
        "PET_MASTER_PORT": "2222",
    }


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cluster": {}, "task": {"type": "workerpool0", "index": 0}}'])
def test_what_is_no_cluster(text: str):
    with pytest.raises(PetalsError, match=r"^CLUSTER_SPEC: not what Vertex AI writes"):
        cluster.place(text)


JOB = yaml.safe_load((REPOSITORY / "cloud/vertex-job.yaml").read_text())


def test_the_job_sets_what_there_is_and_starts_torchrun():
    for pool in JOB["workerPoolSpecs"]:
        words = pool["containerSpec"]["args"]
        assert words[:3] == ["python", "-m", "petals.cluster"]
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        assert set(settings) <= KNOBS and settings["launch"] == "torchrun -m"
    assert JOB["workerPoolSpecs"][0]["replicaCount"] == 1, "Vertex AI wants one machine in the first pool"


def test_the_image_is_one_that_is_pushed():
    script = (REPOSITORY / ".github/scripts/build-image.sh").read_text()
    pushed = re.findall(r'--tag="\$name:([\w$]+)"', script)
    guide = (REPOSITORY / "docs/scale.md").read_text()
    images = [pool["containerSpec"]["imageUri"] for pool in JOB["workerPoolSpecs"]]
    images += re.findall(r"images describe (\S+/train:\w+)", guide)
    assert len(images) == 3 and {image.rpartition("/")[2] for image in images} <= {f"train:{tag}" for tag in pushed}
