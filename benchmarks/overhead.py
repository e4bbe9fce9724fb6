"""What surrounds the work: `dvc repro` with nothing to do, and the way to the first training step."""

import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.lab import QUICK, REPOSITORY, put_params, repository
from benchmarks.pairs import Row, alternate, ratios
from petals.isolation import dvc, isolate

TRIVIAL = """stages:
  nothing:
    cmd: echo done > done
    outs: [done]
"""


def seconds_of_repro(root: Path, variables: dict[str, str]) -> float:
    began = time.perf_counter()
    done = dvc(root, variables, "repro", capture_output=True)
    spent = time.perf_counter() - began
    if done.returncode or "up to date" not in done.stdout:
        raise RuntimeError(f"dvc repro in {root}:\n{(done.stdout + done.stderr)[-2000:]}")
    return spent


def trivial(root: Path) -> tuple[Path, dict[str, str]]:
    """A repository of one trivial stage, which has run."""
    root.mkdir()
    (root / "dvc.yaml").write_text(TRIVIAL, encoding="utf-8")
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=root, check=True)
    variables = isolate(root)
    dvc(root, variables, "repro", capture_output=True)
    return root, variables


def measure_nothing(scratch: Path, pairs: int = 5, **settings: str) -> Row:
    """`dvc repro` where all is up to date."""
    ours, other = repository(scratch, **settings), trivial(scratch / "trivial")
    seconds_of_repro(*ours), seconds_of_repro(*other)
    mine, limit = alternate(lambda: seconds_of_repro(*ours), lambda: seconds_of_repro(*other), pairs)
    return Row(
        "`dvc repro` with nothing to do, seconds", "the same on a repository with one trivial stage",
        "<= 1.2", "s", ratios(mine, limit), statistics.median(mine), statistics.median(limit),
    )  # fmt: skip


def measure_first_step(scratch: Path, times: int = 3, **settings: str) -> Row:
    """From `dvc repro train`, where only train is out of date, to the end of its first step, less torch's import."""
    root, variables = repository(scratch, **settings)
    note = scratch / "first-step"
    watched = [str(REPOSITORY / "benchmarks" / "startup"), variables.get("PYTHONPATH", "")]
    variables = variables | {"FIRST_STEP": str(note), "PYTHONPATH": os.pathsep.join(filter(None, watched))}
    spent, imports = [], []
    for seed in range(times):
        put_params(root, QUICK | settings | {"lr": 7e-4 + seed * 1e-4})
        began = time.time()
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", "train"]
        process = subprocess.Popen(
            command, cwd=root, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        while not note.exists() and process.poll() is None:
            time.sleep(0.02)
        end(process)
        put_params(root, QUICK | settings)
        if not note.exists():
            raise RuntimeError("dvc repro ended before the first step")
        at, imported = map(float, note.read_text(encoding="utf-8").split())
        note.unlink()
        spent.append(at - began - imported)
        imports.append(imported)
    return Row(
        "from `dvc repro` to the first training step, less torch's import, seconds", "", "", "s", spent,
        statistics.median(spent), note=f"torch's import {statistics.median(imports):.2g} s",
    )  # fmt: skip


def end(process: subprocess.Popen) -> None:
    """Kill DVC and the stage that it runs."""
    if process.poll() is None:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):  # it ended with its parent
                each.kill()
    process.wait()
