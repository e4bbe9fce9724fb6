"""What make says and does before anything is installed."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True)


def git(folder: Path, *arguments: str) -> str:
    """What git says, which takes a file of the same size and time for unchanged."""
    settings = ("core.checkStat=minimal", "core.trustctime=false", "user.name=a", "user.email=a@example.org")
    options = [part for each in settings for part in ("-c", each)]
    return subprocess.check_output(["git", *options, *arguments], cwd=folder, text=True).rstrip()


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


def test_serve_names_the_commit_where_its_model_is_served_and_nowhere_else(folder, monkeypatch):
    monkeypatch.delenv("PETALS_REVISION", raising=False)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo "of <$PETALS_REVISION>" || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / ".venv" / ".installed").touch()
    (folder / "models").mkdir()
    (model := folder / "models" / "model.onnx").write_bytes(b"model")
    (folder / "dvc.lock").write_text(f"    md5: {hashlib.md5(b'model').hexdigest()}\n")

    def served() -> str:
        return make(folder, "--no-print-directory", "serve").stdout  # which a make above it has switched on

    git(folder, "init", "-q")
    git(folder, "add", "dvc.lock")
    git(folder, "commit", "-qm", "first")
    assert served() == f"of <{git(folder, 'rev-parse', 'HEAD')}>\n"
    with monkeypatch.context() as patch:
        patch.setenv("PETALS_MODEL", "other.onnx")
        assert served() == "of <>\n"
        patch.setenv("PETALS_REVISION", "mine")
        assert served() == "of <mine>\n"
    model.write_bytes(b"another commit's")
    assert served() == "of <>\n"
    model.write_bytes(b"model")
    (folder / "dvc.lock").write_text("changed since\n")
    assert served() == "of <>\n"
    git(folder, "checkout", "-q", "dvc.lock")
    model.unlink()
    done = make(folder, "--no-print-directory", "serve")
    assert (done.stdout, done.stderr) == ("of <>\n", ""), "to find no model is the service's to say"


def test_what_is_installed_is_not_installed_again(folder):
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".installed").touch()
    assert "pip install" not in make(folder, "-n", "repro").stdout
    os.utime(folder / ".venv" / ".installed", (0, 0))
    assert "pip install" in make(folder, "-n", "repro").stdout


def test_undo_brings_back_what_git_takes_for_unchanged(folder):
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/.installed").touch()
    (folder / ".venv/bin/dvc").write_text("#!/bin/sh\necho dvc $*\n")
    (folder / ".venv/bin/dvc").chmod(0o755)
    files = ["params.yaml", "dvc.lock", "machine.json", "metrics/evaluate.json", "plots/per_class.csv"]

    def write(content: str) -> None:
        for each in files:
            (folder / each).parent.mkdir(exist_ok=True)
            (folder / each).write_text(content)
            os.utime(folder / each, (10**9, 10**9))

    write("before")
    git(folder, "init", "-q")
    git(folder, "add", *files)
    git(folder, "commit", "-qm", "before")
    write("after!")
    (folder / "plots/per_class.csv").unlink()
    assert git(folder, "status", "--short", "--untracked-files=no") == " D plots/per_class.csv"
    (folder / "dvc.lock").write_text("of a run")
    git(folder, "add", "dvc.lock")  # as dvc repro does
    assert make(folder, "undo").stdout == "dvc checkout\n"
    assert [(folder / each).read_text() for each in files] == ["before"] * len(files)
    assert git(folder, "status", "--short", "--untracked-files=no") == ""
    git(folder, "rm", "-q", "machine.json")
    git(folder, "commit", "-qm", "none")
    (folder / ".venv/bin/dvc").write_text("#!/bin/sh\nexit 1\n")
    assert make(folder, "undo").stdout == "make repro makes again what the cache does not have\n"
