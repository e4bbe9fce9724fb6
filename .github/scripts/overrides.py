"""Check the settings that somebody typed in for a training run, before a machine is started for it.

Reads `knob=value` words from $OVERRIDES and prints one line for $GITHUB_OUTPUT: overrides=knob=value knob=value …
Exits with 1 and one line on standard error for a word that is not of that form, a knob that no stage reads or that
comes twice, a value that DVC would write down as something that a stage refuses, and for data or weights that neither
git nor DVC has, of params.yaml too.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath

from dvc.utils.hydra import apply_overrides

from petals import params
from petals.errors import PetalsError
from petals.inputs import dvc_files, inputs, outs

# Nothing that means something to a shell, to Hydra (which reads the values of `dvc exp run --set-param`: sweeps,
# functions, interpolation) or to markdown.
WORD = re.compile(r"(?P<knob>[a-z_]{1,40})=(?P<value>[A-Za-z0-9_./:+-]{1,100})", re.ASCII)


def checked(text: str, root: str | Path = ".") -> str:
    """The words of `text`, one space apart, once they have been found valid in `root`; raises PetalsError."""
    words: dict[str, str] = {}
    for word in text.split():
        match = WORD.fullmatch(word)
        if not match:
            raise PetalsError(f"{word[:60]!r} is not a setting; write knob=value, such as lr=1e-4, with spaces between")
        knob = match["knob"]
        params.check_knob(knob, "settings")
        if knob in words:
            raise PetalsError(f"{knob} is set twice; keep one")
        words[knob] = word
    values = overridden(Path(root) / "params.yaml", list(words.values()))
    params.check(values, "settings")
    check_data(values["data"], Path(root) / "dvc.yaml")
    for knob, path in inputs(values).items():
        check_known(knob, path, Path(root))
    return " ".join(text.split())


def overridden(path: Path, words: list[str]) -> dict[str, object]:
    """The settings at `path` as DVC would have written them with `words`, which Hydra can parse, as they are WORDs."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(path, folder)
        apply_overrides(copy, words)
        return params.read_mapping(copy)


def check_data(data: str, pipeline: Path) -> None:
    folder = PurePosixPath(data)
    if folder.parts[:1] != ("data",) or ".." in folder.parts:
        raise PetalsError(f"settings: data: should be a folder in data/, but is {data!r}")
    for out in outs(pipeline):
        if folder.is_relative_to(out) or out.is_relative_to(folder):
            raise PetalsError(f"settings: data: should be apart from {out}, which the pipeline makes, but is {data!r}")


def check_known(knob: str, path: Path, root: Path) -> None:
    """See that `path` is in the checkout, or that it or a folder around it is in DVC."""
    if not (root / path).exists() and not any((root / each).is_file() for each in dvc_files(path)):
        raise PetalsError(f"settings: {knob}: {path} is not in this commit; dvc add {path}, commit, and make push")


if __name__ == "__main__":
    try:
        print(f"overrides={checked(os.environ['OVERRIDES'])}")
    except PetalsError as error:
        sys.exit(f"Error: {error}")
