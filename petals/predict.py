"""`python -m petals.predict`: classify photographs, with ONNX Runtime alone."""

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import click
import numpy as np

from petals.commands import Command
from petals.errors import PetalsError
from petals.images import decode, square
from petals.inference import Model
from petals.listing import IMAGES, composed, shown, unread
from petals.report.statistics import macro_f1_interval
from petals.scores import accuracy, macro_f1

BATCH = 16
TOP = 5
Guesses = list[tuple[str, float]]  # classes with their probabilities, the likeliest first
Fail = Callable[[PetalsError], None]  # told of each image that cannot be answered


def image_files(paths: tuple[Path, ...], fail: Fail) -> Iterator[Path]:
    """Each file of `paths`, and the visible images in and below each folder; what is amiss goes to `fail`."""
    for path in paths:
        if not os.path.isdir(path):  # unlike Path's, it takes any name for an answer
            if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
                fail(PetalsError(f"{shown(path)}: neither a file nor a folder"))
            else:
                yield path
            continue
        locked: list[OSError] = []
        below = list(files_below(path, locked))
        found = sorted(each for each in below if each.suffix.lower() in IMAGES)
        yield from found
        for error in locked:
            fail(PetalsError(f"{shown(error.filename)}: cannot be read: {error.strerror}"))
        shots = {each.with_suffix("") for each in found}  # a camera writes its raw file beside the JPEG
        if formats := unread([each for each in below if each.with_suffix("") not in shots]):
            fail(PetalsError(f"{shown(path)}: {formats} are left out: convert them to JPEG first"))
        elif not found and not locked:
            fail(PetalsError(f"{shown(path)}: no image (.jpg, .png, .webp) in this folder"))


def files_below(top: Path, locked: list[OSError]) -> Iterator[Path]:
    """The visible files in and below the folder `top`; why a folder could not be listed goes to `locked`."""
    for folder, folders, names in os.walk(top, onerror=locked.append):
        folders[:] = (name for name in folders if not name.startswith("."))
        for each in (Path(folder, name) for name in names if not name.startswith(".")):
            # No pipe and the like; what cannot be found is told when it is read.
            if os.path.isfile(each) or not os.path.exists(each):
                yield each


def read(path: Path, size: int) -> np.ndarray:
    """The image in `path` as the network sees it, uint8 (size, size, 3); raises PetalsError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PetalsError(f"{shown(path)}: not found") from None
    except OSError as error:
        raise PetalsError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    return square(decode(data, shown(path), size), size)


def squares(paths: Iterator[Path], size: int, fail: Fail) -> Iterator[tuple[Path, np.ndarray]]:
    """Each of `paths` with its image, uint8 (size, size, 3)."""
    for path in paths:
        try:
            yield path, read(path, size)
        except PetalsError as error:
            fail(error)


def predict(model: Model, paths: tuple[Path, ...], fail: Fail) -> Iterator[tuple[Path, Guesses]]:
    """For each image of `paths`, in order: its path and its five likeliest classes; what is amiss goes to `fail`.

    Images are made square before they are asked about, a few together: so memory holds one whole photograph at a time,
    and `fail` is told before the images ahead in the same batch are answered.
    """
    images = squares(image_files(paths, fail), model.image_size, fail)
    while batch := list(islice(images, BATCH)):
        probabilities, _ = model.run(np.stack([image for _, image in batch]))
        for (path, _), row in zip(batch, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[:TOP]
            yield path, [(model.classes[label], float(row[label])) for label in best]


def named(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> tuple[Path, ...]:
    if "" in names:
        raise click.BadParameter("an empty name; name a file or a folder")
    return tuple(map(Path, names))


def label_of(path: Path, classes: list[str]) -> int:
    """Which of `classes` the folder of `path` is named after; raises PetalsError where it is none of them."""
    name = composed(path, Path(os.path.abspath(path)).parent.name)
    if name not in classes:
        raise PetalsError(f"{shown(path.parent)}: its name, {name!r}, is none of the model's classes")
    return classes.index(name)


@click.command(cls=Command)
@click.argument("images", nargs=-1, required=True, type=click.Path(), callback=named, metavar="IMAGE...")
@click.option("--model", type=click.Path(path_type=Path), default="models/model.onnx", show_default=True)
@click.option("--score", "scored", is_flag=True, help="The folder that an image is in is its class: list mistakes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image, one per line.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of CPU threads.")
@click.pass_context
def main(
    context: click.Context, images: tuple[Path, ...], model: Path, scored: bool, as_json: bool, threads: int
) -> None:
    """Name the five likeliest classes of each IMAGE, a file or a folder with images in it or below.

    An image that cannot be read is one line on standard error; the others are answered all the same, and the exit code
    is 1. `--model models/model.int8.onnx` is faster and nearly as good.

    With --score, of labelled images that the model has not seen, the last line has macro F1, its 95 % interval where
    there is a mistake, and accuracy.
    """
    opened = Model.open(model, threads)
    failures: set[str] = set()
    labels: list[int] = []
    guesses: list[int] = []

    def fail(error: PetalsError) -> None:
        if str(error) not in failures:  # else a folder that is no class were told with every image
            click.echo(f"Error: {error}", err=True)
        failures.add(str(error))

    for path, best in predict(opened, images, fail):
        if scored:
            try:
                labels.append(label_of(path, opened.classes))
            except PetalsError as error:
                fail(error)
                continue
            guesses.append(opened.classes.index(best[0][0]))
        actual = {"actual": opened.classes[labels[-1]]} if scored else {}
        if as_json:
            predictions = [{"class": name, "probability": round(value, 6)} for name, value in best]
            click.echo(json.dumps({"image": str(path)} | actual | {"predictions": predictions}))
        elif not scored:
            click.echo(shown(path))
            for name, value in best:
                click.echo(f"  {value:6.1%}  {name}")
        elif labels[-1] != guesses[-1]:
            click.echo(f"{shown(path)}: {best[0][0]} ({best[0][1]:.0%}), but is {actual['actual']}")
    if labels:
        actual, predicted, classes = np.array(labels), np.array(guesses), len(opened.classes)
        f1, right = macro_f1(actual, predicted), accuracy(actual, predicted)
        bounds = macro_f1_interval(actual, predicted, classes)
        low, high = bounds.bounds if bounds else (None, None)
        scores = {"macro_f1": f1, "accuracy": right, "low": low, "high": high}
        scores = {"images": len(labels)} | {name: value and round(value, 6) for name, value in scores.items()}
        line = f"macro F1 {f1:.4f}{f', {bounds}' if bounds else ''}; accuracy {right:.4f}; {len(labels)} images"
        click.echo(json.dumps(scores) if as_json else line)
    context.exit(1 if failures else 0)


if __name__ == "__main__":
    main(prog_name="python -m petals.predict")
