"""`python -m petals.summary`: the scores of the last run in a few lines, and where to look further."""

import csv
import json
from pathlib import Path

import click
import numpy as np

from petals.commands import Command
from petals.errors import PetalsError
from petals.report.statistics import macro_f1_interval

LOOK = (
    ("plots/mistakes.jpg", "what it got wrong, and how sure it was"),
    ("plots/augmentation.jpg", "what it was trained on"),
    ("data/submission.csv", "its answers for the test split"),
    ("models/model.onnx", "the model, preprocessing inside"),
)


def summary(root: str | Path = ".") -> str:
    """A table of the scores in `root`/metrics; raises PetalsError where a run has left none, or they are damaged."""
    try:
        return _summary(Path(root))
    except (LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise PetalsError(
            f"metrics or plots/predictions.csv: not as the pipeline writes them ({type(error).__name__}: {error}); "
            "run dvc repro, or restore them from git"
        ) from None


def _summary(root: Path) -> str:
    card, scores, robustness, export = (
        read_metrics(root / "metrics" / f"{name}.json") for name in ("prepare", "evaluate", "robustness", "export")
    )
    images = card["images"]
    dropped = f" ({card['dropped_from_train']} left out of training)" if card.get("dropped_from_train") else ""
    final = scores.get("final", False)
    rows = [
        ("images", f"{images['train']} train, {images['val']} val, {images['test']} test{dropped}"),
        ("classes", f"{card['classes']}"),
        *(
            [("scores", "none, as it is trained on val too (final: true)")]
            if final
            else score_rows(scores, robustness, interval(root / "plots" / "predictions.csv"), card["classes"])
        ),
        ("ONNX agrees", f"{export['top1_agreement']:.2%}, {export['bytes'] / 1e6:.1f} MB"),
        ("int8 agrees", int8_row(export["int8"])),
    ]
    lines = [f"  {name:<20}{value}" for name, value in rows]
    empty = {"plots/mistakes.jpg": final, "data/submission.csv": not images["test"]}
    shown = [(path, what) for path, what in LOOK if not empty.get(path)]
    lines += ["", *(f"  {path:<25}{what}" for path, what in shown), ""]
    lines.append("  dvc plots show --open  curves and confusion; needs access to the internet")
    return "\n".join(lines)


def read_metrics(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PetalsError(f"{path}: not found; run dvc repro first") from None
    except ValueError as error:
        raise PetalsError(f"{path}: not JSON ({error}); run dvc repro") from None


def int8_row(int8: dict) -> str:
    if not int8["kept"]:
        loss = "loses more than max_f1_drop" if "macro_f1" in int8 else "changes too many answers"
        return f"left out: it {loss}"
    score = f", macro F1 {int8['macro_f1']:.4f}" if "macro_f1" in int8 else ""
    return f"{int8['top1_agreement']:.2%}, {int8['bytes'] / 1e6:.1f} MB{score}"


def score_rows(scores: dict, robustness: dict, interval: str, classes: int) -> list[tuple[str, str]]:
    rows = [("macro F1", f"{scores['macro_f1']:.4f}{interval}")]
    rows.append(("accuracy", f"{scores['accuracy']:.4f}"))
    if classes > 5:
        rows.append(("top5 accuracy", f"{scores['top5_accuracy']:.4f}"))
    rows.append(("calibration error", f"{scores['ece']:.4f}"))
    if robustness["severities"]:
        rows.append(("macro F1, corrupted", f"{robustness['mean_macro_f1']:.4f}"))
    return rows


def interval(predictions: Path) -> str:
    """How far macro F1 would move with other images, as words to put behind it; none without `predictions`."""
    if not predictions.exists():
        return ""
    with predictions.open(encoding="utf-8", newline="") as file:
        pairs = [(row["actual"], row["predicted"]) for row in csv.DictReader(file)]
    if not pairs:
        return ""
    names, labels = np.unique(pairs, return_inverse=True)
    found = macro_f1_interval(*labels.reshape(-1, 2).T, len(names))
    return f", {found}" if found else ""


@click.command(help=__doc__, cls=Command)
def main() -> None:
    click.echo(summary())


if __name__ == "__main__":
    main(prog_name="python -m petals.summary")
