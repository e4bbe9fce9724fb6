"""train, stopped half-way: by a signal, a full disk or a loss that is not finite; it goes on to the same bytes."""

import errno
import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from conftest import ORIGINAL, REPOSITORY
from project import SMALL, environment, tiny_records
from safetensors.torch import load_file

from petals import checkpoint, validation
from petals.checkpoint import progress_in
from petals.files import STATE
from stages import augment, prepare, train

pytestmark = pytest.mark.slow
OUTS = ("models/model.safetensors", "metrics/train.json", "plots/train")
ARGUMENTS = ("data/prepared/train", "data/prepared/val", "data/augmented", "data/weights/true", *OUTS)
STEPS = 3  # an epoch: 24 images in batches of 8


@pytest.fixture(autouse=True)
def settings():
    """What stages set for their whole process is put back for the tests that follow."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder in which prepare and augment have run."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        knobs()
        tiny_records(folder / "data/tiny")
        outs = ("data/prepared", "metrics/prepare.json", "plots/classes.csv", "plots/duplicates.csv")
        assert CliRunner().invoke(prepare.main, ["data/tiny", *outs, "--workers", "1"]).exit_code == 0
        assert CliRunner().invoke(augment.main, ["data/prepared/train", "data/augmented", "a.png"]).exit_code == 0
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch) -> Path:
    """A folder of its own to train in, with the data of `prepared`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(prepared / "data")
    knobs()
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(prepared) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        assert run().exit_code == 0
        return outputs()


def knobs(**changed: object) -> None:
    values = yaml.safe_load(ORIGINAL) | SMALL | {"device": "cpu"} | changed
    Path("params.yaml").write_text(yaml.safe_dump(values))


def run() -> Result:
    result = CliRunner().invoke(train.main, ARGUMENTS)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def outputs() -> dict[str, bytes]:
    """Every file that train wrote, the .json beside the weights included."""
    folders = ("models", "metrics", "plots/train")
    files = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != "prepare.json"}


