"""augment: render views of the training images ahead of training, once for many experiments."""

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import local

import click
import numpy as np
import torch

from petals import augmentation, draws, operations, pictures, seeding
from petals.augmentation import POLICY_KNOBS, render_views, view_policy
from petals.devices import keep_freed_memory
from petals.files import replacing
from petals.packed import PackedSplit, Shards, create_shards
from petals.parallel import in_threads
from petals.params import AugmentParams, load_params
from petals.parts import Part, Parts, code, key, parts_of, save_keys
from petals.tables import write_json
from stages.cli import progress, stage, workers_option
from stages.dividing import part_option

CODE = code(augmentation, draws, operations, seeding)  # that decides a pixel of a view


@stage(AugmentParams)
@click.argument("prepared", type=click.Path(path_type=Path))
@click.argument("augmented", type=click.Path(path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@workers_option("threads")
@part_option()
def main(prepared: Path, augmented: Path, picture: Path, workers: int | None, part: Part | None) -> None:
    """Render views of the training images in PREPARED into AUGMENTED, and show some in PICTURE (JPEG).

    With `views: 0` AUGMENTED only says which policy train is to apply anew every epoch.
    """
    params = load_params(AugmentParams)
    keep_freed_memory(2**24)  # larger ones go back at once, as each thread has several of them
    torch.set_num_threads(1)  # the threads below each take a chunk
    split = PackedSplit(prepared)
    knobs = {knob: getattr(params, knob) for knob in POLICY_KNOBS}
    chunks = Chunks(split, knobs, params.seed, Parts(None if part else parts_of(augmented)))
    jobs = [(start, view) for view in range(params.views) for start in range(0, len(split), split.at_once)]
    jobs = part.share(jobs) if part else jobs

    with replacing(part.folder(augmented) if part else augmented) as folder:
        folder.mkdir()
        create_shards(folder, sum(len(chunks.rows(start)) for start, _ in jobs), split.image_size)
        shards, place = Shards(folder, mode="r+"), 0
        for images in progress(in_threads(lambda job: chunks.view(*job), jobs, workers), "views", "chunk", len(jobs)):
            shards.write(place, images)
            place += len(images)
        if part:
            save_keys(folder, [each for job in jobs for each in chunks.keys(*job)])
        else:
            write_json(folder / "meta.json", {"views": params.views, "policy": knobs})
    if part:
        click.echo(f"{part.folder(augmented)}: {place} images")
        return
    ready = f", {chunks.parts.used} of them from {parts_of(augmented)}" if chunks.parts.used else ""
    click.echo(f"{params.views} view{'s' * (params.views != 1)} of {len(split)} images{ready}")
    rendered = Shards(augmented)

    def view_of(row: int, view: int) -> np.ndarray:
        if params.views:
            return rendered.read([view * len(split) + row])[0]
        start = row // split.at_once * split.at_once
        return chunks.render(start, view)[row - start]

    draw(split, view_of, max(params.views, 1), picture)


class Chunks:
    """The images of a split, `at_once` at a time, and their views: rendered, or ready in `parts`."""

    def __init__(self, split: PackedSplit, knobs: Mapping[str, float], seed: int, parts: Parts) -> None:
        self.split, self.knobs, self.seed, self.parts = split, knobs, seed, parts
        self.own = local()

    def rows(self, start: int) -> np.ndarray:
        return np.arange(start, min(start + self.split.at_once, len(self.split)))

    def view(self, start: int, view: int) -> np.ndarray:
        ready = self.parts.find(self.keys(start, view)) if self.parts.shards else None
        return self.render(start, view) if ready is None else ready

    def render(self, start: int, view: int) -> np.ndarray:
        rows = self.rows(start)
        ids = [self.split.ids[row] for row in rows]
        if not hasattr(self.own, "policy"):  # one for each thread, as Kornia keeps its last draw in it
            self.own.policy = view_policy(self.knobs, self.split.image_size)
        return render_views(self.split.images.read(rows), ids, view, self.seed, self.own.policy)

    def keys(self, start: int, view: int) -> list[bytes]:
        rows = self.rows(start)
        ids = [self.split.ids[row] for row in rows]
        chunk = key(CODE, self.split.images.read(rows).tobytes(), ids, view, self.seed, self.knobs)
        return [key(chunk, number) for number in range(len(rows))]


def draw(split: PackedSplit, view_of: Callable[[int, int], np.ndarray], views: int, picture: Path) -> None:
    """A column for each of eight images spread over the split: itself, and below it up to six of its views."""
    chosen, shown = np.linspace(0, len(split) - 1, min(8, len(split))).astype(int), range(min(views, 6))
    rows = [list(split.images.read(chosen)), *([view_of(row, view) for row in chosen] for view in shown)]
    names = [split.classes[label] for label in split.labels[chosen]]
    pictures.grid(rows, [names, *([f"view {view + 1}"] * len(chosen) for view in shown)], picture)


if __name__ == "__main__":
    main(prog_name="python -m stages.augment")
