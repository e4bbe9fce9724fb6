"""What the five stages share on the command line: how they stop, what they show, what --help says."""

import os
import re
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click
from filelock import FileLock, Timeout
from tqdm import tqdm

from petals.commands import refusal, show_all_names
from petals.errors import PetalsError
from petals.files import STATE
from petals.params import StageParams

# torchrun numbers the processes of a run: the first speaks, writes, and keeps other stages out of the folder.
PROCESSES, MAIN = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("RANK", "0") == "0"
# As Python, torch on a GPU, torch on a processor, and ONNX Runtime put it.
OUT_OF_MEMORY = re.compile(
    "MemoryError|OutOfMemory|out of memory|not enough memory|can't allocate memory|Failed to allocate memory"
    "|STATUS_ALLOC_FAILED"
)


class StageCommand(click.Command):
    """A command whose faults are one line: exit code 1 for bad input, 130 and 143 when it is told to stop.

    Of several processes the first one at fault says it.
    """

    def __init__(self, *args: Any, reads: type[StageParams], several: bool = False, **options: Any) -> None:
        """`reads` has the knobs of params.yaml that the stage needs; torchrun may start it in `several` processes."""
        super().__init__(*args, epilog=f"Reads from params.yaml: {', '.join(reads.model_fields)}.", **options)
        self.knobs, self.several = frozenset(reads.model_fields), several

    def invoke(self, context: click.Context) -> object:
        show_all_names()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, stop)
        try:
            if PROCESSES > 1 and not self.several:
                raise PetalsError(f"{context.command_path} runs in one process; on several machines with --part")
            with alone() if MAIN else redirect_stdout(None):
                return super().invoke(context)
        except PetalsError as error:
            raise failure(str(error)) from None
        except OSError as error:
            raise failure(refusal(error, "dvc repro")) from None
        except BrokenExecutor:
            raise failure(f"a worker process was killed, most likely for want of memory; {self.sparing}") from None
        except Exception as error:  # ONNX Runtime's have no other class in common
            if OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"):
                raise failure(f"out of memory; {self.sparing}") from None
            if PROCESSES > 1 and (lost := other_processes().lost(error)):
                raise failure(lost) from None
            raise
        except KeyboardInterrupt:
            if not told_by_another():
                click.echo("stopped by SIGINT; dvc repro goes on from here", err=True)
            context.exit(130)

    @property
    def sparing(self) -> str:
        """What to do where memory does not suffice."""
        if any(each.name == "workers" for each in self.params):
            return "with PETALS_WORKERS=1 in the environment it needs the least"
        lower = "raise accumulate, lower image_size" if "accumulate" in self.knobs else "lower image_size"
        return f"{lower}, or take a smaller model"


def failure(message: str) -> Exception:
    """What ends this process with exit code 1, and says `message` unless another process has told why the run ends."""
    return click.exceptions.Exit(1) if told_by_another() else click.ClickException(message)


def told_by_another() -> bool:
    return PROCESSES > 1 and not other_processes().first_to_fail()


def other_processes():
    from petals import distributed  # loads torch, which not every stage needs

    return distributed


@contextmanager
def alone() -> Iterator[None]:
    """Run beside no other stage of this folder: one whose DVC was killed may still be at work."""
    STATE.mkdir(exist_ok=True)
    lock = FileLock(STATE / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if PROCESSES > 1:  # the others would take this one for lost
            raise PetalsError("another stage is still running in this folder; try again once it has ended") from None
        click.echo("another stage is still running in this folder; waiting for it to end", err=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def stop(signum: int, frame: object) -> None:
    if not told_by_another():
        click.echo("stopped by SIGTERM; dvc repro goes on from here", err=True)
    raise SystemExit(128 + signum)


class Interrupt:
    """While active, SIGINT and SIGTERM only set `requested`, so that a loop can save what it has before it leaves."""

    def __init__(self) -> None:
        self.requested = 0

    def __enter__(self) -> "Interrupt":
        self.former = {each: signal.signal(each, self.request) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, signum: int, frame: object) -> None:
        self.requested = signum

    def leave_if(self, signum: int) -> None:
        """End the process with 130 or 143, as shells expect, where `signum` is a signal, and not 0 for none."""
        if signum:
            name = signal.Signals(signum).name
            if MAIN:
                click.echo(f"stopped by {name} with a checkpoint; dvc repro goes on from it", err=True)
            raise SystemExit(128 + signum)

    def __exit__(self, kind: type | None, *error: object) -> None:
        for each, handler in self.former.items():
            # Where one of several processes fails, torchrun ends the others: they are about to say why.
            signal.signal(each, signal.SIG_IGN if kind and PROCESSES > 1 else handler)


def stage(params: type[StageParams], several: bool = False):
    """Make a function the command of a stage; --help ends with the knobs that the stage reads.

    `several` says that torchrun may start it in several processes.
    """
    return click.command(cls=StageCommand, reads=params, several=several)


def workers_option(what: str):
    """The option --workers of a stage that works in several `what`; its result does not depend on it."""
    return click.option(
        "--workers", type=click.IntRange(1), envvar="PETALS_WORKERS", show_envvar=True, show_default="one per core",
        help=f"Number of {what} at work.",
    )  # fmt: skip


def progress(items: Iterable, description: str, unit: str, total: int | None = None) -> Iterable:
    """A bar on a terminal, nothing in a log."""
    return tqdm(items, desc=description, unit=unit, total=total, disable=None if MAIN else True, leave=False)
