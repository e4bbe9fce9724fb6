"""The bucket on this machine: it starts, points the clone at itself, and leaves everything as it was."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
from click.testing import CliRunner

from petals import bucket
from petals.errors import PetalsError

COMMITTED = "[core]\n    remote = gcs\n['remote \"gcs\"']\n    url = gs://team.example/dvc\n"


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind((bucket.HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """An empty repository to start the bucket in; it is stopped afterwards whatever happens."""
    for variable, value in {"GIT_CONFIG_GLOBAL": os.devnull, "DVC_GLOBAL_CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(variable, value)
    root = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text(COMMITTED)
    monkeypatch.chdir(root)
    yield root
    if (server := bucket._running()) is not None:
        psutil.Process(server["pid"]).kill()


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(bucket.main, arguments)
    return result.exit_code, result.output


def servers(root: Path) -> list[psutil.Process]:
    """What runs with files in `root`, whoever started it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(root) in word for word in process.info["cmdline"] or []):
            found.append(process)
    return found


def test_it_outlives_the_command_and_keeps_its_files(clone, port):
    start = [sys.executable, "-m", "petals.bucket", "start", f"--port={port}"]
    done = subprocess.run(
        start,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"gs://petals is at http://127.0.0.1:{port}")
    assert "export GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false" in done.stdout
    url = f"http://127.0.0.1:{port}"
    sent = requests.post(f"{url}/upload/storage/v1/b/petals/o?uploadType=media&name=a", data=b"rose", timeout=10)
    assert sent.ok
    assert command("stop")[0] == 0
    assert servers(clone) == []
    assert command("start", f"--port={port}")[0] == 0
    assert requests.get(f"{url}/download/storage/v1/b/petals/o/a?alt=media", timeout=10).content == b"rose"


def test_the_clone_is_pointed_at_it_and_back(clone, port):
    local = clone / ".dvc" / "config.local"
    mine = "[cache]\n    dir = /mine\n"
    local.write_text(mine)
    bucket.start(port)
    text = local.read_text()
    assert "remote = bucket\n" in text
    assert "url = gs://petals/dvc\n" in text
    assert f"endpointurl = http://127.0.0.1:{port}\n" in text
    bucket.stop()
    assert local.read_text() == mine
    assert (clone / ".dvc" / "config").read_text() == COMMITTED


def test_started_twice_and_stopped_twice_are_one_line_each(clone, port):
    assert command("start", f"--port={port}")[0] == 0
    assert command("start", f"--port={port + 1}") == (
        1,
        f"Error: the bucket is already at http://127.0.0.1:{port}; make bucket-stop ends it\n",
    )
    assert command("stop")[0] == 0
    assert command("stop") == (1, "Error: no bucket runs here; make bucket starts one\n")


def test_after_a_crash_it_can_be_stopped_or_started_again(clone, port):
    bucket.start(port)
    (server,) = servers(clone)
    server.kill()
    psutil.wait_procs([server], timeout=10)
    assert command("stop")[0] == 1
    assert (clone / ".dvc" / "config.local").read_text().strip() == ""
    bucket.start(port)
    assert len(servers(clone)) == 1


def test_a_number_that_now_is_another_programs_is_left_alone(clone, port):
    bucket.FOLDER.mkdir(parents=True)
    bucket.SERVER.write_text(f'{{"pid": {os.getpid()}, "port": {port}}}')
    with pytest.raises(PetalsError, match="no bucket runs here"):
        bucket.stop()


@pytest.mark.parametrize(
    "damaged", [b"", b'{"pid": 1', b"\xff\xfe", b"[]", b"{}", b'{"pid": "x"}', b'{"pid": 1%s}' % (b"0" * 40)]
)
def test_a_damaged_note_of_the_server_is_no_server(clone, port, damaged):
    bucket.start(port)
    (server,) = servers(clone)
    server.kill()
    psutil.wait_procs([server], timeout=10)
    bucket.SERVER.write_bytes(damaged)
    assert command("stop") == (1, "Error: no bucket runs here; make bucket starts one\n")
    assert (clone / ".dvc" / "config.local").read_text().strip() == ""
    bucket.SERVER.write_bytes(damaged)
    assert command("start", f"--port={port}")[0] == 0


@pytest.mark.parametrize("damaged", ['[\'remote "bucket"\n', "[core]\n    remotes = bucket\n"])
def test_damaged_settings_of_dvc_are_one_line_and_stay(clone, damaged):
    local = clone / ".dvc" / "config.local"
    local.write_text(damaged)
    for arguments in (["start"], ["stop"]):
        code, output = command(*arguments)
        assert (code, output.count("\n"), local.read_text()) == (1, 1, damaged)
        assert output.startswith("Error: .dvc/config.local, or else .dvc/config, is damaged; mend it first (config ")


def test_a_taken_port_is_one_line(clone):
    with socket.create_server((bucket.HOST, 0)) as other:
        port = other.getsockname()[1]
        assert command("start", f"--port={port}") == (
            1,
            f"Error: port {port} is taken; choose another: make bucket PORT={port + 1}\n",
        )
    assert not (clone / ".dvc" / "config.local").exists()


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 100"], ids=["ends", "hangs"])
def test_a_server_that_does_not_start_leaves_nothing(clone, port, monkeypatch, script):
    program = clone / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(bucket, "_binary", lambda: str(program))
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])
    with pytest.raises(PetalsError, match=r"the server does not start; see .*log"):
        bucket.launch(clone / "files", port, patience=0)
    assert started[0].poll() is not None


def test_where_it_cannot_work_it_says_so(clone, port, monkeypatch, tmp_path):
    (clone / ".dvc" / "config.local").write_text("[core]\n    remote = mine\n['remote \"mine\"']\n    url = /mine\n")
    with pytest.raises(PetalsError, match=r"config\.local names the remote mine; first: dvc config --local --unset"):
        bucket.start(port)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PetalsError, match=r"no \.dvc folder here"):
        bucket.start(port)
    monkeypatch.setattr(bucket.resources, "files", lambda name: tmp_path)
    with pytest.raises(PetalsError, match="fake-gcs-server is not installed for this system"):
        bucket.launch(clone / "files", port)
