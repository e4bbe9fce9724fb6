"""Two machines, on this one: the second runs what the first one's torchrun runs, and no more."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from petals import following
from petals.errors import PetalsError

STAGE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
number = torch.ones(1)
dist.all_reduce(number)
print("{name}", int(number), flush=True)
dist.destroy_process_group()
"""
LAUNCH = f"{sys.executable} -m torch.distributed.run -m"
LEADER = f"""
import subprocess
from petals.following import announcing
with announcing(["stages.train", "stages.evaluate"]):
    for name in STAGES:
        subprocess.run(f"{LAUNCH} stages.{{name}}", shell=True, check=True)
"""
FOLLOWER = f"""
import subprocess
from petals.following import announced
for stage in announced():
    print("follows", stage, flush=True)
    subprocess.run(f"{LAUNCH} {{stage}}", shell=True, check=True)
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("stages", [["evaluate"], []])
def test_a_stage_that_the_first_machine_skips_is_skipped_by_all(tmp_path: Path, stages: list[str]):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    for name in ("train", "evaluate"):
        (tmp_path / "stages" / f"{name}.py").write_text(STAGE.replace("{name}", name))
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}", "PET_MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "PET_MASTER_PORT": str(free_port()), "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1",
    }  # fmt: skip
    programs = LEADER.replace("STAGES", repr(stages)), FOLLOWER
    machines = [
        subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment | {"PET_NODE_RANK": str(rank)},
                         stdout=subprocess.PIPE, text=True)
        for rank, program in enumerate(programs)
    ]  # fmt: skip
    try:
        said = [each.communicate(timeout=400)[0].splitlines() for each in machines]
    finally:
        for each in machines:
            each.kill()
    assert [each.returncode for each in machines] == [0, 0]
    assert said[0] == [f"{name} 2" for name in stages]
    assert said[1] == [line for name in stages for line in (f"follows stages.{name}", f"{name} 2")]


def test_a_first_machine_that_says_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PET_MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("PET_MASTER_PORT", str(free_port()))
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    with pytest.raises(
        PetalsError, match=r"^the first machine, at 127\.0\.0\.1:\d+, has begun no stage for 0 minutes$"
    ):
        list(following.announced())
    monkeypatch.delenv("PET_MASTER_ADDR")
    with pytest.raises(PetalsError, match=r"^PET_MASTER_ADDR and PET_MASTER_PORT should say"):
        following.connect()
