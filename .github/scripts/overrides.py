"""Check the settings that somebody typed in for a training run, before a machine is started for it.

Reads `knob=value` words from $OVERRIDES and prints one line for $GITHUB_OUTPUT: overrides=knob=value knob=value …
Exits with 1 and one line on standard error for a word that is not of that form, a knob that no stage reads or that
comes twice, and a value of the wrong type or out of range.
"""

import os
import re
import sys
from pathlib import PurePosixPath

import yaml

from petals import params
from petals.errors import PetalsError

# Nothing that means something to a shell, to Hydra (which reads the values of `dvc exp run --set-param`: sweeps,
# functions, interpolation) or to markdown.
WORD = re.compile(r"(?P<knob>[a-z_]{1,40})=(?P<value>[A-Za-z0-9_./:+-]{1,100})", re.ASCII)


def checked(text: str, path: str = "params.yaml") -> str:
    """The words of `text`, one space apart, once they have been found valid; raises PetalsError."""
    values: dict[str, object] = {}
    for word in text.split():
        match = WORD.fullmatch(word)
        if not match:
            raise PetalsError(f"{word[:60]!r} is not a setting; write knob=value, such as lr=1e-4, with spaces between")
        knob = match["knob"]
        if knob not in params.KNOBS:
            raise PetalsError(f"{knob} is not a setting; {path} lists them all")
        if knob in values:
            raise PetalsError(f"{knob} is set twice; keep one")
        try:
            values[knob] = yaml.load(match["value"], Loader=params.Yaml12Loader)
        except yaml.YAMLError:
            raise PetalsError(f"{knob}: {match['value']!r} is not a value") from None
    merged = params.read_mapping(path) | values
    for model in (params.PipelineParams, *params.STAGES.values()):
        params.check(model, merged, "settings")
    folder = PurePosixPath(str(merged["data"]))
    if folder.parts[:1] != ("data",) or ".." in folder.parts:
        raise PetalsError(f"settings: data: should be a folder in data/, but is {str(folder)!r}")
    return " ".join(text.split())


if __name__ == "__main__":
    try:
        print(f"overrides={checked(os.environ['OVERRIDES'])}")
    except PetalsError as error:
        sys.exit(f"Error: {error}")
