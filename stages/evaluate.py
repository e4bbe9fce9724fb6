"""evaluate: score the model on the validation split, and predict the test split."""

from pathlib import Path

import click
import numpy as np

from petals import checkpoint, distributed, pictures
from petals.calibration import cross_fitted, rescale
from petals.devices import describe, set_up
from petals.drift import Reference
from petals.errors import PetalsError
from petals.files import write_text
from petals.fingerprint import fingerprint
from petals.models import weights
from petals.packed import PackedSplit
from petals.params import EvaluateParams, load_params
from petals.robustness import curves, measure, summarise
from petals.scores import calibration_bins, class_table, score
from petals.tables import write_csv, write_json
from stages.cli import progress, stage

PREDICTIONS = ("id", "actual", "predicted", "confidence", "likelihood")
PER_CLASS = ("class", "f1", "precision", "recall", "support")
CALIBRATION = ("scaling", "confidence", "accuracy", "images")
ROBUSTNESS = ("corruption", "severity", "macro_f1")


@stage(EvaluateParams, several=True)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("test", type=click.Path(path_type=Path))
@click.argument("metrics", type=click.Path(path_type=Path))
@click.argument("robustness", type=click.Path(path_type=Path))
@click.argument("plots", type=click.Path(path_type=Path))
@click.argument("submission", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
def main(
    model: Path, val: Path, test: Path, metrics: Path, robustness: Path, plots: Path, submission: Path, reference: Path
) -> None:
    """Score MODEL (.safetensors, its .json beside it) on the images of VAL, and predict those of TEST.

    Writes the scores to METRICS (JSON), and those of corrupted images to ROBUSTNESS (JSON); predictions.csv,
    per_class.csv, calibration.csv, robustness.csv and mistakes.jpg to the folder PLOTS; and Kaggle's id,label to
    SUBMISSION, with no row where there is no test split. REFERENCE (JSON) keeps what the model makes of VAL, so that
    images in use can be compared with it for drift.

    A model that has learnt from VAL too (`final: true`) is not scored: METRICS says so, and PLOTS are empty. Its
    REFERENCE is of TEST, where there is one.

    Started by torchrun in several processes, these divide the images, and the first of them writes.
    """
    params = load_params(EvaluateParams)
    device = set_up(distributed.local_device(params.device), params.threads)
    group = distributed.join(device)
    if group.size > 1:
        group.check(fingerprint(params.model_dump() | {"device": describe(device)}, [val, test]))
    if group.main:
        checkpoint.discard_finished()
    with group.borrowed(model, model.with_suffix(".json")) as (weights_file, _):
        net, info = weights.load(weights_file)
    net = net.to(device)
    classes = info["classes"]

    def ask(split: PackedSplit, name: str) -> tuple[np.ndarray, np.ndarray]:
        split.check(model, classes, info["image_size"])
        found = group.answers(net, split, lambda batches, total: progress(batches, name, "batch", total))
        if not np.isfinite(found[0]).all():
            raise PetalsError(f"{model}: its answers to {split.folder} are not finite; lower lr, and train again")
        return found

    def predict(split: PackedSplit, name: str) -> np.ndarray:
        return ask(split, name)[0]

    validation, unlabelled = PackedSplit(val), PackedSplit(test)
    scores, features = ask(validation, "val")
    trials = [] if info["final"] else measure(val, params.robustness, predict)
    guesses, features_of_test = ask(unlabelled, "test")
    if not group.main:
        return

    if info["final"]:
        results = leave_empty(plots)
        said = f"final: the model has learnt from {val} too, so it scores nothing unseen and there is no macro F1"
    else:
        results = assess(validation, scores, info["temperature"], params.temperature == "fit", plots)
        said = f"macro F1 {results['macro_f1']:.4f}, accuracy {results['accuracy']:.4f} on {len(validation)} images"

    corrupted = summarise(trials)
    write_json(robustness, corrupted)
    write_csv(plots / "robustness.csv", ROBUSTNESS, curves(trials, results.get("macro_f1")))
    if trials:
        worst = corrupted["by_corruption"][0]
        click.echo(
            f"robustness: macro F1 {corrupted['mean_macro_f1']:.4f} on corrupted images,"
            f" worst {worst['mean_macro_f1']:.4f} ({worst['corruption']})"
        )

    write_csv(submission, ["id", "label"], zip(unlabelled.ids, guesses.argmax(1), strict=True))
    # What was learnt from looks surer than what is met in use.
    usual = (guesses, features_of_test) if info["final"] and len(guesses) else (scores, features)
    write_text(reference, Reference.of(*usual).to_json())
    write_json(metrics, results)
    if info["final"] and not len(guesses):
        click.echo(f"drift: no test split, so {reference} describes images that were learnt from; limits mean little")
    click.echo(f"{said}; {len(guesses)} rows in {submission}")


def assess(split: PackedSplit, scores: np.ndarray, temperature: float, fitted: bool, plots: Path) -> dict[str, object]:
    """Score probabilities at `temperature` (float32, N × C) on the labelled images of `split`; fill `plots`.

    A temperature that was `fitted` to these very images is fitted again, to others of them than those it scores.
    """
    labels, predicted, classes = split.labels, scores.argmax(1), split.classes
    before = rescale(scores, 1 / temperature)
    after = cross_fitted(labels, before) if fitted else scores
    results = score(labels, after, before, temperature, classes)
    if results["classes_absent"]:
        absent = results["classes_absent"]
        shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        click.echo(f"macro F1 leaves out classes that val has no image of ({len(absent)}): {shown}")

    likelihoods = after[np.arange(len(labels)), labels]  # of the actual class, as the negative log-likelihood counts it
    predictions = (
        (id_, classes[label], classes[guess], f"{each.max():.6f}", f"{likelihood:.6g}")
        for id_, label, guess, each, likelihood in zip(split.ids, labels, predicted, scores, likelihoods, strict=True)
    )
    write_csv(plots / "predictions.csv", PREDICTIONS, predictions)
    write_csv(plots / "per_class.csv", PER_CLASS, class_table(labels, predicted, classes))
    bins = (
        (scaling, f"{each['confidence']:.4f}", f"{each['accuracy']:.4f}", each["images"])
        for scaling, probabilities in (("before", before), ("after", after))
        for each in calibration_bins(labels, probabilities)
    )
    write_csv(plots / "calibration.csv", CALIBRATION, bins)
    draw_mistakes(split, scores, plots / "mistakes.jpg")
    return results


def leave_empty(plots: Path) -> dict[str, object]:
    """Write the files of `assess` with nothing in them."""
    for name, header in (("predictions", PREDICTIONS), ("per_class", PER_CLASS), ("calibration", CALIBRATION)):
        write_csv(plots / f"{name}.csv", header, [])
    pictures.grid([], [], plots / "mistakes.jpg")
    return {"final": True}


def draw_mistakes(split: PackedSplit, scores: np.ndarray, path: Path) -> None:
    """The 24 most confident errors, each with its id, its true and its predicted class."""
    predicted = scores.argmax(1)
    wrong = np.flatnonzero(predicted != split.labels)
    worst = wrong[np.argsort(-scores[wrong].max(1), kind="stable")][:24]
    tiles = list(split.images.read(worst)) if len(worst) else []
    captions = [
        f"{split.ids[row].rpartition('/')[2]}\ntrue: {split.classes[split.labels[row]]}\n"
        f"predicted: {split.classes[predicted[row]]}\nconfidence: {scores[row].max():.0%}"
        for row in worst
    ]
    rows = range(0, len(tiles), 6)
    pictures.grid([tiles[at : at + 6] for at in rows], [captions[at : at + 6] for at in rows], path)


if __name__ == "__main__":
    main(prog_name="python -m stages.evaluate")
