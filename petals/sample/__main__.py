"""The command `python -m petals.sample`."""

import math
from pathlib import Path

import click
from tqdm import tqdm

from petals.commands import Command
from petals.sample.dataset import EMBEDDED, EMBEDDED_SIZE, class_counts, write


@click.command(cls=Command)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), show_default="the shares of data/sample",
              help="Share of the competition's images; 1 gives 12,753 train, 3,712 val and 7,382 test.")  # fmt: skip
@click.option("--size", type=click.IntRange(16, 1024), default=EMBEDDED_SIZE, show_default=True, help="Pixels a side.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Random seed of the pictures.")
@click.option("--workers", type=click.IntRange(1), show_default="all cores", help="Processes; the bytes stay the same.")
def main(out: Path, scale: float | None, size: int, seed: int, workers: int | None) -> None:
    """Render flowers of 104 kinds to the new folder OUT, in the layout of Kaggle's Petals to the Metal.

    Without options this makes data/sample again; --scale 1 --size 192 makes a set of the competition's size.
    However small the scale, a class keeps 3 images in train, 2 in val and 1 in test.
    """
    if scale is not None and math.isnan(scale):  # which click takes
        raise click.BadParameter("nan is no number", param_hint="--scale")
    shares = EMBEDDED if scale is None else dict.fromkeys(EMBEDDED, scale)
    total = sum(sum(class_counts(split, share)) for split, share in shares.items())
    with tqdm(total=total, unit=" images", disable=None) as progress:
        for count in write(out, shares, size, seed, workers):
            progress.update(count)


if __name__ == "__main__":
    main(prog_name="python -m petals.sample")
