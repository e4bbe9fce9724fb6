"""The score of a recipe on all labelled images (cross-validation): python -m benchmarks.folds."""

import io
import statistics
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from PIL import Image

from benchmarks.runs import recipe_options, run_all, told
from benchmarks.workspace import REPOSITORY, put_params
from petals.commands import Command
from petals.duplicates import groups_of, thumbnails
from petals.images import decode, square
from petals.params import PrepareParams, load_params, read_mapping
from petals.rawdata import Record, open_dataset
from petals.resizing import bicubic
from petals.scores import macro_f1
from petals.seeding import seed_for
from petals.tables import write_csv
from petals.tfrecord import encode_example, write_records

SIZE = 224  # px, at which images are compared, whatever size a recipe has


@click.command(cls=Command)
@recipe_options
@click.option("--folds", default=5, show_default=True, type=click.IntRange(2), help="Parts, each left out once.")
@click.option(
    "--answers", type=click.Path(dir_okay=False, path_type=Path), help="CSV to write with the answer to each image."
)
def main(settings: dict[str, str], jobs: int, folds: int, answers: Path | None) -> None:
    """Divide the images of train and val into parts, and score each by a run that learns from the others.

    A validation split of two hundred images cannot tell recipes apart that differ by less than two points; all labelled
    images tell more. Classes are divided evenly, and near-duplicates stay together: with one of them in train, the
    other is no test. Temperature and adjustment of rare classes are fitted to the part that is left out, as they are to
    val.

    Prints one row of a table: macro F1 over all images, mistakes, and the mean nll and minutes of the train stage.
    Recipes with the same photographs are divided alike, so that their rows of --answers pair.
    """
    with tempfile.TemporaryDirectory(prefix="petals-folds-") as scratch:
        sets = fold_sets(settings, folds, Path(scratch))
        rows, nlls, minutes = [], [], []
        for number, outcome in enumerate(run_all([{**settings, "data": str(each)} for each in sets], jobs), 1):
            nll, took = outcome.scores["nll"], outcome.seconds / 60
            click.echo(f"fold {number}: {mistakes(outcome.answers)}, nll {nll:.4f}, {took:.1f} min")
            rows += outcome.answers
            nlls += [nll] * len(outcome.answers)
            minutes.append(took)
    _, labels = np.unique([[row["actual"], row["predicted"]] for row in rows], return_inverse=True)
    score = macro_f1(*labels.reshape(len(rows), 2).T)
    found = f"{score:.4f} | {mistakes(rows)} | {statistics.mean(nlls):.3f} | {statistics.mean(minutes):.1f}"
    click.echo(f"| `{told(settings)}` | {found} |")
    if answers:
        write_csv(answers, list(rows[0]), (each.values() for each in rows))


def mistakes(rows: list[dict[str, str]]) -> str:
    return f"{sum(row['actual'] != row['predicted'] for row in rows)} mistakes of {len(rows)}"


def fold_sets(settings: dict[str, str], folds: int, folder: Path) -> list[Path]:
    """Write a data set for each fold below `folder`, whose val is that fold; raises PetalsError for data at fault.

    Its images have the recipe's size at most, as photographs of many megapixels would fill memory and disk.
    """
    put_params(folder, settings)
    params, data = load_params(PrepareParams, folder / "params.yaml"), read_mapping(folder / "params.yaml")["data"]
    dataset = open_dataset(REPOSITORY / data, params.image_size)
    sources = [source for split in ("train", "val") for source in dataset.splits[split]]
    small = [shrunk(each, params.image_size) for source in sources for each in source.records()]
    records, groups = [each for each, _ in small], groups_of(np.concatenate([thumbnail for _, thumbnail in small]))
    twins = (np.bincount(groups)[groups] > 1).sum()
    click.echo(f"{len(records)} labelled images, {twins} of them near-duplicates of others")
    fold = divide(np.array([each.label for each in records]), groups, folds)
    return [write_set(folder / f"{number}", dataset.classes, records, fold == number) for number in range(folds)]


def shrunk(record: Record, size: int) -> tuple[Record, np.ndarray]:
    """`record` as a PNG of the pixels that prepare gives it at `size`, or as it is where that has fewer bytes.

    And its thumbnail (1 × 16 × 16 × 3), the same for all recipes.
    """
    out = io.BytesIO()
    Image.fromarray(square(decode(record.data, record.where, size), size, bicubic)).save(out, "PNG")
    compared = square(decode(record.data, record.where, SIZE), SIZE, bicubic)
    return replace(record, data=min(record.data, out.getvalue(), key=len)), thumbnails(compared[None])


def divide(labels: np.ndarray, groups: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each image (int, N): what has one number in `groups` in one fold, each class over all of them.

    `groups` (int, N) is as `groups_of` gives it: the number of a group is the row of one of its images. Class by class,
    by that image's label in `labels` (int, N), groups come in an order of chance, each to the fold that has the fewest
    images of its class, that of its first image, or of all where these are as many.
    """
    fold = np.empty(len(labels), int)
    here: Counter[tuple[int, int]] = Counter()
    held: Counter[int] = Counter()
    for group in sorted(set(groups), key=lambda each: (labels[each], seed_for("fold", int(each)))):
        rows = np.flatnonzero(groups == group)
        label = labels[rows[0]]
        chosen = min(range(folds), key=lambda number: (here[number, label], held[number], number))
        here[chosen, label] += len(rows)
        held[chosen] += len(rows)
        fold[rows] = chosen
    return fold


def write_set(folder: Path, classes: list[str], records: list[Record], out: np.ndarray) -> Path:
    """Write `records` as a data set in Kaggle's layout: those that are `out` (bool, N) are val, the others train.

    The size in its names means nothing: there is one only, so that prepare takes it for any `image_size`.
    """
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for split, rows in (("train", np.flatnonzero(~out)), ("val", np.flatnonzero(out))):
        path = folder / "tfrecords-jpeg-512x512" / split / f"00-512x512-{len(rows)}.tfrec"
        path.parent.mkdir(parents=True)
        chosen = (records[row] for row in rows)
        write_records(
            path, (encode_example({"image": each.data, "id": each.id.encode(), "class": each.label}) for each in chosen)
        )
    return folder


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.folds")
