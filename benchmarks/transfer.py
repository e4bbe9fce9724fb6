"""The data set through a bucket on this machine: packed, and with one file an image."""

import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.lab import REPOSITORY, pipeline_folder
from benchmarks.pairs import Row, alternate, ratios
from petals import bucket
from petals.files import remove
from petals.isolation import dvc, isolate
from petals.remote import ENVIRONMENT
from petals.tfrecord import decode_example, read_records


def one_file_an_image(folder: Path) -> Path:
    """The photographs of data/sample as JPEG files."""
    folder.mkdir(parents=True)
    for path in (REPOSITORY / "data" / "sample").rglob("*.tfrec"):
        for _, payload in read_records(path):
            example = decode_example(payload)
            (folder / f"{example['id'][0].decode()}.jpg").write_bytes(example["image"][0])
    return folder


def clone(root: Path, port: int, data: Path, copies: int) -> tuple[Path, dict[str, str]]:
    """A repository with `copies` of `data`, and for each a remote in the bucket, which has nothing of it yet."""
    root.mkdir()
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=root, check=True)
    variables = isolate(root) | ENVIRONMENT
    with (root / ".dvc" / "config.local").open("a", encoding="utf-8") as config:
        for number in range(copies):
            config.write(
                f"['remote \"data{number}\"']\n    url = gs://{bucket.BUCKET}/{root.name}/{number}\n"
                f"    endpointurl = http://{bucket.HOST}:{port}\n    allow_anonymous_login = true\n    verify = true\n"
            )
    for number in range(copies):
        shutil.copytree(data, root / f"data{number}")
    return root, variables


def there_and_back(root: Path, variables: dict[str, str], number: int) -> float:
    """Seconds that push and pull of the folder data`number` take."""
    name = f"data{number}"
    run(root, variables, "add", name)
    began = time.perf_counter()
    run(root, variables, "push", "--remote", name, name)
    spent = time.perf_counter() - began
    remove(root / ".dvc" / "cache")
    remove(root / name)
    began = time.perf_counter()
    run(root, variables, "pull", "--remote", name, name)
    return spent + time.perf_counter() - began


def run(root: Path, variables: dict[str, str], *arguments: str) -> None:
    done = dvc(root, variables, *arguments, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(arguments)}:\n{(done.stdout + done.stderr)[-2000:]}")


def measure(scratch: Path, pairs: int = 3, **settings: object) -> Row:
    """Push and pull data/prepared of the sample, at the 96 px that its photographs have, and these as JPEG files."""
    packed = pipeline_folder(scratch / "packed", ("prepare",), **{"image_size": 96} | settings) / "data" / "prepared"
    single = one_file_an_image(scratch / "single")
    count = len(list(single.iterdir()))
    with socket.socket() as probe:
        probe.bind((bucket.HOST, 0))
        port = probe.getsockname()[1]
    server = bucket.launch(scratch / "bucket" / "files", port)
    try:
        mine, theirs = (
            clone(scratch / name, port, data, pairs)
            for name, data in (("packed-clone", packed), ("single-clone", single))
        )
        turns = [iter(range(pairs)), iter(range(pairs))]
        ours, limit = alternate(
            lambda: there_and_back(*mine, next(turns[0])), lambda: there_and_back(*theirs, next(turns[1])), pairs
        )
    finally:
        server.terminate()
        server.wait()
    return Row(
        "push and pull of the data set through a bucket: times faster", "the same images as one file each",
        ">= 5", "s", ratios(limit, ours), statistics.median(ours), statistics.median(limit), f"{count} images of 96 px",
    )  # fmt: skip