def at_step(monkeypatch, step: int, event) -> None:
    """Let `event()` happen while train is at `step`, counted from 0."""
    rate = train.warmup_cosine

    def interrupted(now: int, *others: int) -> float:
        if now == step:
            event()
        return rate(now, *others)

    monkeypatch.setattr(train, "warmup_cosine", interrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_from_which_the_same_bytes_come(folder, uninterrupted, monkeypatch, number, code):
    at_step(monkeypatch, STEPS, lambda: signal.raise_signal(number))
    stopped = run()
    assert stopped.exit_code == code
    assert stopped.stderr == f"stopped by {number.name} with a checkpoint; dvc repro goes on from it\n"
    assert not any(Path(out).exists() for out in OUTS)
    monkeypatch.undo()
    monkeypatch.chdir(folder)

    resumed = run()
    assert resumed.exit_code == 0
    assert resumed.stdout.startswith(f"going on from the checkpoint at epoch 2, step 1 of {STEPS}\n")
    assert outputs() == uninterrupted


def test_the_process_ends_with_the_code_of_its_signal(folder):
    knobs(epochs=1000)
    command = [sys.executable, "-u", "-m", "stages.train", *ARGUMENTS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment(PYTHONPATH=str(REPOSITORY)), **pipes)
    assert process.stdout.readline().startswith("epoch 1/1000")
    process.terminate()
    assert process.communicate()[1] == "stopped by SIGTERM with a checkpoint; dvc repro goes on from it\n"
    assert process.returncode == 143
    assert len(list(STATE.glob("train-*.safetensors"))) == 1


def test_a_full_disk_is_one_line_and_the_last_checkpoint_goes_on(folder, uninterrupted, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.parent == STATE and list(STATE.glob("train-*")):  # the second checkpoint
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    stopped = run()
    assert (stopped.exit_code, stopped.stderr) == (1, "Error: the disk is full; make room, then dvc repro\n")
    assert not list(folder.rglob(".*.partial"))
    monkeypatch.undo()
    monkeypatch.chdir(folder)

    resumed = run()
    assert resumed.stdout.startswith(f"going on from the checkpoint at epoch 1, step {STEPS} of {STEPS}\n")
    assert outputs() == uninterrupted


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_finite_checkpoint(folder, monkeypatch):
    knobs(lr=10.0, weight_decay=10.0, epochs=40, warmup_epochs=0.0)  # weights grow a hundredfold a step
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", -1.0)
    stopped = run()
    assert stopped.exit_code == 1
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("Error: ") and "no longer finite at step " in line and "learning rate " in line
    (kept,) = STATE.glob("train-*.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept).values())
    assert run().stdout.startswith("going on from the checkpoint")
    assert not any(Path(out).exists() for out in OUTS)


@pytest.mark.parametrize(
    ("every", "what", "step"), [(1000.0, "scores on val", 2 * STEPS - 1), (-1.0, "weights", STEPS)]
)
def test_weights_that_are_not_finite_are_neither_scored_nor_kept(folder, monkeypatch, every, what, step):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", every)
    update = train.AveragedWeights.update

    def overflow(average: train.AveragedWeights, step: int) -> None:
        update(average, step)
        if step == STEPS:  # in the second epoch; the loss never sees it
            average.average[0].fill_(float("inf"))

    monkeypatch.setattr(train.AveragedWeights, "update", overflow)
    stopped = run()
    assert stopped.exit_code == 1
    (line,) = stopped.stderr.splitlines()
    said = f"Error: the {what} are no longer finite at step {step} of {2 * STEPS}, learning rate "
    assert line.startswith(said) and 0 < float(line.removeprefix(said).split(":")[0]) < 1e-3
    (kept,) = STATE.glob("train-*.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept).values())


def test_a_finished_run_is_taken_up_until_dvc_has_its_result_and_then_run_anew(folder, uninterrupted):
    assert run().exit_code == 0
    assert run().stdout.startswith("going on from the checkpoint")
    assert outputs() == uninterrupted
    Path("dvc.lock").write_text(hashlib.md5(Path("models/model.safetensors").read_bytes()).hexdigest())
    again = run()
    assert again.stdout.startswith("epoch 1/2") and outputs() == uninterrupted


def test_a_checkpoint_is_written_before_a_validation_that_would_take_too_long(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 10.0)
    scored, found = validation.macro_f1, []

    def slow(*each: object) -> float:
        now[0] += 4.0
        found.append([progress_in(path.read_bytes())["step"] for path in STATE.glob("train-*.safetensors")])
        return scored(*each)

    knobs(epochs=4)
    monkeypatch.setattr(validation, "macro_f1", slow)
    assert run().exit_code == 0
    assert found == [[STEPS], [STEPS], [3 * STEPS], [3 * STEPS]]


def test_a_signal_while_validation_is_scored_is_not_lost(folder, uninterrupted, monkeypatch):
    scored = validation.macro_f1
    monkeypatch.setattr(validation, "macro_f1", lambda *each: (signal.raise_signal(signal.SIGTERM), scored(*each))[1])
    assert [run().exit_code, run().exit_code] == [143, 143]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run().exit_code == 0 and outputs() == uninterrupted


def test_a_signal_while_the_temperature_is_fitted_ends_the_run_once_the_model_is_written(folder, monkeypatch):
    def calibrate(*arguments: object) -> str:
        signal.raise_signal(signal.SIGINT)
        return validation.calibrate(*arguments)

    monkeypatch.setattr(train, "calibrate", calibrate)
    result = CliRunner().invoke(train.main, ARGUMENTS)
    assert result.exit_code == 130 and "stopped by SIGINT with a checkpoint" in result.output
    model = Path("models/model.safetensors").read_bytes()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(train.main, ARGUMENTS)
    assert result.exit_code == 0 and "going on from the checkpoint" in result.output
    assert Path("models/model.safetensors").read_bytes() == model


@pytest.mark.parametrize("stage", ["prepare", "train", "export"])
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path, stage):
    interrupted = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "click.py").write_text(interrupted)
    command = [sys.executable, "-m", f"stages.{stage}", "--help"]
    path = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment() | path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT; dvc repro goes on from here\n")
