"""Mend what a killed DVC may leave half written: python -m petals.recovery, which `make repro` runs first.

A mistake in params.yaml, and a file that it names and that is not there, are refused here too, since DVC removes the
outputs of a stage before the stage can refuse it.

DVC writes dvc.lock and .dvc/tmp/rwlock in place. For some milliseconds of a run they are empty or cut short, and
a run that is killed just then leaves them so; DVC then refuses to start.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import click
from dvc.dvcfile import LOCK_FILE
from dvc.exceptions import DvcException
from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
from dvc.utils.strictyaml import load, validate

from petals.commands import Command
from petals.errors import PetalsError
from petals.inputs import dvc_files, inputs, outs
from petals.params import PipelineParams, load_params, read_mapping

RWLOCK = Path(".dvc/tmp/rwlock")
CONFLICT = "<<<<<<<"
SETTLED = 1.0  # s after which a file that was being written is


def recover(root: str | Path = ".") -> list[str]:
    """Mend the two files of `root` where they are cut short; gives a sentence for each.

    The lock file is put back as git has it in HEAD; what has run in this clone since, DVC takes from its run cache,
    without running a stage. A lock file with a merge conflict, or of another version of DVC, is left for its owner.
    Raises PetalsError where a git that was killed has left its own lock, which no one else may break.
    """
    root = Path(root)
    command = ["git", "rev-parse", "--git-path", "index.lock"]  # in a worktree it is elsewhere than in .git
    held = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    if held and (root / held).exists():
        raise PetalsError(f"{held} is there: unless a git runs here now, it is left of one that was killed; remove it")
    lock, said = root / LOCK_FILE, []
    if cut_short(lock, whole):
        command = ["git", "show", f"HEAD:./{LOCK_FILE}"]
        lock.write_bytes(subprocess.run(command, cwd=root, capture_output=True, check=False).stdout)
        if whole(lock):
            said.append(f"{LOCK_FILE} was cut short; put back as it is in HEAD")
        else:
            lock.unlink()
            said.append(f"{LOCK_FILE} was cut short; removed, dvc repro writes it again from DVC's run cache")
    if cut_short(root / RWLOCK, is_json):
        (root / RWLOCK).unlink()
        said.append(f"{RWLOCK} was cut short; removed")
    return said


def cut_short(path: Path, whole: Callable[[Path], bool]) -> bool:
    """Whether `path` is there and not `whole`, and that for a second: a DVC that lives may be just writing it."""
    if not path.is_file() or whole(path):
        return False
    time.sleep(SETTLED)
    return path.is_file() and not whole(path)


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
        return True
    except ValueError:
        return False


def whole(lock: Path) -> bool:
    """Whether a lock file is as DVC writes it, up to its last line; one with a merge conflict counts as whole."""
    if CONFLICT in lock.read_text(encoding="utf-8", errors="replace"):
        return True
    try:
        content, text = load(str(lock))
        if text.endswith("\n") and content["schema"] != "2.0":
            return True
        stages = content["stages"]
        for stage in stages.values():
            validate(stage, COMPILED_LOCK_FILE_STAGE_SCHEMA)
        files = [file for stage in stages.values() for kind in ("deps", "outs") for file in stage.get(kind, [])]
    except (DvcException, AttributeError, KeyError, TypeError):
        return False
    return text.endswith("\n") and all("md5" in file for file in files if file.get("hash") == "md5")


def check_inputs() -> None:
    """Raise PetalsError where the photographs or weights that params.yaml names are neither here nor known to DVC."""
    load_params(PipelineParams)
    made = outs("dvc.yaml")
    for knob, path in inputs(read_mapping("params.yaml")).items():
        known = any(each.exists() for each in dvc_files(path)) or any(map(path.is_relative_to, made))
        if not path.exists() and not known:
            raise PetalsError(f"{knob}: there is no {path}, and no {path}.dvc to pull it by; set it in params.yaml")


@click.command(help=__doc__, cls=Command)
def main() -> None:
    for sentence in recover():
        click.echo(sentence)
    check_inputs()


if __name__ == "__main__":
    main(prog_name="python -m petals.recovery")
