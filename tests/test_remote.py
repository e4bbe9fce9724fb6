"""Push and pull through the real server of Google Cloud Storage's interface, on this machine."""

import hashlib
import http.server
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml
from click.testing import CliRunner
from project import dvc_config
from proxy import Proxy  # the module beside this one

from petals import bucket, remote
from petals.errors import PetalsError
from petals.packed import SHARD_BYTES, create_shards, write_labels

REPOSITORY = Path(__file__).parents[1]
PIPELINE = """stages:
  prepare:
    cmd: "true"
    outs: [data/prepared]
  augment:
    cmd: "true"
    deps: [data/prepared]
    outs: [{data/augmented: {push: false}}]
  train:
    cmd: "true"
    deps: [data/prepared, data/augmented]
    outs: [model.bin]
artifacts:
  flowers: {path: model.bin, type: model}
"""
# gcsfs tries six times and waits between, half a minute in all; here only the waiting is left out.
AT_ONCE = """
import asyncio, sys, types
import gcsfs.retry
async def at_once(seconds): pass
gcsfs.retry.asyncio = types.SimpleNamespace(sleep=at_once)
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Storage:
    """The server on a port of its own, behind a proxy; its files survive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
            self.proxy = Proxy(self.port)  # which must not take the same
        self.url = f"http://127.0.0.1:{self.proxy.port}"
        self.start()

    def start(self) -> None:
        self.process = bucket.launch(self.folder / "files", self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def names(self) -> list[str]:
        names, page = [], None
        while page != "":
            query = {"pageToken": page} if page else {}
            answer = requests.get(f"http://127.0.0.1:{self.port}/storage/v1/b/petals/o", query, timeout=10).json()
            names += [item["name"] for item in answer.get("items", [])]
            page = answer.get("nextPageToken", "")
        return sorted(names)

    def read(self, name: str) -> bytes:
        where = f"http://127.0.0.1:{self.port}/download/storage/v1/b/petals/o/{name.replace('/', '%2F')}?alt=media"
        return requests.get(where, timeout=10).content

    def write(self, name: str, data: bytes) -> None:
        where = f"http://127.0.0.1:{self.port}/upload/storage/v1/b/petals/o"
        assert requests.post(where, data=data, params={"uploadType": "media", "name": name}, timeout=10).ok

    def delete(self, name: str) -> None:
        where = f"http://127.0.0.1:{self.port}/storage/v1/b/petals/o/{name.replace('/', '%2F')}"
        assert requests.delete(where, timeout=10).ok


@dataclass
class Clone:
    root: Path
    environment: dict[str, str]

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", AT_ONCE, *arguments]
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)

    def files(self) -> dict[str, bytes]:
        """What DVC keeps of this clone and pushes."""
        paths = [*(self.root / "data" / "prepared").rglob("*"), self.root / "model.bin"]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths if path.is_file()}

    def cache(self) -> Path:
        return self.root / ".dvc" / "cache" / "files" / "md5"

    def in_step(self) -> bool:
        done = self.dvc("status", "-c")
        return done.returncode == 0 and "are in sync" in done.stdout


@pytest.fixture
def storage(tmp_path) -> Iterator[Storage]:
    storage = Storage(tmp_path / "storage")
    yield storage
    storage.kill()
    storage.proxy.close()


