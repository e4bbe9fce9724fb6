"""prepare: check, decode, resize and pack the photographs, and describe them."""

from pathlib import Path

import click
import numpy as np

from petals.card import Pair, class_counts, data_card, find_duplicates, most_alike
from petals.duplicates import groups_of
from petals.errors import PetalsError
from petals.files import replacing
from petals.holdout import set_aside
from petals.packed import PackedSplit, move_rows, rewrite
from petals.packing import Packed, pack, pack_part
from petals.parallel import pool
from petals.params import PrepareParams, load_params
from petals.parts import Part, parts_of
from petals.rawdata import check_ids, open_dataset
from petals.tables import write_csv, write_json
from stages.cli import progress, stage, workers_option
from stages.dividing import part_option

MOST_PAIRS = 10_000  # of near-duplicates in the table, which git keeps
DUPLICATES = ("split_a", "id_a", "split_b", "id_b", "correlation")
MANY = 0.1  # of the training images: so many near-duplicates of unseen ones are worth a look
NO_ROWS = np.empty(0, np.int64)


@stage(PrepareParams)
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("prepared", type=click.Path(path_type=Path))
@click.argument("card", type=click.Path(path_type=Path))
@click.argument("classes_csv", type=click.Path(path_type=Path))
@click.argument("duplicates_csv", type=click.Path(path_type=Path))
@workers_option("processes")
@part_option()
def main(
    data: Path,
    prepared: Path,
    card: Path,
    classes_csv: Path,
    duplicates_csv: Path,
    workers: int | None,
    part: Part | None,
) -> None:
    """Pack the photographs of DATA into PREPARED/train, val and test.

    DATA is Kaggle's TFRecord layout or one folder per class. Without a val split, val_fraction of each class is set
    aside for it, near-duplicates together. CARD (JSON) receives the data card, CLASSES_CSV the number of images by
    class, DUPLICATES_CSV the near-duplicate pairs, of each image the five nearest in each split that come after it, and
    10,000 pairs at most: all of the splits as they were found, though with `final: true` the images of val end up in
    PREPARED/train as well.
    """
    params = load_params(PrepareParams)
    dataset = open_dataset(data, params.image_size)
    for note in dataset.notes:
        click.echo(note)

    if part:
        with pool(workers) as work:
            count = pack_part(dataset, part, prepared, params.image_size, work, progress)
        click.echo(f"{part.folder(prepared)}: {count} images")
        return

    with replacing(prepared) as folder:
        packed = {}
        with pool(workers) as work:
            for split, each in pack(dataset, folder, params.image_size, work, progress, parts_of(prepared)):
                ready = f", {each.ready} of them from {parts_of(prepared)}" if each.ready else ""
                click.echo(f"{split}: {len(each.ids)} images{ready}")
                packed[split] = each
        check_ids([each for split in packed.values() for each in zip(split.ids, split.places, strict=True)])
        if not dataset.splits["val"]:
            packed["train"], packed["val"] = set_val_aside(packed["train"], folder, params.val_fraction)
            count = len(packed["val"].ids)
            click.echo(f"no val split: it gets {count} of the {count + len(packed['train'].ids)} images of train")

        pairs = find_duplicates(packed)
        learnt, unseen = (("train", "val"), ("test",)) if params.final else (("train",), ("val", "test"))
        leaks = {split: leaking(pairs, split, unseen) for split in learnt}
        found = sum(map(len, leaks.values()))
        if params.final or (found and params.drop_leaks):
            left_out = leaks if params.drop_leaks else dict.fromkeys(learnt, NO_ROWS)
            compose_train(folder, packed, left_out, dataset.classes, params.final)
        if params.final:
            count = len(packed["val"].ids) - (len(leaks["val"]) if params.drop_leaks else 0)
            click.echo(f"final: train holds {count} images of val too")

    if found:
        fate = "dropped from train" if params.drop_leaks else "kept: drop_leaks: true takes them out"
        click.echo(f"{found} training images are near-duplicates of {' or '.join(unseen)} images ({fate})")
        images = sum(len(packed[split].ids) for split in learnt)
        if found > MANY * images:
            click.echo(
                f"that is {found / images:.0%} of them; look at {duplicates_csv}: copies, or others that look alike?"
            )
    train, val = (class_counts(packed[split].labels, dataset.classes) for split in ("train", "val"))
    learnable = train + val if params.final else train
    if absent := names(dataset.classes, learnable == 0):
        click.echo(f"no training image of {absent}; add some")
    if not params.final and (unscored := names(dataset.classes, (train > 0) & (val == 0))):
        click.echo(f"no validation image of {unscored}: macro F1 will leave them out")
    write_json(card, data_card(dataset.classes, packed, pairs, found if params.drop_leaks else 0))
    write_csv(classes_csv, ["class", "train", "val"], zip(dataset.classes, train, val, strict=True))
    if len(pairs) > MOST_PAIRS:
        click.echo(
            f"{duplicates_csv} has {MOST_PAIRS:,} of {len(pairs):,} pairs: those across splits, then the most alike"
        )
    listed = most_alike(pairs, MOST_PAIRS)
    rows = ((each.split_a, each.id_a, each.split_b, each.id_b, f"{each.correlation:.3f}") for each in listed)
    write_csv(duplicates_csv, DUPLICATES, rows)


def names(classes: list[str], chosen: np.ndarray) -> str:
    """The first five of `classes` that are `chosen` (bool, C)."""
    found = [classes[label] for label in np.flatnonzero(chosen)]
    return ", ".join(found[:5]) + (", …" if len(found) > 5 else "")


def set_val_aside(train: Packed, folder: Path, fraction: float) -> tuple[Packed, Packed]:
    """Move `fraction` of the images of FOLDER/train to FOLDER/val; gives what is known of either."""
    rows = set_aside(train.labels, train.ids, groups_of(train.thumbnails), fraction)
    if not len(rows):
        raise PetalsError(
            "no val split, and no class has two images, of which one could be set aside for it; add images"
        )
    move_rows(folder / "train", rows, folder / "val")
    return train.at(np.setdiff1d(np.arange(len(train.ids)), rows)), train.at(rows)


def leaking(pairs: list[Pair], split: str, unseen: tuple[str, ...]) -> np.ndarray:
    """The rows of `split` that have a near-duplicate in one of `unseen`, which come after it in SPLITS."""
    rows = {pair.row_a for pair in pairs if pair.split_a == split and pair.split_b in unseen}
    return np.array(sorted(rows), dtype=np.int64)


def compose_train(
    folder: Path, packed: dict[str, Packed], left_out: dict[str, np.ndarray], classes: list[str], final: bool
) -> None:
    """Make FOLDER/train of the images of each split in `left_out`, less the rows that stand there."""
    kept = {split: np.setdiff1d(np.arange(len(packed[split].ids)), rows) for split, rows in left_out.items()}
    before = np.concatenate([packed[split].labels for split in kept])
    after = np.concatenate([packed[split].labels[rows] for split, rows in kept.items()])
    if len(emptied := np.setdiff1d(before, after)):
        name = classes[emptied[0]]
        raise PetalsError(
            f"drop_leaks: all training images of {name!r} are near-duplicates of unseen ones; "
            "add others, or set drop_leaks: false"
        )
    parts = [(PackedSplit(folder / split), rows) for split, rows in kept.items()]
    rewrite(folder / "train", parts, **({"final": True} if final else {}))


if __name__ == "__main__":
    main(prog_name="python -m stages.prepare")
