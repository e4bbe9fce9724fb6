"""How stages end: one line for a fault, the exit codes of signals, --help that says which params are read."""

import errno
import importlib
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

from petals.errors import PetalsError
from petals.files import STATE
from petals.params import STAGES, ExportParams
from stages import cli
from stages.cli import Interrupt, progress, stage

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    for each, handler in handlers.items():
        signal.signal(each, handler)


def run(body, several: bool = False) -> Result:
    """Run `body` as a stage."""
    return CliRunner().invoke(stage(ExportParams, several)(body))


@pytest.mark.parametrize("name", STAGES)
def test_help_explains_arguments_and_lists_the_params_read(name: str):
    main = importlib.import_module(f"stages.{name}").main
    done = CliRunner().invoke(main, ["--help"])
    assert done.exit_code == 0
    words = " ".join(done.output.split())
    assert words.endswith(f"Reads from params.yaml: {', '.join(STAGES[name].model_fields)}.")
    for argument in main.params:
        if isinstance(argument, click.Argument):
            shown = argument.make_metavar(click.Context(main))
            assert words.count(shown) >= 2, f"{shown} is not explained"


@pytest.mark.parametrize("name", STAGES)
def test_without_params_a_stage_ends_in_one_line(name: str):
    main = importlib.import_module(f"stages.{name}").main
    arguments = ["x"] * sum(isinstance(each, click.Argument) for each in main.params)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert done.output == "Error: params.yaml: not found; run from the top folder of the repository\n"


def test_success():
    done = run(lambda: click.echo("done"))
    assert (done.exit_code, done.output) == (0, "done\n")


def test_a_users_mistake_is_one_line():
    def body():
        raise PetalsError("a.tfrec: record 3 at byte 90: not so")

    done = run(body)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "Error: a.tfrec: record 3 at byte 90: not so\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("name", "shown"), [("models/x", "models/x: "), (None, "")])
def test_a_full_disk_is_one_line(number: int, name: str | None, shown: str):
    def body():
        raise OSError(number, "full", name)

    done = run(body)
    assert (done.exit_code, done.stderr) == (1, f"Error: {shown}the disk is full; make room, then dvc repro\n")


def test_a_system_that_refuses_is_one_line():
    def body():
        raise PermissionError(errno.EACCES, "Permission denied", "models")

    done = run(body)
    assert (done.exit_code, done.stderr) == (1, "Error: models: Permission denied\n")


def test_a_worker_that_was_killed_is_one_line():
    def body():
        raise BrokenProcessPool("terminated abruptly")

    done = run(body)
    assert done.exit_code == 1 and "memory" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_fault_of_the_code_keeps_its_traceback():
    def body():
        raise ZeroDivisionError

    assert isinstance(run(body).exception, ZeroDivisionError)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_stage_in_one_line(number: signal.Signals, code: int):
    cleared = []

    def body():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleared.append(True)

    done = run(body)
    assert done.exit_code == code and cleared
    assert done.stderr == f"stopped by {number.name}; dvc repro goes on from here\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_loop_may_save_before_it_leaves(number: signal.Signals, code: int):
    saved = []

    def body():
        with Interrupt() as interrupt:
            interrupt.leave_if(interrupt.requested)
            os.kill(os.getpid(), number)
            saved.append("checkpoint")
            interrupt.leave_if(interrupt.requested)
            saved.append("never")

    done = run(body)
    assert done.exit_code == code and saved == ["checkpoint"]
    assert done.stderr == f"stopped by {number.name} with a checkpoint; dvc repro goes on from it\n"


def test_afterwards_signals_are_handled_as_before():
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), Interrupt():
        assert signal.getsignal(signal.SIGINT) != before[1]
        raise ZeroDivisionError
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_stage_waits_for_another_of_the_same_folder(monkeypatch: pytest.MonkeyPatch):
    STATE.mkdir()
    other = FileLock(STATE / "lock")
    other.acquire()
    said = []

    def echo(text: str, err: bool = False) -> None:
        said.append(text)
        if other.is_locked:
            other.release()  # the other ends

    monkeypatch.setattr(cli.click, "echo", echo)
    assert run(lambda: click.echo("done")).exit_code == 0
    assert said == ["another stage is still running in this folder; waiting for it to end", "done"]


def test_of_several_processes_none_waits_for_it(monkeypatch: pytest.MonkeyPatch):
    STATE.mkdir()
    monkeypatch.setattr(cli, "PROCESSES", 2)
    monkeypatch.setattr(cli, "told_by_another", lambda: False)
    with FileLock(STATE / "lock"):
        done = run(lambda: click.echo("done"), several=True)
    assert done.exit_code == 1 and done.output.startswith("Error: another stage is still running in this folder; try")


def test_a_stage_that_failed_leaves_the_folder_free():
    def body():
        raise PetalsError("no")

    assert [run(body).exit_code, run(lambda: None).exit_code] == [1, 0]


def test_progress_is_silent_in_a_log(capsys: pytest.CaptureFixture):
    assert list(progress(iter("abc"), "packing", "file", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_prepare_on_a_full_disk_is_one_line_and_leaves_nothing(on_small_disk, params):
    sample = REPOSITORY / "data" / "sample"
    done = on_small_disk(
        "-c",
        f"""
import os, runpy, shutil, sys
shutil.copy({str(params)!r}, "params.yaml")
sys.argv = ["prepare", {str(sample)!r}, "data/prepared", "card.json", "classes.csv", "duplicates.csv"]
try:
    runpy.run_module("stages.prepare", run_name="__main__")
finally:
    print(sorted(os.listdir()), os.listdir("data"))
""",
    )
    assert (done.returncode, done.stderr) == (1, "Error: the disk is full; make room, then dvc repro\n")
    assert done.stdout.endswith("['.petals', 'data', 'params.yaml'] []\n")
