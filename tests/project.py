"""A copy of this repository to run in, with a data set so small that the pipeline takes seconds."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from conftest import ORIGINAL, REPOSITORY
from PIL import Image

from petals.tfrecord import encode_example, write_records

COLOURS = {"crocus": (120, 60, 190), "daisy": (240, 240, 230), "tulip": (200, 30, 40)}
SMALL = {
    "image_size": 40,  # as the pictures: else each worker of prepare imports torch to resize a dozen
    "views": 1,
    "epochs": 2,
    "min_steps": 0,
    "batch_size": 8,
    "robustness": 1,
    "threads": 1,
    "data": "data/tiny",
}


def environment(**more: str) -> dict[str, str]:
    """The environment of a user whose .venv is active, without their own git and DVC settings."""
    names = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.org"}
    names |= {"GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.org"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **names, **quiet, "PATH": path, **more}


def run(command: str, folder: Path, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in `folder`; a failure shows what it printed."""
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(**more), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stdout
    return done


def copy_project(folder: Path, **params: object) -> Path:
    """Copy the files of this checkout that git knows, or would add, and commit them with other `params`.

    What is somebody's own is left out, or as the project has it: data, weights, results, settings and bucket.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if name.startswith(("metrics/", "plots/", "docs/")) or name in ("dvc.lock", "machine.json"):
            continue
        if name.startswith("data/") and name not in ("data/.gitignore", "data/weights/true", "data/weights/false"):
            continue
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    values = {**yaml.safe_load(ORIGINAL), **SMALL, **params}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / ".dvc" / "config").write_text(dvc_config("gs://petals.example/dvc"))
    run("git init -q -b main && git add -A && git commit -qm project", folder)
    return folder


def dvc_config(url: str) -> str:
    """DVC's settings of this repository, with `url` for the remote's: people put their own bucket there."""
    return re.sub(r"(?<=url = )\S+", url, (REPOSITORY / ".dvc" / "config").read_text())


def picture(colour: tuple[int, int, int], number: int, size: int = 40) -> bytes:
    """A JPEG of a disc of `colour` on green, somewhere, with noise: easy to learn, no two alike."""
    random = np.random.default_rng([*colour, number])
    y, x = np.mgrid[:size, :size]
    centre, radius = random.uniform(0.3, 0.7, 2) * size, random.uniform(0.2, 0.4) * size
    inside = np.hypot(x - centre[0], y - centre[1]) < radius
    image = np.where(inside[..., None], colour, (40, 90, 40)) + random.normal(0, 12, (size, size, 3))
    out = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def tiny_records(root: Path, train: int = 8, val: int = 3, test: int = 4) -> None:
    """Write Kaggle's layout with `train` and `val` images of each of three kinds, and `test` in all.

    Those of train are in two files, so that prepare starts two workers, those of val and test in one.
    """
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    number = 0
    for split, each in (("train", train), ("val", val), ("test", -(-test // len(COLOURS)))):
        examples = []
        for _ in range(each):
            for label, colour in enumerate(COLOURS.values()):
                number += 1
                features = {"image": picture(colour, number), "id": f"{number:09x}".encode()}
                examples.append(encode_example(features | ({"class": label} if split != "test" else {})))
        examples = examples[:test] if split == "test" else examples
        folder = root / "tfrecords-jpeg-40x40" / split
        folder.mkdir(parents=True)
        half = len(examples) // 2
        for part, chunk in enumerate((examples[:half], examples[half:]) if split == "train" else (examples,)):
            write_records(folder / f"{part:02d}-40x40-{len(chunk)}.tfrec", chunk)


def tiny_folders(root: Path, each: int = 8) -> None:
    """Write one folder a class, with no split."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            (root / name / f"{name} {number}.jpg").write_bytes(picture(colour, 1000 + number))
