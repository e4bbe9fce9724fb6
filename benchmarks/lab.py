"""What the measurements work on: photographs, packed splits, and a repository in which the pipeline has run."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.workspace import REPOSITORY, make_workspace, put_params
from petals.files import STATE, replacing
from petals.flowers import SPLIT_SIZES
from petals.isolation import dvc, isolate
from petals.packed import PackedSplit, Shards, create_shards, write_labels
from petals.parallel import in_order
from petals.params import read_mapping
from petals.sample.picture import jpeg, photograph
from petals.seeding import seed_for
from petals.tfrecord import encode_example, write_records

KEPT = REPOSITORY / STATE / "bench"  # what takes long to make and never changes
PHOTOGRAPH_PX, POOL = 512, 208
QUICK = {"epochs": "1", "min_steps": "0", "robustness": "0", "views": "1"}


def environment() -> dict[str, str]:
    """To run a stage of this working tree from another folder."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def run_stage(stage: str, folder: Path, data: str | Path = REPOSITORY / "data" / "sample") -> None:
    """Run one stage of this working tree in `folder`; raises RuntimeError with what it said where it fails."""
    line = [sys.executable, "-m", f"stages.{stage}", *command(stage, data)]
    done = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"stages.{stage} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def command(stage: str, data: str | Path = REPOSITORY / "data" / "sample") -> list[str]:
    """The arguments that dvc.yaml gives `stage`, whose raw photographs are in `data`."""
    text = read_mapping(REPOSITORY / "dvc.yaml")["stages"][stage]["cmd"]
    arguments = text.partition(f"stages.{stage} ")[2].replace("${data}", str(data)).replace("${pretrained}", "true")
    return shlex.split(arguments)


def pipeline_folder(folder: Path, stages: tuple[str, ...], **settings: object) -> Path:
    """Run the first `stages` of the pipeline on data/sample in `folder`, without DVC."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    shutil.copytree(REPOSITORY / "data" / "weights", folder / "data" / "weights", dirs_exist_ok=True)
    put_params(folder, settings)
    for stage in stages:
        run_stage(stage, folder)
    return folder


def repository(folder: Path, **settings: str) -> tuple[Path, dict[str, str]]:
    """A copy of this working tree in which `dvc repro` has run, cheaply; and the environment to run DVC in it."""
    root = folder / "repository"
    fresh = not root.exists()
    if fresh:
        make_workspace(root, QUICK | settings)
    variables = isolate(root)
    if fresh:
        done = dvc(root, variables, "repro", capture_output=True)
        if done.returncode:
            shutil.rmtree(root)
            raise RuntimeError(f"dvc repro failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return root, variables


def repeated(split: Path, count: int, folder: Path) -> Path:
    """Pack `count` images into `folder`: those of `split` over and over, under names of their own."""
    source = PackedSplit(split)
    folder.mkdir(parents=True)
    create_shards(folder, count, source.image_size)
    shards = Shards(folder, mode="r+")
    for start in range(0, count, 256):
        rows = np.arange(start, min(start + 256, count)) % len(source)
        shards.write(start, source.images.read(rows))
    ids = [f"{number:09x}" for number in range(count)]
    labels = source.labels[np.arange(count) % len(source)]
    write_labels(folder, labels, ids, classes=source.classes, image_size=source.image_size, split=split.name)
    return folder


def photographs(share: float = 1.0) -> Path:
    """As many photographs as the competition has (times `share`), 512 px, in its layout; made once and kept.

    Each is a mosaic of four rendered flowers of 256 px, so that no two are alike and they are made in seconds.
    """
    out = KEPT / f"photographs-{PHOTOGRAPH_PX}-{share:g}"
    if out.exists():
        return out
    with replacing(out) as partial:
        tasks, square = [], f"{PHOTOGRAPH_PX}x{PHOTOGRAPH_PX}"
        for split, full in SPLIT_SIZES.items():
            ends = [round(full * share) * number // 16 for number in range(17)]
            folder = partial / f"tfrecords-jpeg-{square}" / split
            folder.mkdir(parents=True)
            tasks += [
                (folder / f"{number:02}-{square}-{ends[number + 1] - ends[number]}.tfrec", split, ends[number])
                for number in range(16)
            ]
        pool = [each for part in in_order(_pool, [range(0, POOL, 2), range(1, POOL, 2)]) for each in part]
        np.save(partial / "pool.npy", np.stack(pool))
        list(in_order(_write_mosaics, [(partial / "pool.npy", *task) for task in tasks]))
        (partial / "pool.npy").unlink()
    return out


def _pool(labels: range) -> list[np.ndarray]:
    return [photograph(label % 104, PHOTOGRAPH_PX // 2, seed_for("bench", label)) for label in labels]


def _write_mosaics(task: tuple[Path, Path, str, int]) -> None:
    pool_path, path, split, start = task
    pool, chance = np.load(pool_path), np.random.default_rng(seed_for("mosaic", split, start))

    def example(index: int) -> bytes:
        a, b, c, d = pool[chance.integers(0, len(pool), 4)]
        image = np.vstack([np.hstack([a, b]), np.hstack([c, d])])
        features: dict[str, bytes | int] = {"image": jpeg(image, 85), "id": f"{split}-{index}".encode()}
        return encode_example(features if split == "test" else features | {"class": index % 104})

    count = int(path.stem.rpartition("-")[2])
    write_records(path, (example(index) for index in range(start, start + count)))
