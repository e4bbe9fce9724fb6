"""`python -m petals.remote pull|push|check`: DVC's pull and push, with access asked first and the result looked at.

`check` asks for access alone: before a run whose result is to be pushed.

DVC alone leaves four gaps. Without access it tries again for minutes and ends in tracebacks. `dvc push` takes it for
success that data is neither here nor in the remote. `dvc pull` without targets fails over an out that is
`push: false`. And where a folder's list of files is damaged in the bucket but still
reads as a list, it is believed, though every file is checked against its hash (`verify` in .dvc/config).
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import click
import requests
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc_data.hashfile.db import HashFileDB
from gcsfs.retry import HttpError, NonRetryableError
from google.auth.exceptions import GoogleAuthError

from petals.commands import Command
from petals.errors import PetalsError

HELP = "see docs/gcp.md"
# gcsfs would ask each bucket for its kind over gRPC, in seconds at best; only hierarchical buckets need it.
ENVIRONMENT = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
ANSWERS = {
    401: f"not open to you; run gcloud auth application-default login, or {HELP}",
    403: f"your account may not {{what}} it; it needs a role on the bucket, {HELP}",
    404: f"no such bucket; point the remote at your own with dvc remote modify gcs url gs://BUCKET/dvc, {HELP}",
}


class NoBucketError(PetalsError):
    """The remote only stands for a bucket of one's own."""


def check_access(root: str | Path = ".") -> str:
    """Ask the default remote for one name: once, and with the credentials that DVC would use; gives its protocol.

    Raises PetalsError if the answer is no, or none. A remote that is not on Google Cloud Storage is not asked.
    """
    odb = _remote(root)
    if odb.fs.protocol == "gs":
        _listed(odb, odb.path)
    return odb.fs.protocol


def check_push(root: str | Path = ".") -> None:
    """As `check_access`, and write a small object, as `push` will; it is deleted again where that is allowed."""
    check_access(root)
    odb = _remote(root)
    if odb.fs.protocol != "gs":
        return
    bucket, _, prefix = odb.path.partition("/")
    name = f"{prefix}/access-{uuid.uuid4().hex}"
    query = {"uploadType": "media", "name": name}
    _ask(odb, "write to", "POST", f"upload/storage/v1/b/{bucket}/o", params=query, data=b"may I?")
    with suppress(PetalsError):  # push deletes nothing, so it needs no right to
        _ask(odb, "delete from", "DELETE", f"storage/v1/b/{bucket}/o/{quote(name, safe='')}")


def check_address(root: str | Path = ".") -> None:
    """Look at the address of the default remote alone; raises PetalsError where it is no bucket of one's own."""
    odb = _remote(root)
    if odb.fs.protocol != "gs":
        raise PetalsError(f"{odb.path}: not on Google Cloud Storage; a machine that trains needs a bucket, {HELP}")


def _remote(root: str | Path) -> HashFileDB:
    """The default remote; nothing is asked yet."""
    try:
        with Repo(root) as repo:
            odb = repo.cloud.get_remote_odb()
    except (DvcException, ImportError) as error:  # ImportError: what DVC needs for that kind is not installed
        raise PetalsError(f"the remote cannot be used: {' '.join(str(error).split())}") from None
    bucket = odb.path.partition("/")[0]
    if odb.fs.protocol == "gs" and bucket.endswith(".example"):  # a name that nobody can register
        raise NoBucketError(
            f"gs://{bucket} only stands for a bucket of your own; point the remote at it with "
            f"dvc remote modify gcs url gs://BUCKET/dvc, {HELP}"
        )
    return odb


def _listed(odb: HashFileDB, path: str) -> list[dict[str, object]]:
    """At most one object of a bucket whose path starts so."""
    bucket, _, prefix = path.partition("/")
    answer = _ask(odb, "list", "GET", f"storage/v1/b/{bucket}/o", params={"prefix": prefix, "maxResults": 1})
    return answer.json().get("items", [])


