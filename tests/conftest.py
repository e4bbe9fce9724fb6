"""What all tests share."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as stages/__init__.py does, before torch is loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs a process on each core

if trace := sys.gettrace():  # under line coverage, which would make the import of large libraries twice as long
    sys.settrace(None)
    for library in ("dvc.repo", "kornia.augmentation", "optuna", "scipy.stats", "sklearn.metrics", "torch"):
        importlib.import_module(library)
    sys.settrace(trace)

import numpy as np
import pytest
from hypothesis import settings

from petals.packed import Shards, create_shards, write_labels

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it that started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that others share stands still now and then; and what has passed passes again.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

REPOSITORY = Path(__file__).parents[1]
ORIGINAL = (REPOSITORY / "tests" / "params.yaml").read_text(encoding="utf-8")  # nobody's own settings break a test
LONGEST = (
    *("pipeline", "onnx_export", "experiments", "stages", "tune", "remote", "soak", "distributed", "interrupt"),
    *("serving", "docker", "verify", "models", "kaggle", "hosts", "serving_page", "sample", "report"),
    *("workflow_deployment", "following", "devices", "seeds", "drift", "lockgate", "bench"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left with one of them while the others idle.

    Slow tests are left out of line coverage, which would make them half as slow again: the quick ones cover the lines.
    """
    order = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Nor what is made for slow tests alone: `no_cover` goes for the call of a test, and not for its fixtures."""
    coverage = getattr(item.config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    if coverage is None or not item.get_closest_marker("no_cover"):
        return (yield)
    coverage.pause()
    try:
        return (yield)
    finally:
        coverage.resume()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the checkout; the test is skipped where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real photographs beside this checkout")
    return folder


@pytest.fixture(scope="session")
def untraced_exporter() -> Iterator[None]:
    """Leave torch's exporter out of line coverage, which makes it half as slow again and counts nothing of it."""
    import torch

    export = torch.onnx.export

    def untraced(*arguments: object, **options: object) -> object:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return export(*arguments, **options)
        finally:
            sys.settrace(trace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", untraced)
        yield


@pytest.fixture
def make_split() -> Callable[..., Path]:
    """A function that packs uint8 N × S × S × 3 images into a folder: `make_split(folder, images, labels)`."""

    def make(folder: Path, images: np.ndarray, labels: list[int], classes: str = "abcdefgh", **layout: int) -> Path:
        folder.mkdir(parents=True)
        create_shards(folder, len(images), images.shape[1], **layout)
        Shards(folder, mode="r+").write(0, images)
        ids = [f"{folder.name}-{number}" for number in range(len(images))]
        write_labels(folder, labels, ids, classes=list(classes), image_size=images.shape[1], split=folder.name)
        return folder

    return make


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs Python with a disk of 256 KiB mounted at `tmp_path`/disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=256k tmpfs '{disk}'"
    try:
        subprocess.run([*alone, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk of its own cannot be mounted here")

    def run(*arguments: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [*alone, f"""{mount} && cd '{disk}' && exec "$0" "$@\"""", sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Put a program on PATH that answers `answer` and appends its arguments to the list in a file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, answer: dict[str, bytes] | bytes = b"") -> Path:
        """`answer` is all it says, or what it says where a text is among its arguments."""
        answers = answer if isinstance(answer, dict) else {"": answer}
        calls = tmp_path / f"{name}.calls"
        (folder / name).write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"open({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
            f"said = [answer for text, answer in {answers!r}.items() if text in ' '.join(sys.argv)]\n"
            "sys.stdout.buffer.write(said[0]) if said else sys.exit(1)\n"
        )
        (folder / name).chmod(0o755)
        return calls

    return make


def calls(path: Path) -> list[list[str]]:
    """The arguments of each call of a program that `stand_in` has made."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A params.yaml that a test may spoil."""
    path = tmp_path / "params.yaml"
    path.write_text(ORIGINAL, encoding="utf-8")
    return path


def with_line(key: str, value: str) -> str:
    """The text of that params.yaml with `key` set to `value`, whatever that is."""
    lines = [line for line in ORIGINAL.splitlines() if not line.startswith(f"{key}:")]
    return "\n".join([*lines, f"{key}: {value}", ""])
