"""Whether the run that git keeps is of the code, the settings and the results that stand beside it."""

import hashlib
from contextlib import suppress

from petals.report.markdown import few
from petals.report.revisions import Unreadable
from petals.report.sides import Side

MOST_FILES = 500  # that are looked at; the pipeline has about a hundred


def behind(side: Side) -> list[str]:
    """Files and knobs that are not as dvc.lock has them; folders, and what git does not keep, are not looked at."""
    stages = (side.stages or {}).values()
    recorded = dict.fromkeys(pair for stage in stages for pair in (stage.deps | stage.outs).items())
    found = []
    for path, md5 in list(recorded)[:MOST_FILES]:
        with suppress(Unreadable):
            if hashlib.md5(side.revision.content(path), usedforsecurity=False).hexdigest() != md5:
                found.append(path)
    params = side.params or {}
    knobs = [name for stage in stages for name, value in stage.params.items() if params.get(name, value) != value]
    return list(dict.fromkeys(found + knobs))


def note(label: str, side: Side) -> str | None:
    """A sentence on what is `behind`, where anything is."""
    names = behind(side)
    if not names:
        return None
    return (
        f"In {label}, {few(names)} changed after the run that `dvc.lock` names: "
        "these scores are not of what stands there. `make repro record`, and commit."
    )