def settings(folder: Path) -> dict[str, str]:
    """The environment of a user who keeps what DVC has outside of repositories in `folder`."""
    folders = {f"DVC_{name}": str(folder / name.lower()) for name in ("GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")}
    names = {f"GIT_{role}_NAME": "tester" for role in ("AUTHOR", "COMMITTER")}
    names |= {f"GIT_{role}_EMAIL": "tester@example.org" for role in ("AUTHOR", "COMMITTER")}
    more = {"DVC_SITE_CACHE_DIR": str(folder / "site_cache_dir"), "GIT_CONFIG_GLOBAL": os.devnull}
    return folders | names | more | {"DVC_NO_ANALYTICS": "1"} | remote.ENVIRONMENT


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A repository that has run the pipeline, with 12 files of 100 kB; it knows no server."""
    root = tmp_path_factory.mktemp("ran") / "clone"
    for folder, count in (("data/prepared", 12), ("data/augmented", 2)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.npy").write_bytes(random.Random(f"{folder}{number}").randbytes(100_000))
    (root / "model.bin").write_bytes(b"weights")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text(dvc_config("gs://petals/dvc"))
    (root / ".gitignore").write_text("/data/\n/model.bin\n/.dvc/cache\n/.dvc/tmp\n/.dvc/config.local\n")
    environment = os.environ | settings(root.parent)
    subprocess.run(["git", "init", "-q", "."], cwd=root, env=environment, check=True)
    assert Clone(root, environment).dvc("commit", "-q", "--force").returncode == 0
    subprocess.run(["git", "add", "-A"], cwd=root, env=environment, check=True)
    subprocess.run(["git", "commit", "-q", "-m", "run"], cwd=root, env=environment, check=True)
    return root


@pytest.fixture
def first(ran, tmp_path, environment, storage) -> Clone:
    """A clone of its own that has run the pipeline; nothing is pushed yet."""
    clone = Clone(tmp_path / "first", environment)
    shutil.copytree(ran, clone.root, symlinks=True)
    point(clone, storage.url)
    return clone


@pytest.fixture
def second(tmp_path, first, storage) -> Clone:
    """A fresh clone of it, with nothing pulled."""
    root = tmp_path / "second"
    subprocess.run(["git", "clone", "-q", first.root, root], env=first.environment, check=True)
    clone = Clone(root, first.environment)
    point(clone, storage.url)
    return clone


def point(clone: Clone, url: str) -> None:
    text = f"['remote \"gcs\"']\n    endpointurl = {url}\n    allow_anonymous_login = true\n"
    (clone.root / ".dvc" / "config.local").write_text(text)


def test_a_push_from_one_clone_is_pulled_in_another(first, second, storage, capfd):
    remote.push(first.root)
    assert first.in_step()
    names = [name.removeprefix("dvc/files/md5/").replace("/", "") for name in storage.names()]
    assert len(names) == 12 + 1 + 1
    assert {name for name in names if name.endswith(".dir")} == {prepared_list(first)}
    assert remote.pull(second.root) == ["data/prepared", "model.bin"]
    assert second.files() == first.files()
    assert second.in_step()
    assert not (second.root / "data" / "augmented").exists()
    assert "ERROR" not in capfd.readouterr().err
    # What is pushed is enough to go on: only what was never pushed is made again.
    assert second.dvc("repro", "--pull", "--allow-missing", "--dry").stdout.count("skipping") == 3


def test_a_push_deletes_and_overwrites_nothing(first, storage):
    """A machine's account has no right to either: docs/gcp.md."""

    def written() -> dict[str, str]:
        found = requests.get(f"http://127.0.0.1:{storage.port}/storage/v1/b/petals/o", timeout=10).json()["items"]
        return {each["name"]: each["generation"] for each in found}

    storage.write("dvc/files/md5/access-1", b"may I?")  # left of a check
    deleted: list[bool] = []
    storage.proxy.doom(rb"DELETE ", 1, lambda: deleted.append(True))
    assert first.dvc("push").returncode == 0
    before = written()
    (first.root / "model.bin").write_bytes(random.Random(1).randbytes(6_000_000))  # which goes in chunks
    assert first.dvc("commit", "--force", "train").returncode == first.dvc("push").returncode == 0
    after = written()
    assert len(after) == len(before) + 1 and before.items() <= after.items() and not deleted
    assert first.in_step()


@pytest.mark.parametrize("lost", ["everything", "one file"])
def test_a_push_of_what_is_neither_here_nor_in_the_remote_is_one_line(first, second, storage, monkeypatch, lost):
    """DVC alone warns and calls it a success."""
    clone, missing = (second, "data/prepared, model.bin") if lost == "everything" else (first, "data/prepared")
    if lost == "one file":
        digest = hashlib.md5((first.root / "data" / "prepared" / "3.npy").read_bytes()).hexdigest()
        (first.cache() / digest[:2] / digest[2:]).unlink()
    assert clone.dvc("push").returncode == 0
    monkeypatch.chdir(clone.root)
    result = CliRunner().invoke(remote.main, ["push"])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: not whole here and not in the remote: {missing}; run dvc repro")
    assert result.output.count("\n") == 1


def prepared_list(clone: Clone) -> str:
    """The hash of the list of data/prepared."""
    lock = yaml.safe_load((clone.root / "dvc.lock").read_text())
    return lock["stages"]["prepare"]["outs"][0]["md5"]


