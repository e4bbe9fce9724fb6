"""The files that params.yaml names, photographs and weights to start from, and how DVC may know them."""

from pathlib import Path, PurePath

from petals.params import read_mapping

FOLDERS = {"data": Path(), "pretrained": Path("data/weights")}


def inputs(knobs: dict[str, object]) -> dict[str, Path]:
    """The path of each by its knob; `pretrained` is true or false where there is none."""
    return {knob: folder / knobs[knob] for knob, folder in FOLDERS.items() if isinstance(knobs.get(knob), str)}


def dvc_files(path: PurePath) -> list[Path]:
    """By which DVC may know `path`: its .dvc file, or that of a folder around it."""
    return [Path(f"{each}.dvc") for each in (path, *path.parents)]


def outs(pipeline: str | Path) -> list[Path]:
    """All that the stages of a dvc.yaml make."""
    stages = read_mapping(pipeline)["stages"].values()
    listed = [out for stage in stages for kind in ("outs", "metrics", "plots") for out in stage.get(kind, ())]
    return [Path(out if isinstance(out, str) else next(iter(out))) for out in listed]
