"""Time and memory of prepare, augment and train as the data set grows: `make bench-scale`."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import click
import psutil

from benchmarks.lab import KEPT, command, environment, put_params
from benchmarks.overhead import end
from benchmarks.workspace import REPOSITORY, commit
from petals.commands import Command
from petals.dataset import SPLITS
from petals.files import remove
from petals.machine import description
from petals.parallel import cores
from petals.sample.dataset import class_counts
from petals.sample.dataset import write as render
from petals.tables import write_json

PIXELS = 192
TOLERANCE, MOST_MIB = 0.15, 600
RUNS = {
    "prepare": [{}] * 3,  # of which the fastest counts: it takes seconds, and its disk has moods
    "augment": [{}],
    "train": [{}, {"finish": 1}],  # as it begins and as it ends, on larger images
}
TRAIN_SECONDS = 60  # of steady steps that its memory is watched for


@dataclass
class Run:
    """What a stage took for a set: seconds, and the most memory of its own that one of its processes had, in MiB."""

    stage: str
    share: float
    images: int
    seconds: float
    mib: float


def rendered(share: float) -> Path:
    """The rendered set of `share` times the competition's size, 192 px; made once and kept.

    The full one takes minutes. One that was broken off begins anew, but each size is kept by itself.
    """
    out = KEPT / f"rendered-{PIXELS}-{share:g}"
    if not out.exists():
        click.echo(f"rendering {images_of(share, SPLITS)} flowers, once", err=True)
        for _ in render(out, dict.fromkeys(SPLITS, share), PIXELS, 1):
            pass
    return out


def images_of(share: float, splits: tuple[str, ...]) -> int:
    return sum(sum(class_counts(split, share)) for split in splits)


class Memory:
    """Watches a process and its children: the most memory that one of them had for itself, in bytes.

    That is what is not a page of a mapped file, which the system takes back when it likes (RssAnon in proc(5)).
    """

    def __init__(self, pid: int) -> None:
        self.root, self.peak, self.done = psutil.Process(pid), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.done.wait(0.05):
            try:
                for each in [self.root, *self.root.children(recursive=True)]:
                    self.peak = max(self.peak, own_memory(each.pid))
            except psutil.Error:
                pass

    def stop(self) -> float:
        self.done.set()
        self.thread.join()
        return self.peak / 2**20


def own_memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended, or the system is not Linux
        return psutil.Process(pid).memory_full_info().uss
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def run(stage: str, data: Path, folder: Path, seconds: float | None = None) -> tuple[float, float]:
    """Run a stage, for `seconds` at most, and give its seconds and its peak of memory in MiB."""
    began = time.perf_counter()
    with (folder / "log").open("w") as log:
        line = [sys.executable, "-m", f"stages.{stage}", *command(stage, data)]
        process = subprocess.Popen(line, cwd=folder, env=environment(), stdout=log, stderr=log)
    memory = Memory(process.pid)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = 0
    finally:
        spent, mib = time.perf_counter() - began, memory.stop()
        end(process)
    if code:
        raise click.ClickException(f"stages.{stage} failed: {(folder / 'log').read_text()[-2000:]}")
    return spent, mib


def measure(share: float, stages: tuple[str, ...]) -> list[Run]:
    """Run prepare, augment and a minute of train, of its beginning and of its end, on the set of `share`."""
    data, folder = rendered(share), KEPT / "growth"
    remove(folder)
    (folder / "data").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "data" / "weights", folder / "data" / "weights")
    runs = []
    for stage, splits in (("prepare", SPLITS), ("augment", ("train",)), ("train", ("train",))):
        if stage in stages:
            took = []
            for settings in RUNS[stage]:
                put_params(folder, settings)
                os.sync()  # else what was written before goes to the disk in this run's time
                took.append(run(stage, data, folder, TRAIN_SECONDS if stage == "train" else None))
            spent, mib = min(seconds for seconds, _ in took), max(mib for _, mib in took)
            runs.append(Run(stage, share, images_of(share, splits), spent, mib))
            click.echo(f"{stage:<8}{runs[-1].images:>6} images {spent:7.1f} s {mib:6.0f} MiB", err=True)
    remove(folder)
    return runs


def verdicts(runs: list[Run]) -> list[str]:
    """A sentence a stage: how each further image costs, and how far memory grows, from the first to the last size."""
    said = []
    for stage in dict.fromkeys(run.stage for run in runs):
        own = sorted((run for run in runs if run.stage == stage), key=lambda run: run.images)
        peak, growth = max(run.mib for run in own), max(run.mib for run in own) / min(run.mib for run in own) - 1
        words = [f"memory {peak:.0f} MiB at most, {growth:+.0%} over the sizes"]
        good = growth <= TOLERANCE and peak <= MOST_MIB
        if stage != "train" and len(own) > 2:
            # What a start costs is the same for all sizes; linear is what comes on top of it.
            slopes = [(b.seconds - a.seconds) / (b.images - a.images) for a, b in pairwise(own)]
            bend = slopes[-1] / slopes[0] - 1
            words.insert(0, f"{1e3 * slopes[-1]:.2f} ms for each further image, {bend:+.0%} from the smaller sizes")
            good = good and abs(bend) <= TOLERANCE
        said.append(f"{stage}: {', '.join(words)}{'' if good else ' ✗'}")
    return said


def shares_of(context: click.Context, option: click.Parameter, text: str) -> list[float]:
    try:
        shares = sorted({float(each) for each in text.split(",")})
        if not all(0 < each <= 10 for each in shares):
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{text} should be numbers above 0, at most 10, with commas between") from None
    return shares


def stages_of(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    if unknown := [each for each in text.split(",") if each not in RUNS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(RUNS)}")
    return tuple(each for each in RUNS if each in text.split(","))


@click.command(cls=Command)
@click.option("--sizes", default="0.125,0.5,1", show_default=True, callback=shares_of,
              help="Of the competition's 23,847 images.")  # fmt: skip
@click.option("--stages", default=",".join(RUNS), show_default=True, callback=stages_of,
              help="Each needs those before it.")  # fmt: skip
def main(sizes: list[float], stages: tuple[str, ...]) -> None:
    """Run prepare, augment and minutes of train on rendered sets of 192 px, and print how time and memory grow.

    Sets are rendered once and kept in .petals/bench, as are the figures: a size that was measured by this machine for
    this version of the code is not measured again. Time is to be within 15 % of linear (its start aside), memory
    within 15 % of constant, and under 600 MiB a process: what a process has for itself, without mapped files.
    """
    code = commit()
    key = json.dumps([code, description(REPOSITORY), cores(), stages])
    kept = KEPT / "growth.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    runs: list[Run] = []
    for share in sizes:
        name = f"{share:g} {key}"
        if name not in known or code.endswith("+"):
            known[name] = [asdict(run) for run in measure(share, stages)]
            write_json(kept, known)
        runs += [Run(**each) for each in known[name]]
    click.echo("| stage | images | seconds | MiB |\n|---|---|---|---|")
    for run in sorted(runs, key=lambda run: (stages.index(run.stage), run.images)):
        click.echo(f"| {run.stage} | {run.images} | {run.seconds:.1f} | {run.mib:.0f} |")
    click.echo("\n".join(verdicts(runs)))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.growth")