def test_the_augmented_views_of_this_repository_are_never_pushed():
    pipeline = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    (views,) = [out for out in pipeline["stages"]["augment"]["outs"] if "data/augmented" in out]
    assert views["data/augmented"]["push"] is False


def test_the_remote_of_this_repository_checks_what_it_gives():
    text = (REPOSITORY / ".dvc" / "config").read_text()
    assert "url = gs://" in text
    assert "verify = true" in text


@pytest.mark.slow
def test_a_push_whose_server_is_killed_is_completed_by_the_next(first, second, storage):
    storage.proxy.doom(rb"POST /upload/", 5, storage.kill)
    assert first.dvc("push", "-j", "1").returncode != 0
    storage.start()
    there = storage.names()
    assert 0 < len(there) < 14
    for name in there:  # what did arrive is whole, and the list is not there before its files are
        assert not name.endswith(".dir")
        assert hashlib.md5(storage.read(name)).hexdigest() == name.removeprefix("dvc/files/md5/").replace("/", "")
    assert not first.in_step()
    assert first.dvc("push").returncode == 0
    assert first.in_step()
    assert second.dvc("pull", "data/prepared", "model.bin").returncode == 0
    assert second.files() == first.files()


@pytest.mark.slow
def test_a_pull_whose_server_is_killed_is_completed_by_the_next(first, second, storage):
    assert first.dvc("push").returncode == 0
    storage.proxy.doom(rb"GET /download/.*(?<!\.dir)\?alt=media", 5, storage.kill)
    assert second.dvc("pull", "-j", "1", "data/prepared", "model.bin").returncode != 0
    assert second.files() == {}
    for path in second.cache().rglob("*"):
        if path.is_file() and len(path.name) == 30:
            assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name
    storage.start()
    assert second.dvc("pull", "data/prepared", "model.bin").returncode == 0
    assert second.files() == first.files()


@pytest.mark.slow
def test_a_damaged_or_missing_object_is_an_error_and_never_wrong_data(first, second, storage, capfd):
    assert first.dvc("push").returncode == 0
    right = first.files()
    listing = next(name for name in storage.names() if name.endswith(".dir"))
    file = next(name for name in storage.names() if not name.endswith(".dir") and len(storage.read(name)) > 1000)
    whole = {name: storage.read(name) for name in (file, listing)}
    damages = {
        "a bit flipped": lambda: storage.write(file, bytes([whole[file][0] ^ 1]) + whole[file][1:]),
        "a file cut": lambda: storage.write(file, whole[file][:5000]),
        "a file missing": lambda: storage.delete(file),
        "a list cut": lambda: storage.write(listing, whole[listing][:50]),
        "a list with other names": lambda: storage.write(listing, whole[listing].replace(b'"3.npy"', b'"4.npx"')),
        "a list missing": lambda: storage.delete(listing),
    }
    for damage, inflict in damages.items():
        inflict()
        believed = damage == "a list with other names"  # by DVC; `remote.pull` then says not to use it
        said = "^data/prepared: damaged in the remote" if believed else "^dvc pull failed"
        with pytest.raises(PetalsError, match=rf"{said}.*docs/gcp\.md"):
            remote.pull(second.root)
        if not believed:
            assert second.files().keys() <= {"model.bin"}, damage
        for name, data in whole.items():
            storage.write(name, data)
        forget(second)
    assert "Traceback" not in capfd.readouterr().err
    assert remote.pull(second.root)
    assert second.files() == right


@pytest.mark.slow
def test_what_the_bucket_lost_is_sent_again_once_its_list_is_gone(first, second, storage):
    """The way that docs/gcp.md tells: DVC takes a folder to be whole where its list is."""
    assert first.dvc("push").returncode == 0
    names = storage.names()
    storage.delete(next(name for name in names if len(storage.read(name)) == 100_000))
    assert "up to date" in first.dvc("push").stdout
    storage.delete(next(name for name in names if name.endswith(".dir")))
    assert "2 files pushed" in first.dvc("push").stdout
    assert storage.names() == names
    remote.pull(second.root)
    assert second.files() == first.files()


