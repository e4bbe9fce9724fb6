"""train on two hosts, each in a network namespace with its own address, until the wire between them is cut."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import TRAIN, knobs, prepare_data, said, start, torchrun

from benchmarks.overhead import end

pytestmark = pytest.mark.slow
PATIENCE = 15  # seconds that a host waits for the other, on a machine that may stand still for some


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces with a wire between them: 10.77.0.1 on `wire0` and 10.77.0.2 on `wire1`."""
    names = [f"petals-{os.getpid()}-{number}" for number in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "wire0", "type", "veth", "peer", "name", "wire1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", f"wire{number}")
            for link in ("lo", f"wire{number}"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces cannot be made here")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_a_host_that_is_cut_off_ends_the_run_and_the_next_goes_on(tmp_path: Path, hosts: list[str], monkeypatch):
    monkeypatch.chdir(tmp_path)
    knobs(epochs=1000, batch_size=2)  # many steps, of which the wire is cut in one
    prepare_data()
    other = tmp_path / "other"  # the other host has its own folder, with the same data and settings
    other.mkdir()
    for name in ("params.yaml", "data"):
        (other / name).symlink_to(tmp_path / name)

    runs = []
    for number, (name, folder) in enumerate(zip(hosts, (tmp_path, other), strict=True)):
        here = {"PET_NNODES": "2", "PET_NODE_RANK": str(number), "PET_NPROC_PER_NODE": "1"}
        there = {"PET_MASTER_ADDR": "10.77.0.1", "PET_MASTER_PORT": "29500"}
        wire = {"GLOO_SOCKET_IFNAME": f"wire{number}", "PETALS_TIMEOUT": str(PATIENCE)}
        command = ["ip", "netns", "exec", name, *torchrun("-m", "stages.train"), *TRAIN]
        runs.append(start(command, folder, **here, **there, **wire))
    try:
        assert runs[0].stdout.readline().startswith("epoch 1/1000")
        ip("-n", hosts[0], "link", "set", "wire0", "down")
        for run in runs:
            errors = run.communicate(timeout=20 * PATIENCE)[1]
            assert run.returncode == 1
            assert len(said(errors)) == 1, errors
            (line,) = said(errors)
            assert line.startswith("Error: another process of this run") and "was lost" in line
    finally:
        for run in runs:
            end(run)
            run.communicate()
    # That one process goes on from such a checkpoint, tests/test_distributed.py shows.
    assert [len(list((each / ".petals").glob("train-*.safetensors"))) for each in (tmp_path, other)] == [1, 0]
