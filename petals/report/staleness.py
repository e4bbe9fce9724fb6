"""Whether the run that git keeps is of the code, the data, the settings and the results that stand beside it."""

import hashlib
import json

from petals.report.markdown import few
from petals.report.revisions import Revision, Unreadable
from petals.report.sides import Side, parsed, yaml_mapping

MOST_FILES, MOST_IN_A_FOLDER = 500, 100  # that are looked at; the pipeline has about a hundred
MISSING = "missing"


def behind(side: Side) -> list[str]:
    """Files, folders and knobs that are not as dvc.lock has them, as far as git knows what they are."""
    stages = (side.stages or {}).values()
    recorded = dict.fromkeys(pair for stage in stages for pair in (stage.deps | stage.outs).items())
    found = []
    for path, md5 in list(recorded)[:MOST_FILES]:
        if _hash(side.revision, path, folder=md5.endswith(".dir")) not in (None, md5):
            found.append(path)
    params = side.params or {}
    knobs = [name for stage in stages for name, value in stage.params.items() if params.get(name, value) != value]
    return list(dict.fromkeys(found + knobs))


def _hash(revision: Revision, path: str, folder: bool) -> str | None:
    """The hash that DVC gives to a file or a folder of `revision`; None where git does not know it."""
    try:
        return str(parsed(revision, f"{path}.dvc", yaml_mapping)["outs"][0]["md5"])
    except (Unreadable, LookupError, TypeError):  # it is not added to DVC
        pass
    if folder:
        return _hash_of_folder(revision, path)
    try:
        return _md5(revision.content(path))
    except Unreadable as error:
        return MISSING if error.reason == "is missing" and path.endswith(".py") else None  # code is never in DVC


def _hash_of_folder(revision: Revision, path: str) -> str | None:
    """As DVC does it: of the list of all files with their hashes.

    None where what DVC finds there is not what git holds: files of DVC's own, links, what either leaves out or changes.
    """
    files = revision.files(path)
    special = any(file.endswith((".dvc", "/.dvcignore", "/.gitattributes")) for file in files)
    if special or not 0 < len(files) <= MOST_IN_A_FOLDER:
        return None
    if revision.links(path) or revision.has(".gitattributes") or _ignores(revision):
        return None
    try:
        hashes = {file.removeprefix(f"{path}/"): _md5(revision.content(file)) for file in files}
    except Unreadable:
        return None
    listed = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes)]
    return f"{_md5(json.dumps(listed).encode())}.dir"


def _ignores(revision: Revision) -> bool:
    try:
        lines = revision.text(".dvcignore").splitlines()
    except Unreadable:
        return False
    return any(line.strip() and not line.startswith("#") for line in lines)


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
