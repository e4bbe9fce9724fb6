"""What make says and does before anything is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


def interpreter(folder: Path, fails_at: str) -> str:
    """A stand-in for Python that fails where its arguments hold `fails_at`, and else does nothing."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{fails_at}*) exit 1 ;; esac\n')
    path.chmod(0o755)
    return f"PYTHON={path}"


def test_make_alone_lists_the_targets(folder):
    listed = make(folder).stdout
    assert all(f"make {target} " in listed for target in ("repro", "test", "lint", "help"))
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize(
    ("fails_at", "says"),
    [("version_info", "petals needs Python 3.11 to 3.14"), ("ensurepip", "has no venv module: install it")],
)
def test_a_python_that_will_not_do_is_one_line(folder, fails_at, says):
    done = make(folder, "repro", interpreter(folder, fails_at))
    assert done.returncode and not (folder / ".venv").exists()
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1 and says in lines[0]


def test_what_is_installed_is_not_installed_again(folder):
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".installed").touch()
    assert "pip install" not in make(folder, "-n", "repro").stdout
    os.utime(folder / ".venv" / ".installed", (0, 0))
    assert "pip install" in make(folder, "-n", "repro").stdout
