"""What the service says of changed images, with a model that was really trained: python -m benchmarks.drift."""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageFilter

from petals.commands import Command
from petals.errors import PetalsError
from petals.images import decode, square
from petals.rawdata import open_dataset
from serving.loading import LoadedModel
from serving.metrics import DRIFT
from serving.settings import Settings

BATCH = 8


def darker(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: (image * share).astype(np.uint8)


def blurred(radius: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def no_flower() -> Callable[[np.ndarray], np.ndarray]:
    """In turn stripes, gradients and coarse noise, of random colours."""
    random = np.random.default_rng(0)
    turns = iter(range(10**9))

    def draw(image: np.ndarray) -> np.ndarray:
        size, turn = len(image), next(turns) % 3
        across = np.arange(size)[None, :, None]
        one, other = random.integers(0, 256, (2, 3))
        if turn == 0:
            drawn = np.where(across // random.integers(3, 12) % 2, one, other)
        elif turn == 1:
            drawn = one + (other - one) * across / size
        else:
            drawn = random.integers(0, 256, (-(-size // 8),) * 2 + (3,)).repeat(8, 0).repeat(8, 1)[:size, :size]
        return np.broadcast_to(drawn, image.shape).astype(np.uint8)

    return draw


CHANGES = {
    "as they are": lambda image: image,
    "half of the light": darker(0.5),
    "a seventh of the light": darker(0.15),
    "blurred, radius 1 px": blurred(1),
    "blurred, radius 3 px": blurred(3),
    "stripes, gradients, noise": no_flower(),
}


@click.command(cls=Command)
@click.option("--model", default=Settings().model, show_default=True, type=click.Path(path_type=Path))
@click.option("--data", default=Path("data/sample"), show_default=True, type=click.Path(path_type=Path))
def main(model: Path, data: Path) -> None:
    """Give MODEL the test images of DATA, changed in one way after the other, and print a table.

    Not those of validation, which the model's idea of the usual is made of: they are always nearer to it.
    """
    loaded, dataset = LoadedModel(model, BATCH), open_dataset(data, 1)
    if set(dataset.classes) != set(loaded.classes):
        raise PetalsError(f"{data}: its classes are not those of {model}; give --data with photographs like its own")
    size = loaded.image_size
    records = [record for source in dataset.splits["test"] for record in source.records()]
    if not records:
        raise PetalsError(f"{data}: no test split; give data that has one")
    images = [square(decode(record.data, record.where, size), size) for record in records]
    click.echo("| test images | in the window | PSI, classes | PSI, confidence | KS, distance |\n" + "|---" * 5 + "|")
    for name, change in CHANGES.items():
        compared = window(model, list(map(change, images)))
        cells = (cell(compared[key], compared[f"{key}_limit"]) for key in DRIFT)
        click.echo(f"| {name} | {compared['images']} | {' | '.join(cells)} |")


def window(model: Path, images: list[np.ndarray]) -> dict[str, float]:
    loaded = LoadedModel(model, Settings().window)
    for start in range(0, len(images), BATCH):
        loaded.window.add(loaded.run([lambda _, image=image: image for image in images[start : start + BATCH]]))
    return loaded.window.compare()


def cell(found: float, limit: float) -> str:
    return f"{found:.2f} ({limit:.2f})" + (" **drift**" if found > limit else "")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.drift")
