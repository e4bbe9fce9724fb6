"""What each machine of a cluster runs: python -m petals.cluster; see docs/scale.md.

The first machine runs an experiment with DVC. The others run those of its stages that `launch` starts, when it does;
they compute their share, and write nothing. Which machine this is, torchrun's own variables say (PET_NNODES,
PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT, PET_NPROC_PER_NODE), or CLUSTER_SPEC, which Vertex AI sets.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import fsspec
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from petals.commands import Command
from petals.errors import PetalsError
from petals.following import address, announced, announcing
from petals.params import PipelineParams, check_knob, load_params, read_mapping
from petals.stopping import stop_stage

DVC = (sys.executable, "-m", "dvc")
MARK = "${launch}"  # how the command of a stage starts that takes several machines
MEETING = {"PET_RDZV_CONF": "timeout=1800"}  # s that torchrun waits: other machines may have views to render
RESULTS = ("dvc.lock", "machine.json", "params.yaml", "metrics", "plots")


def place(cluster_spec: str) -> dict[str, str]:
    """torchrun's variables from CLUSTER_SPEC (JSON); raises PetalsError where it is none.

    The machines of `workerpool0` come first; the first of them is where all meet.
    """
    try:
        spec = json.loads(cluster_spec)
        pools = [spec["cluster"].get(f"workerpool{number}", []) for number in (0, 1)]
        pool, index = spec["task"]["type"], int(spec["task"]["index"])
        rank = index + (len(pools[0]) if pool == "workerpool1" else 0)
        host, port = pools[0][0].rsplit(":", 1)
        if pool not in ("workerpool0", "workerpool1"):
            raise ValueError(f"{pool} has no part in training")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise PetalsError(f"CLUSTER_SPEC: not what Vertex AI writes ({error!r}): {cluster_spec[:200]}") from None
    machines = len(pools[0]) + len(pools[1])
    return {
        "PET_NNODES": str(machines),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": host,
        "PET_MASTER_PORT": port,
    }


def check_place() -> None:
    """See that torchrun's variables say which of how many machines this is; raises PetalsError where they do not."""
    for name, least in (("PET_NNODES", 1), ("PET_NODE_RANK", 0)):
        text = os.environ.get(name, str(least))
        if not text.isdecimal() or int(text) < least:
            raise PetalsError(f"{name}: should be a whole number of {least} or more, but is {text!r}")
    if os.environ.get("PET_NNODES", "1") != "1":
        address()


def shared_commands(root: str | Path = ".") -> dict[str, str]:
    """What the shell is to run for each stage of dvc.yaml that `launch` starts, by the module after it."""
    stages = read_mapping(Path(root) / "dvc.yaml")["stages"]
    shared = {name: each["cmd"].split()[1] for name, each in stages.items() if each["cmd"].startswith(MARK)}
    with Repo(root) as repo:
        return {module: repo.stage.load_one(name=name).cmd for name, module in shared.items()}


def lead(overrides: Sequence[str], push: bool) -> None:
    settings = [word for each in overrides for word in ("-S", each)]
    alone = os.environ.get("PET_NNODES", "1") == "1"
    if push:
        run(sys.executable, "-m", "petals.remote", "check")
    with nullcontext() if alone else announcing(list(shared_commands())):
        run(*DVC, "exp", "run", "--pull", *settings)
    run(sys.executable, "-m", "petals.machine", "--record")
    try:
        if "AIP_MODEL_DIR" in os.environ:
            keep_results(os.environ["AIP_MODEL_DIR"])
    finally:  # the one should not cost the other
        if push:
            run(sys.executable, "-m", "petals.remote", "push")


