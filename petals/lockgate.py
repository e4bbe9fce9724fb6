"""Whether dvc.lock is what the code, the settings and dvc.yaml would give: python -m petals.lockgate.

DVC loads and resolves the pipeline and hashes the files. `dvc status` alone cannot be the gate: it reports
data that nobody has pulled, and it overlooks a dependency that was taken out of dvc.yaml.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from dvc.dependency.param import ParamsDependency
from dvc.dvcfile import LOCK_FILE, PROJECT_FILE, load_file
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import PipelineStage
from ruamel.yaml import YAML

from petals.commands import Command
from petals.errors import PetalsError
from petals.recovery import CONFLICT


def problems(root: str | Path = ".") -> list[str]:
    """All that dvc.yaml, the files in git and params.yaml are ahead of dvc.lock in, as `stage: reason`.

    Data that DVC keeps and that is not in the working tree is no problem; data that is there must be that of
    the lock. Raises PetalsError where the pipeline itself cannot be read.
    """
    root = Path(root).resolve()
    if not (root / PROJECT_FILE).is_file():
        raise PetalsError(f"There is no {PROJECT_FILE} here; run the gate in the root of the repository.")
    if not (root / LOCK_FILE).is_file():
        return [f"{LOCK_FILE} is missing"]
    try:
        with Repo(root) as repo:
            stages = dict(load_file(repo, str(root / PROJECT_FILE)).stages)
            outs = list(repo.index.outs)
            locks = YAML(typ="safe", pure=True).load(root / LOCK_FILE).get("stages") or {}
            found = [f"{name}: {reason}" for name in stages for reason in _stage(stages[name], locks.get(name), outs)]
    except DvcException as error:
        said = " ".join(str(error).split())
        cut = LOCK_FILE in said and CONFLICT not in (root / LOCK_FILE).read_text(encoding="utf-8", errors="replace")
        hint = f"; if {LOCK_FILE} was cut short, python -m petals.recovery restores it" if cut else ""
        raise PetalsError(f"DVC cannot read the pipeline: {said}{hint}") from error
    return found + [
        f"{name}: in {LOCK_FILE}, but not in {PROJECT_FILE}; delete its entry" for name in locks if name not in stages
    ]


def _stage(stage: PipelineStage, lock: dict[str, Any] | None, outs: list[Output]) -> Iterator[str]:
    if lock is None:
        yield f"has no entry in {LOCK_FILE}"
        return
    if stage.cmd_changed:
        yield "its command has changed"
    for dep in stage.deps:
        yield from _params(dep) if isinstance(dep, ParamsDependency) else _dep(dep, outs)
    for out in stage.outs:
        yield from _out(out)
    yield from _left_over(stage, lock)


def _params(dep: ParamsDependency) -> Iterator[str]:
    locked = dep.hash_info.value or {}
    now = dep.read_params()
    for name in dep.params or sorted(now.keys() | locked.keys()):
        if name not in now:
            yield f"{name} is not in {dep.def_path}"
        elif name not in locked:
            yield f"{name} of {dep.def_path} is not in {LOCK_FILE}"
        elif now[name] != locked[name] or isinstance(now[name], bool) != isinstance(locked[name], bool):
            # To Python and to DVC true is 1; to a stage it is not. 1 and 1.0 are alike to all, and dvc repro
            # would not write the other one down.
            yield f"{name} in {dep.def_path} is {now[name]}, in {LOCK_FILE} {locked[name]}"


def _dep(dep: Output, outs: list[Output]) -> Iterator[str]:
    related = [out for out in outs if _overlap(dep, out)]
    if not dep.hash_info:
        yield f"{dep.def_path} is not among its deps in {LOCK_FILE}"
    elif any(out.fs_path == dep.fs_path and out.hash_info != dep.hash_info for out in related):
        yield f"{dep.def_path} is tracked in another version than the one it ran with"
    elif not dep.exists:
        if not related:
            yield f"{dep.def_path} is missing"
    elif all(out.exists for out in related) and dep.changed_checksum():
        yield f"{dep.def_path} has changed"


def _out(out: Output) -> Iterator[str]:
    if not out.hash_info:
        yield f"{out.def_path} is not among its outs in {LOCK_FILE}"
    elif not out.exists:
        if not out.use_cache:
            yield f"{out.def_path} is missing, though git should have it"
    elif out.changed_checksum():
        yield f"{out.def_path} is not the one that {LOCK_FILE} names"


def _left_over(stage: PipelineStage, lock: dict[str, Any]) -> Iterator[str]:
    """What the lock still has though dvc.yaml has dropped it; to DVC the stage is up to date then."""
    paths = {
        "deps": {dep.def_path for dep in stage.deps},
        "outs": {out.def_path for out in stage.outs},
    }
    for kind, current in paths.items():
        for entry in lock.get(kind) or []:
            if entry["path"] not in current:
                yield f"{entry['path']} is no longer among its {kind} in {PROJECT_FILE}"
    params = {dep.def_path: dep.params for dep in stage.deps if isinstance(dep, ParamsDependency)}
    for file, values in (lock.get("params") or {}).items():
        for name in values:
            if file not in params or (params[file] and name not in params[file]):
                yield f"{name} is no longer among its params in {PROJECT_FILE}"


def _overlap(dep: Output, out: Output) -> bool:
    """Whether one is the other, or lies inside it."""
    first, second = Path(dep.fs_path), Path(out.fs_path)
    return first.is_relative_to(second) or second.is_relative_to(first)


@click.command(cls=Command)
def main() -> None:
    """Exit with 1, naming the stage and the reason, where code, settings, a command or dvc.yaml is ahead of
    dvc.lock. Data that has not been pulled is no reason."""
    found = problems()
    if not found:
        click.echo(f"{LOCK_FILE} is in step.")
        return
    for problem in found:
        click.echo(problem)
    click.echo(f"To fix it: dvc repro (with --force STAGE for what {PROJECT_FILE} no longer has), then commit.")
    sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m petals.lockgate")