@pytest.mark.slow
def test_a_registered_and_promoted_model_is_fetched_by_name(first, storage, tmp_path):
    """The way that the README tells."""
    assert first.dvc("push").returncode == 0
    for arguments in (["register", "flowers"], ["assign", "flowers", "--version", "v0.0.1", "--stage", "prod"]):
        subprocess.run([sys.executable, "-m", "gto.cli", *arguments], cwd=first.root, env=first.environment, check=True)
    shutil.rmtree(first.cache())
    for number, choice in enumerate((["--stage", "prod"], ["--rev", "v0.0.1"], [])):
        got = first.dvc("artifacts", "get", str(first.root), "flowers", *choice, "-o", str(tmp_path / f"got{number}"))
        assert got.returncode == 0, got.stderr
        assert (tmp_path / f"got{number}").read_bytes() == b"weights"


def forget(clone: Clone) -> None:
    for folder in ("data", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(clone.root / folder, ignore_errors=True)
    (clone.root / "model.bin").unlink(missing_ok=True)


@pytest.mark.slow
def test_a_full_data_set_is_tens_of_objects(first, storage):
    """The competition's 23,847 images at 192 px, in files that are as many, with images of 4 px in them."""
    size, small = 192, 4
    shutil.rmtree(first.root / "data" / "prepared")
    for split, count in {"train": 12_753, "val": 3_712, "test": 7_382}.items():
        folder = first.root / "data" / "prepared" / split
        folder.mkdir(parents=True)
        rows = SHARD_BYTES // (size * size * 3)
        create_shards(folder, count, small, rows * small * small * 3)
        ids = [f"{split}{number}" for number in range(count)]
        write_labels(folder, [0] * count, ids, classes=["rose"], image_size=small)
        for number, path in enumerate(folder.glob("images-*.npy")):
            with path.open("r+b") as file:  # no two alike, as photographs are
                file.seek(-8, os.SEEK_END)
                file.write(f"{split[:3]}{number:05d}".encode())
    assert first.dvc("commit", "-q", "--force").returncode == 0
    assert first.dvc("push").returncode == 0
    assert len(storage.names()) == 42 + 3 * 3 + 1 + 1  # shards, what stands beside them, the list, the model


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200
    refused = ("GET", "POST", "DELETE")

    def do_GET(self) -> None:
        status = self.status if self.command in self.refused else 200
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"error": {"code": status, "message": "no"}}).encode())

    do_POST = do_DELETE = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "gs://petals: not open to you; run gcloud auth application-default login, or see docs/gcp.md"),
        (403, "gs://petals: your account may not list it; it needs a role on the bucket, see docs/gcp.md"),
        (404, "gs://petals: no such bucket; point the remote at your own with dvc remote modify gcs url gs://BUCKET"),
        (503, "gs://petals: HTTP 503, see docs/gcp.md"),
    ],
)
def test_no_access_is_one_line_before_dvc_is_asked(first, monkeypatch, status, message):
    monkeypatch.setattr(remote, "run", lambda *arguments: pytest.fail("DVC was asked"))
    monkeypatch.chdir(first.root)
    with http.server.HTTPServer(("127.0.0.1", 0), type("Fixed", (Answer,), {"status": status})) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point(first, f"http://127.0.0.1:{server.server_port}")
        result = CliRunner().invoke(remote.main, ["pull"])
        server.shutdown()
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {message}")
    assert result.output.count("\n") == 1


def test_a_check_for_a_push_leaves_nothing(first, storage, monkeypatch):
    monkeypatch.chdir(first.root)
    result = CliRunner().invoke(remote.main, ["check"])
    assert (result.exit_code, result.output, storage.names()) == (0, "", [])


def test_a_push_without_the_right_to_write_is_one_line_before_dvc_is_asked(first, monkeypatch):
    monkeypatch.setattr(remote, "run", lambda *arguments: pytest.fail("DVC was asked"))
    monkeypatch.chdir(first.root)
    handler = type("Fixed", (Answer,), {"status": 403, "refused": ("POST",)})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point(first, f"http://127.0.0.1:{server.server_port}")
        result = CliRunner().invoke(remote.main, ["push"])
        server.shutdown()
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "gs://petals: your account may not write to it" in result.output


