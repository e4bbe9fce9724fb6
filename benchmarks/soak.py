"""Kill the pipeline again and again, and count how often it still ends in the same bytes: python -m benchmarks.soak."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import psutil

from benchmarks.runs import given
from benchmarks.workspace import make_workspace
from petals import params
from petals.commands import Command
from petals.files import STATE
from petals.isolation import dvc, isolate

STAGES = tuple(params.STAGES)
# When a kill strikes, in turn; a stage that writes no checkpoints is at its work instead.
MOMENTS = ("working", "committing", "saving")
VICTIMS = ("all", "all", "dvc", "stage")  # the whole process group, DVC alone (its stage lives on), the stage alone
POLL = 0.002  # seconds


@dataclass(frozen=True)
class Kill:
    """Strike `victim` after `share` of the time that `stage` works, or that DVC then takes to commit its outputs.

    At the moment "saving" it waits further, until a checkpoint is being written beside the former one.
    """

    stage: str
    moment: str
    share: float
    victim: str


@dataclass
class Reference:
    """What an uninterrupted run gave: its workspace, and by stage how it began, what it cached, seconds it took."""

    root: Path
    working: dict[str, float] = field(default_factory=dict)
    committing: dict[str, float] = field(default_factory=dict)
    cached: dict[str, set[Path]] = field(default_factory=dict)

    def before(self, stage: str) -> Path:
        return self.root.with_name(f"before-{stage}")


def draw(kills: int, seed: int) -> list[Kill]:
    """Draw `kills` kills: the stages in turn, the moments of each in turn, the shares spread evenly over 0…1."""
    rng = random.Random(seed)
    turns = -(-kills // len(STAGES))
    strata = {stage: rng.sample(range(turns), turns) for stage in STAGES}
    drawn = []
    for number in range(kills):
        turn, place = divmod(number, len(STAGES))
        stage, moment = STAGES[place], MOMENTS[(turn + place) % len(MOMENTS)]
        if moment == "saving" and stage != "train":
            moment = "working"
        victim = "all" if moment == "committing" else rng.choice(VICTIMS)
        drawn.append(Kill(stage, moment, (strata[stage][turn] + rng.random()) / turns, victim))
    return drawn


def run_reference(root: Path, stages: Sequence[str] = STAGES) -> Reference:
    """Run `stages`, the first ones of the pipeline, in `root` one by one, keeping the state before each."""
    reference = Reference(root)
    environment = isolate(root)
    for stage in stages:
        shutil.copytree(root, reference.before(stage), symlinks=True)
        known = cache_files(root)
        with started(root, environment, "--single-item", stage) as process:
            running = wait_for_stage(process, stage)
            began = time.monotonic()
            wait_while(lambda: alive(running), process)  # noqa: B023
            ended = time.monotonic()
            process.wait()
        if process.returncode:
            raise click.ClickException(f"{stage} failed without being killed:\n{(root / 'log').read_text()[-2000:]}")
        reference.working[stage], reference.committing[stage] = ended - began, time.monotonic() - ended
        reference.cached[stage] = cache_files(root) - known
    return reference


@contextlib.contextmanager
def started(root: Path, environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen]:
    """Start dvc repro in a process group of its own; an exception, Ctrl-C that is, leaves nothing of it running."""
    with (root / "log").open("w") as log:
        command = [sys.executable, "-m", "dvc", "repro", *arguments]
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        process.wait()


def cache_files(root: Path) -> set[Path]:
    cache = root / ".dvc" / "cache"
    return {path.relative_to(cache) for path in cache.rglob("*") if path.is_file()}


def wait_for_stage(process: subprocess.Popen, stage: str) -> psutil.Process | None:
    """The process of `stage`, as soon as `process` (DVC) has started it; None where DVC ends without."""
    while process.poll() is None:
        try:
            for child in psutil.Process(process.pid).children(recursive=True):
                if f"stages.{stage}" in child.cmdline():
                    return child
        except psutil.Error:
            pass
        time.sleep(10 * POLL)  # to look through all processes is work, on a machine that has little to spare
    return None


def alive(stage: psutil.Process | None) -> bool:
    try:
        return stage is not None and stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_while(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = float("inf")) -> None:
    """Wait `seconds` at most, while `condition` holds and `process` (DVC) runs."""
    end = time.monotonic() + seconds
    while condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(POLL)


def strike(kill: Kill, reference: Reference, root: Path, environment: dict[str, str]) -> bool:
    """Start the pipeline in `root` and kill it as `kill` says; False if it had ended before."""
    with started(root, environment, *reference.cached) as process:
        running = wait_for_stage(process, kill.stage)
        if kill.moment == "committing":
            wait_while(lambda: alive(running), process)
            wait_while(lambda: True, process, kill.share * reference.committing[kill.stage])
        else:
            wait_while(lambda: alive(running), process, kill.share * reference.working[kill.stage])
        if kill.moment == "saving":
            wait_while(lambda: alive(running) and len(list((root / STATE).glob("*train-*"))) < 2, process)
        if process.poll() is not None:
            return False
        if kill.victim == "stage" and alive(running):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                running.kill()
            process.wait()  # DVC gives up by itself
        elif kill.victim == "dvc":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    return True


def trial(kill: Kill, reference: Reference, root: Path) -> tuple[bool, str]:
    """Kill the pipeline once and run it to its end: whether all bytes are the reference's, and what was told.

    All before the killed stage is done when it starts. What comes after is in DVC's run cache, to be used only
    where the killed stage ends in the same bytes.
    """
    for share in (kill.share / 2**halved for halved in range(4)):  # earlier, if the stage was faster this time
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(reference.before(kill.stage), root, symlinks=True)
        stages = list(reference.cached)
        later = stages[stages.index(kill.stage) + 1 :]
        for path in set().union(*(reference.cached[stage] for stage in later)):
            copy = root / ".dvc" / "cache" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(reference.root / ".dvc" / "cache" / path, copy)
        environment = isolate(root)
        if strike(replace(kill, share=share), reference, root, environment):
            break
    else:
        return False, "it always ended before it could be killed"
    recovery = [sys.executable, "-m", "petals.recovery"]
    mended = subprocess.run(recovery, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    done = dvc(root, environment, "repro", *reference.cached, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        return False, f"dvc repro failed: {done.stdout[-2000:]}"
    wrong = differences(reference.root, root)
    told = ", ".join(wrong) or f"went on from {went_on_from(kill.stage, done.stdout)}"
    return not wrong, "; ".join([told, *mended.splitlines()])


def went_on_from(stage: str, output: str) -> str:
    if found := re.search(r"going on from (the checkpoint at .*)", output):
        return found[1]
    if f"Stage '{stage}' didn't change" in output or f"Stage '{stage}' is cached" in output:
        return "its outputs"
    return "the start of the stage"


def differences(reference: Path, root: Path) -> list[str]:
    """The outputs of the two workspaces that differ in a byte, or in dvc.lock."""
    locks = [params.read_mapping(each / "dvc.lock")["stages"] for each in (reference, root)]
    outs = [{out["path"]: out for stage in lock.values() for out in stage["outs"]} for lock in locks]
    return [
        path for path in outs[0] | outs[1]
        if outs[0].get(path) != outs[1].get(path) or contents(reference / path) != contents(root / path)
    ]  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    """Every file below `path`, or `path` itself, by name."""
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


@click.command(cls=Command)
@click.option("--kills", type=click.IntRange(1), default=30, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Random seed of the moments.")
@click.option("-S", "--set-param", "settings", multiple=True, metavar="KNOB=VALUE", callback=given,
              help="As for dvc exp run; repeatable.")  # fmt: skip
def main(kills: int, seed: int, settings: dict[str, str]) -> None:
    """Kill the pipeline with SIGKILL at random moments over all stages, and compare every byte that it ends in.

    After each kill it goes on as `make repro` does.

    Among the moments are those at which DVC commits outputs and train writes a checkpoint. Killed are DVC and
    the stage together, DVC alone, or the stage alone. Exit code 1 if one run did not end in the same bytes.
    """
    with tempfile.TemporaryDirectory(prefix="petals-soak-", ignore_cleanup_errors=True) as folder:
        root = make_workspace(Path(folder) / "reference", settings)
        reference = run_reference(root)
        for stage in STAGES:
            took = f"{reference.working[stage]:.1f} s at work, {reference.committing[stage]:.1f} s committed"
            click.echo(f"uninterrupted {stage:<9}{took}")
        same = 0
        for number, kill in enumerate(draw(kills, seed), 1):
            right, told = trial(kill, reference, Path(folder) / "trial")
            same += right
            what = {"all": "DVC and stage", "dvc": "DVC alone", "stage": "the stage alone"}[kill.victim]
            verdict = f"same bytes, {told}" if right else f"NOT the same: {told}"
            click.echo(f"{number:>3}  {kill.stage:<9}{kill.moment:<11}{kill.share:>4.0%}  {what:<16}{verdict}")
    click.echo(f"{same} of {kills} ended in the same bytes")
    sys.exit(same < kills)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.soak")