def _ask(odb: HashFileDB, what: str, method: str, path: str, **options: object) -> requests.Response:
    """The bucket's answer to one request. Not by gcsfs: see ENVIRONMENT, which it reads on import."""
    bucket = odb.path.partition("/")[0]
    headers: dict[str, str] = {}
    key = odb.fs.fs_args["token"]
    if key not in (None, "anon") and not Path(key).is_file():  # gcsfs would take its path for a token
        raise PetalsError(f"gs://{bucket}: {key}, which credentialpath names, is not there; {HELP}")
    try:
        gcs = odb.fs.fs
        gcs.credentials.apply(headers)
    except (GoogleAuthError, HttpError, NonRetryableError, OSError, ValueError, KeyError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise PetalsError(f"gs://{bucket}: these credentials fail ({why}), {HELP}") from None
    server = gcs.base.removesuffix("storage/v1/")
    try:
        answer = requests.request(method, f"{server}{path}", headers=headers, timeout=10, **options)
    except requests.RequestException:
        raise PetalsError(f"gs://{bucket}: no answer from {server}; are you connected? {HELP}") from None
    if not answer.ok:
        said = ANSWERS.get(answer.status_code, f"HTTP {answer.status_code}, {HELP}")
        raise PetalsError(f"gs://{bucket}: {said.format(what=what)}")
    return answer


def _has(odb: HashFileDB, oid: str) -> bool:
    return bool(_listed(odb, odb.oid_to_path(oid))) if odb.fs.protocol == "gs" else odb.exists(oid)


def pushed(repo: Repo) -> list[Output]:
    """The outs of the pipeline and of .dvc files that belong in the remote."""
    return [out for out in repo.index.outs if out.use_cache and out.can_push and out.hash_info]


def pull(root: str | Path = ".") -> list[str]:
    """Bring all that belongs in the remote; the paths, each of them whole and as dvc.lock or its .dvc file says.

    Raises PetalsError if the remote does not give it.
    """
    check_access(root)
    with Repo(root) as repo:
        paths = [str(out) for out in pushed(repo)]
    if paths:
        run("pull", paths, root)
    with Repo(root) as repo:
        wrong = [str(out) for out in pushed(repo) if not out.exists or out.changed_checksum()]
    if wrong:
        raise PetalsError(
            f"{wrong[0]}: damaged in the remote, do not use it; have it pushed again by someone who has it, {HELP}"
        )
    return paths


def push(root: str | Path = ".") -> None:
    """Send what the remote lacks; only where there is something does that need the right to write.

    Raises PetalsError if it does not take it, or if something that belongs there is neither there nor here. A folder
    is there where its list is: a file that the remote has lost since is found by `pull` alone.
    """
    check_access(root)
    if lacking(root):
        check_push(root)
    run("push", [], root)
    if missing := lacking(root):
        raise PetalsError(
            f"not whole here and not in the remote: {', '.join(missing)}; run dvc repro and push again, "
            f"or first pull from a remote that has it, {HELP}"
        )


def lacking(root: str | Path) -> list[str]:
    """What belongs in the remote and is not there."""
    with Repo(root) as repo:
        odb = repo.cloud.get_remote_odb()
        # A folder's list is sent after all its files, so that where the list is, they are.
        return [str(out) for out in pushed(repo) if not _has(odb, out.hash_info.value)]


def run(command: str, targets: Sequence[str], root: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", command, *targets], cwd=root, env=ENVIRONMENT | os.environ)
    if done.returncode:
        raise PetalsError(f"dvc {command} failed, as said above; try again, or {HELP}")


@click.command(help=__doc__, cls=Command)
@click.argument("command", type=click.Choice(["pull", "push", "check"]))
@click.option("--if-bucket", is_flag=True, help="Do nothing while the remote only stands for a bucket of your own.")
@click.option("--address", is_flag=True, help="With check: only see that the remote is a bucket of your own.")
def main(command: str, if_bucket: bool, address: bool) -> None:
    try:
        {"pull": pull, "push": push, "check": check_address if address else check_push}[command]()
    except NoBucketError as error:
        if not if_bucket:
            raise click.ClickException(str(error)) from None
    except DvcException as error:
        raise click.ClickException(f"DVC cannot read the pipeline: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main(prog_name="python -m petals.remote")
