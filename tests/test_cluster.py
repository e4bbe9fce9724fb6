"""Several machines: which one this is, what it runs, and the job of Vertex AI that starts them."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from conftest import REPOSITORY
from project import copy_project

from petals import cluster
from petals.errors import PetalsError
from petals.params import KNOBS

TRAIN = "torchrun -m stages.train data/prepared/train"
SPEC = {
    "cluster": {
        "workerpool0": ["cmle-training-workerpool0-ab-0:2222"],
        "workerpool1": ["cmle-training-workerpool1-ab-0:2222", "cmle-training-workerpool1-ab-1:2222"],
    },
    "task": {"type": "workerpool1", "index": 1},
    "environment": "cloud",
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch) -> list[list[str]]:
    """The commands that are run, in a copy of the project, instead of running them."""
    monkeypatch.chdir(copy_project(tmp_path))
    for name in ("CLUSTER_SPEC", "AIP_MODEL_DIR", "PET_NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    commands: list[list[str]] = []

    class Done:
        returncode = 0

    monkeypatch.setattr(cluster.subprocess, "run", lambda command, check: commands.append(list(command)) or Done)
    return commands


def test_the_first_machine_leads_and_keeps_what_git_would(ran, monkeypatch, tmp_path):
    monkeypatch.setenv("AIP_MODEL_DIR", str(tmp_path / "bucket"))
    Path("metrics").mkdir()
    Path("metrics/evaluate.json").write_text("{}")
    done = CliRunner().invoke(cluster.main, ["-S", "launch=torchrun -m", "--push"])
    assert done.exit_code == 0, done.output
    assert ran[0] == ["dvc", "exp", "run", "--pull", "-S", "launch=torchrun -m"] and ran[1][-2:] == [
        "petals.remote",
        "push",
    ]
    kept = {str(path.relative_to(tmp_path / "bucket")) for path in (tmp_path / "bucket").rglob("*") if path.is_file()}
    assert kept == {"params.yaml", "metrics/evaluate.json"}


def test_the_others_prepare_and_then_run_what_launch_starts(ran, monkeypatch):
    monkeypatch.setenv("CLUSTER_SPEC", json.dumps(SPEC))
    monkeypatch.setattr(cluster.os, "environ", dict(cluster.os.environ))
    done = CliRunner().invoke(cluster.main, ["-S", "launch=torchrun -m", "-S", "lr=1e-4"])
    assert done.exit_code == 0, done.output
    prepare, train, evaluate = ran
    assert prepare == ["dvc", "repro", "--pull", "augment"]
    assert train[:2] == ["sh", "-c"] and train[2].startswith(TRAIN)
    assert evaluate[2].startswith("torchrun -m stages.evaluate models/model.safetensors")
    assert yaml.safe_load(Path("params.yaml").read_text())["lr"] == 1e-4
    assert cluster.os.environ["PET_NODE_RANK"] == "2" and cluster.os.environ["PET_NNODES"] == "3"


def test_a_command_that_fails_ends_it(ran, monkeypatch):
    class Failed:
        returncode = 3

    monkeypatch.setattr(cluster.subprocess, "run", lambda command, check: Failed)
    assert CliRunner().invoke(cluster.main).exit_code == 3


def test_a_setting_that_is_none_is_one_line(ran, monkeypatch):
    monkeypatch.setenv("PET_NODE_RANK", "1")
    done = CliRunner().invoke(cluster.main, ["-S", "launch=rm -rf"])
    assert done.exit_code == 1 and done.output.startswith("Error: params.yaml: launch: should be a command that ends")


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
SCHEMA = json.loads((REPOSITORY / "cloud/vertex-job.schema.json").read_text())


def test_the_job_is_a_custom_job():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(JOB, SCHEMA)


def test_the_job_sets_what_there_is_and_starts_torchrun():
    for pool in JOB["workerPoolSpecs"]:
        words = pool["containerSpec"]["args"]
        assert words[:3] == ["python", "-m", "petals.cluster"]
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        assert set(settings) <= KNOBS and settings["launch"] == "torchrun -m"
    assert JOB["workerPoolSpecs"][0]["replicaCount"] == 1, "Vertex AI wants one machine in the first pool"


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("workerPoolSpecs", 0, "machineSpec", "acceleratorType"), "NVIDIA_L5"),
        (("workerPoolSpecs", 0, "machineSpec", "acceleratorCont"), 4),
        (("workerPoolSpecs", 1, "replicaCount"), 0),
        (("workerPoolSpecs", 1, "containerSpec", "args"), "python -m petals.cluster"),
        (("scheduling", "timeout"), 86400),
        (("baseOutputDirectory", "outputUriPrefix"), "petals/jobs"),
        (("worker_pool_specs",), []),
    ],
)
def test_the_schema_refuses(path: tuple, wrong: object):
    job = copy.deepcopy(JOB)
    inner = job
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)
