"""Time to a good classifier of the Oxford flowers: the pipeline against fine-tuning the usual way."""

import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.lab import REPOSITORY, command, environment, put_params, run_stage
from benchmarks.overhead import end
from benchmarks.pairs import Row
from petals.params import read_mapping
from petals.tfrecord import decode_example, read_records

DATA = Path("data/oxford17")
PIXELS, GOAL = 160, 0.93
PATIENCE = 3.0  # times what the pipeline took; who is not there by then is cut off


def unpacked(folder: Path) -> Path:
    """The photographs as `folder`/{train,val}/CLASS/ID.jpg, as the usual way has them."""
    for split in ("train", "val"):
        for path in (REPOSITORY / DATA / "tfrecords-jpeg-192x192" / split).glob("*.tfrec"):
            for _, payload in read_records(path):
                example = decode_example(payload)
                file = folder / split / f"{example['class'][0]:03}" / f"{example['id'][0].decode()}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(example["image"][0])
    return folder


def until_good(line: list[str], folder: Path, goal: float, patience: float) -> tuple[float | None, str]:
    """Seconds until `python -m line` prints a macro F1 of `goal`, None where it ends or `patience` seconds pass before.

    And the last epoch that it told of.
    """
    began, last = time.perf_counter(), "no epoch"
    process = subprocess.Popen(
        [sys.executable, "-m", *line], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        for said in process.stdout:
            if found := re.search(r"(epoch \d+)/\d+:.*val macro F1 ([\d.]+)", said):
                last, spent = f"{found[2]} after {found[1]}", time.perf_counter() - began
                if float(found[2]) >= goal:
                    return spent, last
                if spent > patience:
                    return None, last
        return None, last
    finally:
        end(process)
        process.stdout.close()


def measure(scratch: Path, goal: float = GOAL, **settings: object) -> Row | None:
    """Seconds from photographs to a macro F1 of `goal` on val; None where the photographs are not there."""
    if not (REPOSITORY / DATA).is_dir():
        return None
    folder, photographs = scratch / "oxford", unpacked(scratch / "photographs")
    (folder / "data" / "weights").mkdir(parents=True)
    (folder / "data" / "weights" / "true").touch()
    put_params(folder, {"image_size": PIXELS} | settings)
    began = time.perf_counter()
    run_stage("prepare", folder, REPOSITORY / DATA)
    run_stage("augment", folder)
    rendered = time.perf_counter() - began
    trained, ours = until_good(["stages.train", *command("train")], folder, goal, float("inf"))
    if trained is None:
        raise RuntimeError(f"the pipeline did not reach {goal} on {DATA}: {ours}")
    mine = rendered + trained
    threads = read_mapping(folder / "params.yaml")["threads"]
    line = ["benchmarks.usual", str(photographs), "--size", str(PIXELS), "--threads", str(threads)]
    usual, theirs = until_good(line, folder, goal, PATIENCE * mine)
    note = f"ours {ours}, the usual way {theirs}" + ("" if usual else f", cut off after {PATIENCE:g} times as long")
    usual = usual or PATIENCE * mine
    return Row(
        "oxford", f"seconds to macro F1 {goal} on the Oxford flowers, from photographs on",
        "fine-tuning the usual way (`benchmarks/usual.py`)", "<= 0.5", "s", [mine / usual], mine, usual, note,
    )  # fmt: skip
