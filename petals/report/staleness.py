"""Whether the run that git keeps is of the code, the data, the settings and the results that stand beside it."""

import hashlib
from pathlib import PurePosixPath

from petals.report.markdown import few
from petals.report.revisions import Revision, Unreadable
from petals.report.sides import Side, parsed, yaml_mapping

MOST_FILES = 500  # that are looked at; the pipeline has about a hundred
MISSING = "missing"


def behind(side: Side) -> list[str]:
    """Files and knobs that are not as dvc.lock has them, as far as git knows what they are."""
    stages = (side.stages or {}).values()
    recorded = dict.fromkeys(pair for stage in stages for pair in (stage.deps | stage.outs).items())
    found = []
    for path, md5 in list(recorded)[:MOST_FILES]:
        if _hash(side.revision, path) not in (None, md5):
            found.append(path)
    params = side.params or {}
    knobs = [name for stage in stages for name, value in stage.params.items() if params.get(name, value) != value]
    paths = {PurePosixPath(path) for path, _ in recorded}
    if paths and "data" in params and PurePosixPath(str(params["data"])) not in paths:
        knobs.insert(0, "data")  # what it names is a stage's dependency, and it is not among the params
    return list(dict.fromkeys(found + knobs))


def _hash(revision: Revision, path: str) -> str | None:
    """The hash that DVC gives to what is at `path`, or is added to DVC there; None where git does not know it."""
    try:
        return str(parsed(revision, f"{path}.dvc", yaml_mapping)["outs"][0]["md5"])
    except (Unreadable, LookupError, TypeError):  # it is not added to DVC
        pass
    try:
        return _md5(revision.content(path))
    except Unreadable as error:
        return MISSING if error.reason == "is missing" and path.endswith(".py") else None  # code is never in DVC


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def note(label: str, side: Side) -> str | None:
    """A sentence on what is `behind`, where anything is."""
    names = behind(side)
    if not names:
        return None
    return (
        f"In {label}, {few(names)} changed after the run that `dvc.lock` names: "
        "these scores are not of what stands there. `make repro record`, and commit."
    )
