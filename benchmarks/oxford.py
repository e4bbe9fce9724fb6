"""Time to a good classifier of the Oxford flowers: the pipeline against fine-tuning the usual way."""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.lab import REPOSITORY, command, environment, put_params, run_stage
from benchmarks.overhead import end
from benchmarks.pairs import Row
from petals.errors import PetalsError
from petals.params import read_mapping
from petals.tfrecord import decode_example, read_records

DATA = Path("data/oxford17")
PIXELS, GOAL = 160, 0.93
PATIENCE = 2.5  # times what the pipeline took; who is not there by then is cut off


def unpacked(folder: Path) -> Path:
    """The photographs as `folder`/{train,val}/CLASS/ID.jpg, as the usual way has them."""
    for split in ("train", "val"):
        for path in (REPOSITORY / DATA / "tfrecords-jpeg-192x192" / split).glob("*.tfrec"):
            for _, payload in read_records(path):
                example = decode_example(payload)
                file = folder / split / f"{example['class'][0]:03}" / f"{example['id'][0].decode()}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(example["image"][0])
        if not (folder / split).is_dir():
            raise PetalsError(
                f"{DATA}: no image in tfrecords-jpeg-192x192/{split}/*.tfrec, the layout of the competition"
            )
    return folder


@dataclass
class Way:
    """How long a way took: the seconds until the goal, or without it, those until its end or until it was cut off."""

    seconds: float
    last: str  # the last epoch that it told of
    end: Literal["good", "cut off", "ended below"]


def until_good(line: list[str], folder: Path, goal: float, patience: float) -> Way:
    """Run `python -m line` until it prints a macro F1 of `goal`, or an epoch ends after more than `patience` seconds.

    Raises RuntimeError where it fails.
    """
    began, spent, last = time.perf_counter(), 0.0, "no epoch"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", *line], cwd=folder, env=environment(), stdin=pipe, stdout=pipe, text=True
    )
    try:
        for said in process.stdout:
            if found := re.search(r"(epoch \d+)/\d+:.*val macro F1 ([\d.]+)", said):
                last, spent = f"{found[2]} after {found[1]}", time.perf_counter() - began
                if float(found[2]) >= goal:
                    return Way(spent, last, "good")
                if spent > patience:
                    return Way(spent, last, "cut off")
        if code := process.wait():
            raise RuntimeError(f"{line[0]} failed with exit code {code}, its last: {last}")
        return Way(spent, last, "ended below")
    finally:
        end(process)
        process.stdin.close()
        process.stdout.close()


def measure(scratch: Path, goal: float = GOAL, **settings: object) -> Row | str:
    """Seconds from photographs to a macro F1 of `goal` on val; why not, where the photographs are not there."""
    if not (REPOSITORY / DATA).is_dir():
        return f"{DATA} is not there"
    try:
        photographs = unpacked(scratch / "photographs")
    except PetalsError as error:
        return str(error)
    folder = scratch / "oxford"
    (folder / "data" / "weights").mkdir(parents=True)
    (folder / "data" / "weights" / "true").touch()
    put_params(folder, {"image_size": PIXELS} | settings)
    began = time.perf_counter()
    run_stage("prepare", folder, REPOSITORY / DATA)
    run_stage("augment", folder)
    rendered = time.perf_counter() - began
    ours = until_good(["stages.train", *command("train")], folder, goal, float("inf"))
    if ours.end != "good":
        raise RuntimeError(f"the pipeline did not reach {goal} on {DATA}: {ours.last}")
    mine = rendered + ours.seconds
    threads = read_mapping(folder / "params.yaml")["threads"]
    usual = ["benchmarks.usual", str(photographs), "--size", str(PIXELS), "--threads", str(threads)]
    return row(goal, mine, ours, until_good(usual, folder, goal, PATIENCE * mine))


def row(goal: float, mine: float, ours: Way, usual: Way) -> Row:
    """A ratio where the usual way came to the goal or was cut off, which it had then more time for; else only ours."""
    what = f"seconds to macro F1 {goal} on the Oxford flowers, from photographs on"
    note = f"ours {ours.last}, the usual way {usual.last}"
    if usual.end == "ended below":
        note += f", where it ended after {usual.seconds:.0f} s, below the goal: there is no ratio"
        return Row(what, "", "", "s", [mine], mine, None, note)
    limit = "fine-tuning the usual way (`benchmarks/usual.py`)"
    if usual.end == "cut off":
        note += f", cut off after {PATIENCE:g} times as long, so that this is the most it can be"
        return Row(what, limit, "<= 0.5", "s", [1 / PATIENCE], mine, None, note)
    return Row(what, limit, "<= 0.5", "s", [mine / usual.seconds], mine, usual.seconds, note)
