"""evaluate: score the model on the validation split, and predict the test split."""

from pathlib import Path

import click
import numpy as np

from petals import checkpoint, pictures
from petals.devices import set_up
from petals.models import weights
from petals.packed import PackedSplit
from petals.params import EvaluateParams, load_params
from petals.predicting import BATCH, probabilities
from petals.scores import calibration_bins, class_table, score
from petals.tables import write_csv, write_json
from stages.cli import progress, stage


@stage(EvaluateParams)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("test", type=click.Path(path_type=Path))
@click.argument("metrics", type=click.Path(path_type=Path))
@click.argument("plots", type=click.Path(path_type=Path))
@click.argument("submission", type=click.Path(path_type=Path))
def main(model: Path, val: Path, test: Path, metrics: Path, plots: Path, submission: Path) -> None:
    """Score MODEL (.safetensors, its .json beside it) on the images of VAL, and predict those of TEST.

    Writes the scores to METRICS (JSON); predictions.csv, per_class.csv, calibration.csv and mistakes.png to the
    folder PLOTS; and Kaggle's id,label to SUBMISSION, with no row where there is no test split.
    """
    params = load_params(EvaluateParams)
    device = set_up(params.device, params.threads)
    checkpoint.discard_finished()
    net, info = weights.load(model)
    net = net.to(device)
    classes = info["classes"]

    def predict(split: PackedSplit, name: str) -> np.ndarray:
        split.check(model, classes, info["image_size"])
        total = -(-len(split) // BATCH)
        return probabilities(
            net, split.batches(BATCH), device, len(classes), lambda each: progress(each, name, "batch", total)
        )

    validation = PackedSplit(val)
    scores = predict(validation, "val")
    labels, predicted = validation.labels, scores.argmax(1)
    results = score(labels, scores, classes)
    if results["classes_absent"]:
        absent = results["classes_absent"]
        shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        click.echo(f"macro F1 leaves out {len(absent)} classes that val has no image of: {shown}")

    write_csv(
        plots / "predictions.csv",
        ["id", "actual", "predicted", "confidence"],
        (
            (id_, classes[label], classes[guess], f"{each.max():.6f}")
            for id_, label, guess, each in zip(validation.ids, labels, predicted, scores, strict=True)
        ),
    )
    table = class_table(labels, predicted, classes)
    write_csv(plots / "per_class.csv", ["class", "f1", "precision", "recall", "support"], table)
    bins = calibration_bins(labels, scores)
    rows = ((f"{each['confidence']:.4f}", f"{each['accuracy']:.4f}", each["images"]) for each in bins)
    write_csv(plots / "calibration.csv", ["confidence", "accuracy", "images"], rows)
    draw_mistakes(validation, scores, plots / "mistakes.png")

    unlabelled = PackedSplit(test)
    guesses = predict(unlabelled, "test").argmax(1)
    write_csv(submission, ["id", "label"], zip(unlabelled.ids, guesses, strict=True))
    write_json(metrics, results)
    click.echo(
        f"macro F1 {results['macro_f1']:.4f}, accuracy {results['accuracy']:.4f} on {len(labels)} images;"
        f" {len(guesses)} rows in {submission}"
    )


def draw_mistakes(split: PackedSplit, scores: np.ndarray, path: Path) -> None:
    """The 24 most confident wrong predictions, each with what it is and what it was taken for."""
    predicted = scores.argmax(1)
    wrong = np.flatnonzero(predicted != split.labels)
    worst = wrong[np.argsort(-scores[wrong].max(1), kind="stable")][:24]
    tiles = list(split.images.read(worst)) if len(worst) else []
    captions = [
        f"{split.classes[split.labels[row]]}\nnot {split.classes[predicted[row]]}\n{scores[row].max():.0%} sure"
        for row in worst
    ]
    rows = range(0, len(tiles), 6)
    pictures.grid([tiles[at : at + 6] for at in rows], [captions[at : at + 6] for at in rows], path)


if __name__ == "__main__":
    main(prog_name="python -m stages.evaluate")
