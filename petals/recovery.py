"""Mend what a killed DVC may leave half written: python -m petals.recovery, which `make repro` runs first.

DVC writes dvc.lock and .dvc/tmp/rwlock in place. For some milliseconds of a run they are empty or cut short, and
a run that is killed just then leaves them so; DVC then refuses to start.
"""

import json
from pathlib import Path

import click
from dvc.dvcfile import LOCK_FILE, PROJECT_FILE, load_file
from dvc.exceptions import DvcException
from dvc.repo import Repo

RWLOCK = Path(".dvc/tmp/rwlock")
CONFLICT = "<<<<<<<"


def recover(root: str | Path = ".") -> list[str]:
    """Remove the two files of `root` where they are cut short; gives a sentence for each that is gone.

    Nothing is lost: the lock file is made again from DVC's run cache, without running a stage. A lock file with
    a merge conflict is left for its owner.
    """
    root = Path(root)
    lock, said = root / LOCK_FILE, []
    if lock.is_file() and CONFLICT not in lock.read_text(encoding="utf-8", errors="replace") and not readable(lock):
        lock.unlink()
        said.append(f"{LOCK_FILE} was cut short; removed, dvc repro writes it again from DVC's run cache")
    if (root / RWLOCK).is_file():
        try:
            json.loads((root / RWLOCK).read_text(encoding="utf-8"))
        except ValueError:
            (root / RWLOCK).unlink()
            said.append(f"{RWLOCK} was cut short; removed")
    return said


def readable(lock: Path) -> bool:
    try:
        with Repo(lock.parent) as repo:
            load_file(repo, str(lock.with_name(PROJECT_FILE))).lockfile_contents  # noqa: B018
    except DvcException:
        return False
    return True


@click.command(help=__doc__)
def main() -> None:
    for sentence in recover():
        click.echo(sentence)


if __name__ == "__main__":
    main(prog_name="python -m petals.recovery")
