"""A picture of where a stage spends its time: `make profile STAGE=train`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.lab import command, environment, pipeline_folder
from benchmarks.workspace import REPOSITORY
from petals import params
from petals.commands import Command
from petals.files import STATE

STAGES = tuple(params.STAGES)


@click.command(cls=Command)
@click.argument("stage", type=click.Choice(STAGES), default="train")
@click.option("--rate", default=100, show_default=True, help="Samples a second.")
def main(stage: str, rate: int) -> None:
    """Run STAGE on the sample under py-spy, and write .petals/profile-STAGE.svg: open it in a browser.

    It is a flame graph: the wider a function, the longer it was at work, its callers above it; a click enlarges.
    Workers are in it too. What a stage needs is made by the ones before, with one epoch of training.
    """
    picture = REPOSITORY / STATE / f"profile-{stage}.svg"
    picture.parent.mkdir(exist_ok=True)
    before = STAGES[: STAGES.index(stage)]
    with tempfile.TemporaryDirectory(prefix="petals-profile-") as scratch:
        folder = pipeline_folder(Path(scratch) / stage, before, epochs=1, min_steps=0, robustness=1)
        sampler = [Path(sys.executable).with_name("py-spy"), "record", "--output", picture, "--rate", str(rate)]
        line = [*sampler, "--subprocesses", "--", sys.executable, "-m", f"stages.{stage}", *command(stage)]
        done = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode or not picture.is_file():
        said = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        raise click.ClickException(f"py-spy: {said[-1]}; it needs the right to look at processes (ptrace)")
    click.echo(f"{os.path.relpath(picture)}: open it in a browser")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.profiling")
