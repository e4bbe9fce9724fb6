"""The files that params.yaml names: the photographs, and weights to start from."""

from pathlib import Path, PurePath

FOLDERS = {"data": Path(), "pretrained": Path("data/weights")}


def inputs(knobs: dict[str, object]) -> dict[str, Path]:
    """The path of each by its knob; `pretrained` is true or false where there is none."""
    return {knob: folder / knobs[knob] for knob, folder in FOLDERS.items() if isinstance(knobs.get(knob), str)}


def dvc_files(path: PurePath) -> list[Path]:
    """By which DVC may know `path`: its .dvc file, or that of a folder around it."""
    return [Path(f"{each}.dvc") for each in (path, *path.parents)]
