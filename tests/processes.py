"""Stages in several processes, as torchrun starts them, on a tiny data set."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from click.testing import CliRunner, Result
from conftest import ORIGINAL, REPOSITORY
from project import SMALL, environment, tiny_records

from stages import augment, prepare

TRAIN = (
    *("data/prepared/train", "data/prepared/val", "data/augmented", "data/weights/true"),
    *("models/model.safetensors", "metrics/train.json", "plots/train"),
)
EVALUATE = (
    *("models/model.safetensors", "data/prepared/val", "data/prepared/test"),
    *("metrics/evaluate.json", "metrics/robustness.json", "plots", "data/submission.csv", "models/reference.json"),
)


def knobs(**changed: object) -> None:
    """Write params.yaml for a short run of one thread on the processor."""
    values = yaml.safe_load(ORIGINAL) | SMALL | {"device": "cpu", "threads": 1}
    Path("params.yaml").write_text(yaml.safe_dump(values | changed))


def prepare_data() -> None:
    """Run prepare and augment in the present folder."""
    tiny_records(Path("data/tiny"))
    outs = ("data/prepared", "metrics/prepare.json", "plots/classes.csv", "plots/duplicates.csv")
    call(prepare.main, "data/tiny", *outs, "--workers", "1")
    call(augment.main, "data/prepared/train", "data/augmented", "plots/augmentation.jpg", "--workers", "1")


def call(command, *arguments: str) -> str:
    """Run a stage in this process; give what it printed."""
    result: Result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def first_line_alone() -> str:
    """What train says first when it is started without torchrun, after which it is stopped."""
    alone = start([sys.executable, "-u", "-m", "stages.train", *TRAIN])
    line = alone.stdout.readline()
    alone.terminate()
    assert len(said(alone.communicate()[1])) == 1
    return line


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-u", "-m", "torch.distributed.run", *options]


def start(command: list[str], folder: Path = Path(), **more: str) -> subprocess.Popen:
    """Start what torchrun runs; its standard output and error are pipes of text."""
    variables = environment(PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}", OMP_NUM_THREADS="1", **more)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=variables, **pipes)


def said(errors: str) -> list[str]:
    """What the stages wrote to standard error, without torchrun's own report, which may stand in the same line."""
    return re.findall(r"(?<!\w)(?:Error: |stopped by ).*", errors)
