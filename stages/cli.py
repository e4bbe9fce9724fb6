"""What the five stages share on the command line: how they stop, what they show, what --help says."""

import errno
import re
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager

import click
from filelock import FileLock, Timeout
from tqdm import tqdm

from petals.errors import PetalsError
from petals.files import STATE
from petals.params import StageParams

# As Python, torch on a GPU, and torch on a processor put it.
OUT_OF_MEMORY = re.compile("MemoryError|OutOfMemory|out of memory|not enough memory|can't allocate memory")


class StageCommand(click.Command):
    """A command whose faults are one line: exit code 1 for bad input, 130 and 143 when it is told to stop."""

    def invoke(self, context: click.Context) -> object:
        signal.signal(signal.SIGTERM, stop)
        try:
            with alone():
                return super().invoke(context)
        except PetalsError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full; make room, then dvc repro" if full else error.strerror or error
            raise click.ClickException(f"{where}{what}") from None
        except BrokenExecutor:
            raise click.ClickException(
                "a worker process was killed, most likely for want of memory; --workers 1 needs the least"
            ) from None
        except (MemoryError, RuntimeError) as error:
            if not OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"):
                raise
            raise click.ClickException("out of memory; lower batch_size, image_size or the model") from None
        except KeyboardInterrupt:
            click.echo("stopped by SIGINT; dvc repro goes on from here", err=True)
            context.exit(130)


@contextmanager
def alone() -> Iterator[None]:
    """Run beside no other stage of this folder: one whose DVC was killed may still be at work."""
    STATE.mkdir(exist_ok=True)
    lock = FileLock(STATE / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        click.echo("another stage is still running in this folder; waiting for it to end", err=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def stop(signum: int, frame: object) -> None:
    click.echo("stopped by SIGTERM; dvc repro goes on from here", err=True)
    raise SystemExit(128 + signum)


class Interrupt:
    """While active, SIGINT and SIGTERM only set `requested`, so that a loop can save what it has and `leave`."""

    def __init__(self) -> None:
        self.requested = 0

    def __enter__(self) -> "Interrupt":
        self.former = {each: signal.signal(each, self.request) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, signum: int, frame: object) -> None:
        self.requested = signum

    def leave(self) -> None:
        """End the process with 130 or 143, as shells expect, if a signal came."""
        if self.requested:
            name = signal.Signals(self.requested).name
            click.echo(f"stopped by {name} with a checkpoint; dvc repro goes on from it", err=True)
            raise SystemExit(128 + self.requested)

    def __exit__(self, *error: object) -> None:
        for each, handler in self.former.items():
            signal.signal(each, handler)


def stage(params: type[StageParams]):
    """Make a function the command of a stage; --help ends with the knobs that the stage reads."""
    return click.command(cls=StageCommand, epilog="Reads from params.yaml: " + ", ".join(params.model_fields) + ".")


def progress(items: Iterable, description: str, unit: str, total: int | None = None) -> Iterable:
    """A bar on a terminal, nothing in a log."""
    return tqdm(items, desc=description, unit=unit, total=total, disable=None, leave=False)