def test_a_lock_file_that_cannot_be_read_is_one_line(first, storage, monkeypatch):
    monkeypatch.chdir(first.root)
    Path("dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n")
    result = CliRunner().invoke(remote.main, ["pull"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "DVC cannot read the pipeline: " in result.output and "dvc.lock" in result.output


@pytest.mark.parametrize(("refused", "code"), [("POST", 1), ("DELETE", 0)])
def test_a_check_for_a_push_asks_for_the_right_to_write_and_no_more(first, monkeypatch, refused, code):
    monkeypatch.chdir(first.root)
    handler = type("Fixed", (Answer,), {"status": 403, "refused": (refused,)})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point(first, f"http://127.0.0.1:{server.server_port}")
        remote.check_access()
        result = CliRunner().invoke(remote.main, ["check"])
        server.shutdown()
    assert (result.exit_code, result.output.count("\n")) == (code, code)
    assert not code or "gs://petals: your account may not write to it; it needs a role on" in result.output


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("credentialpath = /nowhere.json", "gs://petals: /nowhere.json, which credentialpath names, is not there; see"),
        (
            "credentialpath = ../other.json",
            "gs://petals: these credentials fail ('refresh_token' is missing), see docs",
        ),
        ("url = s3://petals/dvc", "the remote cannot be used: s3 is supported, but requires 'dvc-s3' to be installed"),
    ],
)
def test_credentials_and_remotes_that_will_not_do_are_one_line(ran, tmp_path, environment, monkeypatch, setting, said):
    root = tmp_path / "clone"
    shutil.copytree(ran, root, symlinks=True)
    (root / "other.json").write_text('{"type": "external_account"}')
    (root / ".dvc" / "config.local").write_text(f"['remote \"gcs\"']\n    {setting}\n")
    monkeypatch.chdir(root)
    result = CliRunner().invoke(remote.main, ["check"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
    assert result.output.startswith(f"Error: {said}")


def test_no_answer_and_no_bucket_of_ones_own_are_one_line(first, storage, monkeypatch):
    storage.kill()
    storage.proxy.close()
    monkeypatch.chdir(first.root)
    result = CliRunner().invoke(remote.main, ["push"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "gs://petals: no answer from http://127.0.0.1:" in result.output
    (first.root / ".dvc" / "config.local").unlink()
    (first.root / ".dvc" / "config").write_text(dvc_config("gs://petals.example/dvc"))
    quiet = CliRunner().invoke(remote.main, ["push", "--if-bucket"])
    assert (quiet.exit_code, quiet.output) == (0, "")
    for command in (["check", "--address"], ["pull"]):
        result = CliRunner().invoke(remote.main, command)
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert "point the remote at it with dvc remote modify gcs url gs://BUCKET/dvc, see docs/gcp.md" in result.output


def test_a_remote_that_is_no_bucket_is_left_to_dvc(first, second, tmp_path):
    for clone in (first, second):
        (clone.root / ".dvc" / "config").write_text(
            f"[core]\nremote = here\n['remote \"here\"']\nurl = {tmp_path}/here\n"
        )
        (clone.root / ".dvc" / "config.local").unlink()
    remote.push(first.root)
    remote.pull(second.root)
    assert second.files() == first.files()
    with pytest.raises(
        PetalsError, match="/here/files/md5: not on Google Cloud Storage; a machine that trains needs a bucket"
    ):
        remote.check_address(first.root)


def test_a_clone_without_a_remote_is_one_line(first, monkeypatch):
    (first.root / ".dvc" / "config").write_text("")
    (first.root / ".dvc" / "config.local").unlink()
    with pytest.raises(PetalsError, match=r"the remote cannot be used: .*no remote specified"):
        remote.check_access(first.root)


def test_a_push_of_what_the_remote_has_needs_no_right_to_write_from_an_empty_clone_either(first, second, monkeypatch):
    remote.push(first.root)
    monkeypatch.setattr(remote, "check_push", lambda root: pytest.fail("the right to write was asked for"))
    remote.push(second.root)


def test_the_bucket_is_asked_with_the_credentials_of_dvc(first, monkeypatch):
    seen = []

    class Seen(Answer):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            super().do_GET()

        do_POST = do_DELETE = do_GET

    def sign(credentials: object, headers: dict[str, str]) -> None:
        headers["Authorization"] = "Bearer x"

    monkeypatch.setattr("gcsfs.credentials.GoogleCredentials.apply", sign)
    with http.server.HTTPServer(("127.0.0.1", 0), Seen) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point(first, f"http://127.0.0.1:{server.server_port}")
        remote.check_push(first.root)
        server.shutdown()
    assert seen == ["Bearer x"] * 3