def keep_results(target: str) -> None:
    """Copy what git keeps of a run to `target`, a folder here or in a bucket; PetalsError where that cannot be."""
    try:
        files, folder = fsspec.core.url_to_fs(target.rstrip("/"))
        names = [*filter(os.path.exists, RESULTS)]
        for name in names:
            if os.path.isdir(name) and files.exists(f"{folder}/{name}"):  # of a former job, which may have left more
                files.rm(f"{folder}/{name}", recursive=True)
            # One by one: fsspec's recursive copy puts a folder into one that is there already.
            for path in [name] if os.path.isfile(name) else (path for path in Path(name).rglob("*") if path.is_file()):
                copy = f"{folder}/{Path(path).as_posix()}"
                files.makedirs(copy.rpartition("/")[0], exist_ok=True)
                files.put_file(str(path), copy)
    except Exception as error:  # each file system has its own
        raise PetalsError(f"AIP_MODEL_DIR: {target} cannot be written to: {error}") from None
    click.echo(f"{', '.join(names)} are in {target}")


def follow(overrides: Sequence[str]) -> None:
    set_params(overrides, "params.yaml")
    run(*DVC, "repro", "--pull", "augment")
    commands = shared_commands()
    for stage in announced():
        run("sh", "-c", f"exec {commands[stage]}")


def set_params(overrides: Sequence[str], path: str | Path) -> PipelineParams:
    """Put `overrides` into the params.yaml at `path` by DVC's rules, and give what dvc.yaml reads of it then.

    Raises PetalsError, one line, for what will not do.
    """
    for each in overrides:
        knob, given, text = each.partition("=")
        if not given:
            raise PetalsError(f"-S {each}: is not KNOB=VALUE")
        check_knob(knob, "-S")
        try:
            apply_overrides(path, [each])
        except DvcException as error:
            why = str(error.__cause__ or error).partition("\nSee")[0]
            if knob == "launch" and "=" in text:
                why = "DVC takes = inside launch for its own; write a blank, such as --nproc-per-node 8"
            raise PetalsError(f"-S {each}: {why}") from None
    try:
        return load_params(PipelineParams, path)
    except PetalsError as error:
        raise PetalsError(str(error).replace(str(path), "params.yaml")) from None  # the copy has no name for users


def run(*command: str) -> None:
    """Run `command` to its end; SIGTERM, which stops a container, goes on to the stage that runs beneath it.

    Raises SystemExit where it fails or was told to end.
    """
    click.echo(f"> {' '.join(command)}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = MEETING | os.environ | {"PATH": path}
    told: list[int] = []
    started: list[subprocess.Popen] = []

    def stop(signum: int, frame: object) -> None:
        told.append(signum)
        for process in started:
            end(process)

    def end(process: subprocess.Popen) -> None:
        if command[: len(DVC)] != DVC or not stop_stage(process.pid):
            process.terminate()

    former = signal.signal(signal.SIGTERM, stop)
    try:
        with subprocess.Popen(command, env=environment) as process:
            started.append(process)
            if told:  # while it was started
                end(process)
            code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, former)
    if code or told:
        raise SystemExit(128 + told[0] if told else code)


@click.command(help=__doc__, cls=Command)
@click.option("-S", "--set-param", "overrides", multiple=True, metavar="KNOB=VALUE",
              help="As for dvc exp run; repeatable. The same on all machines.")  # fmt: skip
@click.option("--push", is_flag=True, help="Push data and models to DVC's remote at the end.")
def main(overrides: tuple[str, ...], push: bool) -> None:
    try:
        if "CLUSTER_SPEC" in os.environ:
            os.environ.update(place(os.environ["CLUSTER_SPEC"]))
        check_place()
        load_params(PipelineParams)
        with TemporaryDirectory() as folder:
            launch = set_params(overrides, shutil.copy("params.yaml", folder)).launch
        if os.environ.get("PET_NNODES", "1") != "1" and not launch.startswith("torchrun"):
            raise PetalsError(f'launch: {launch!r} starts on one machine alone; add -S launch="torchrun -m"')
        if os.environ.get("PET_NODE_RANK", "0") == "0":
            lead(overrides, push)
        else:
            follow(overrides)
    except (PetalsError, DvcException) as error:  # DVC's are of several lines
        raise click.ClickException(" ".join(str(error).split())) from None


if __name__ == "__main__":
    main(prog_name="python -m petals.cluster")
