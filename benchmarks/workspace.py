"""Copies of the working tree to run in, with other settings."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import click

from petals.git import git

REPOSITORY = Path(__file__).parents[1]
PARAMS = REPOSITORY / "params.yaml"


def make_workspace(root: Path, settings: Mapping[str, str]) -> Path:
    """Copy the working tree to `root`, a git repository of its own, with `settings` put into params.yaml."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    (root / "dvc.lock").unlink(missing_ok=True)  # all is to be run
    put_params(root, settings)
    for command in ("init --quiet", "add .", "-c user.name=petals -c user.email=none commit --quiet -m start"):
        git(*command.split(), cwd=root)
    return root


def commit() -> str:
    """The commit of the working tree, with `+` where that differs from it in more than the results of the bench."""
    name = git("rev-parse", "--short=12", "HEAD", cwd=REPOSITORY).strip()
    changed = git("diff", "--name-only", "HEAD", "--", ".", ":!benchmarks/results.json", cwd=REPOSITORY)
    return name + "+" * bool(changed)


def put_params(folder: Path, settings: Mapping[str, object]) -> None:
    """Write params.yaml of this working tree to `folder`, with `settings`; raises click.BadParameter for no knob."""
    params = PARAMS.read_text(encoding="utf-8")
    for knob, value in settings.items():
        params, found = re.subn(rf"(?m)^{re.escape(knob)}:.*$", lambda _, k=knob, v=value: f"{k}: {v}", params)
        if not found:
            raise click.BadParameter(f"params.yaml has no {knob}")
    (folder / "params.yaml").write_text(params, encoding="utf-8")
