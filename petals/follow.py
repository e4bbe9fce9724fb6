"""Take part in a run that DVC leads on another machine: python -m petals.follow; see docs/scale.md.

The first machine runs the pipeline. Every other has the same commit, data and params.yaml, the same `launch`, and runs
this: the stages that `launch` starts, one after the other, of which it computes its share and writes nothing.
"""

import subprocess
from pathlib import Path

import click
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from petals.errors import PetalsError
from petals.params import PipelineParams, load_params, read_mapping

MARK = "${launch}"


def commands(root: str | Path = ".") -> list[str]:
    """What the shell is to run for each stage of dvc.yaml that `launch` starts, in order."""
    stages = read_mapping(Path(root) / "dvc.yaml")["stages"]
    with Repo(root) as repo:
        return [repo.stage.load_one(name=name).cmd for name in stages if stages[name]["cmd"].startswith(MARK)]


@click.command(help=__doc__)
@click.option("-S", "--set-param", "overrides", multiple=True, help="As of `dvc exp run` on the first machine.")
def main(overrides: tuple[str, ...]) -> None:
    try:
        if overrides:
            apply_overrides("params.yaml", list(overrides))
        load_params(PipelineParams)
        todo = commands()
    except (DvcException, PetalsError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None
    for command in todo:
        click.echo(f"> {command}")
        if code := subprocess.run(command, shell=True, check=False).returncode:
            raise SystemExit(code)


if __name__ == "__main__":
    main(prog_name="python -m petals.follow")
