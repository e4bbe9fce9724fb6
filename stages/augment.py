"""augment: render views of the training images ahead of training, once for many experiments."""

from pathlib import Path

import click
import numpy as np
import torch

from petals import pictures
from petals.augmentation import POLICY_KNOBS, render_views, view_policy
from petals.devices import keep_freed_memory
from petals.files import replacing
from petals.packed import PackedSplit, Shards, create_shards
from petals.parallel import in_threads
from petals.params import AugmentParams, load_params
from petals.tables import write_json
from stages.cli import progress, stage

CHUNK = 64  # images at a time; part of the result, since Kornia's last bits may depend on the batch


@stage(AugmentParams)
@click.argument("prepared", type=click.Path(path_type=Path))
@click.argument("augmented", type=click.Path(path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(1), help="Threads; one a core if not given.")
def main(prepared: Path, augmented: Path, picture: Path, workers: int | None) -> None:
    """Render views of the training images in PREPARED into AUGMENTED, and show some in PICTURE (PNG).

    With `views: 0` AUGMENTED only says which policy train is to apply anew every epoch.
    """
    params = load_params(AugmentParams)
    keep_freed_memory()
    torch.set_num_threads(1)  # the threads below each take a chunk
    split = PackedSplit(prepared)
    knobs = {knob: getattr(params, knob) for knob in POLICY_KNOBS}

    def render(start: int, view: int) -> np.ndarray:
        rows = np.arange(start, min(start + CHUNK, len(split)))
        ids = [split.ids[row] for row in rows]
        policy = view_policy(knobs, split.image_size)  # its own: Kornia keeps its last draw in it
        return render_views(split.images.read(rows), ids, view, params.seed, policy)

    with replacing(augmented) as folder:
        folder.mkdir()
        create_shards(folder, params.views * len(split), split.image_size)
        shards = Shards(folder, "r+")
        jobs = [(start, view) for view in range(params.views) for start in range(0, len(split), CHUNK)]
        rendered = in_threads(lambda job: (job, render(*job)), jobs, workers)
        for (start, view), images in progress(rendered, "views", "chunk", len(jobs)):
            shards.write(view * len(split) + start, images)
        write_json(folder / "meta.json", {"views": params.views, "policy": knobs})
    click.echo(f"{params.views} views of {len(split)} images")

    draw(split, render, max(params.views, 1), picture)


def draw(split: PackedSplit, render, views: int, picture: Path) -> None:
    """A row for each of eight images spread over the split: itself, and up to six of its views."""
    rows, captions = [], []
    for row in np.linspace(0, len(split) - 1, min(8, len(split))).astype(int):
        start, within = row // CHUNK * CHUNK, row % CHUNK
        shown = range(min(views, 6))
        rows.append([split.images.read([row])[0], *(render(start, view)[within] for view in shown)])
        captions.append([split.classes[split.labels[row]], *(f"view {view + 1}" for view in shown)])
    pictures.grid(rows, captions, picture)


if __name__ == "__main__":
    main(prog_name="python -m stages.augment")
