"""The scores of a recipe over several seeds, as mean and deviation: python -m benchmarks.seeds."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import click

from benchmarks.workspace import REPOSITORY, make_workspace
from petals.isolation import dvc, isolate
from petals.params import read_mapping

STAGES = ("prepare", "augment", "train", "evaluate")


@click.command()
@click.option("-S", "--set", "settings", multiple=True, metavar="KNOB=VALUE", help="As for dvc exp run; repeatable.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds 1, 2, … to run.")
def main(settings: tuple[str, ...], seeds: int) -> None:
    """Run the pipeline up to evaluate with each seed, in copies of the working tree, and print one row of a table.

    The minutes are those of the train stage. Robustness is left out unless it is set.
    """
    if malformed := [each for each in settings if "=" not in each]:
        raise click.BadParameter(f"{malformed[0]} is not KNOB=VALUE", param_hint="-S")
    knobs = {"robustness": "0"} | dict(each.split("=", 1) for each in settings)
    runs = []
    for seed in range(1, seeds + 1):
        scores, seconds = run({**knobs, "seed": str(seed)})
        click.echo(f"seed {seed}: macro F1 {scores['macro_f1']:.4f}, nll {scores['nll']:.4f}, {seconds / 60:.1f} min")
        runs.append((scores["macro_f1"], scores["nll"], seconds / 60))
    f1, nll, minutes = zip(*runs, strict=True)
    score = f"{statistics.mean(f1):.4f}" + (f" ± {statistics.stdev(f1):.4f}" if seeds > 1 else "")
    told = " ".join(f"-S {each}" for each in settings) or "the defaults"
    click.echo(f"| `{told}` | {score} | {statistics.mean(nll):.3f} | {statistics.mean(minutes):.1f} |")


def run(knobs: dict[str, str]) -> tuple[dict[str, float], float]:
    """Run the stages with `knobs`; gives the content of evaluate.json, and the seconds that train took."""
    with tempfile.TemporaryDirectory(prefix="petals-seeds-") as scratch:
        root = make_workspace(Path(scratch) / "petals", knobs)
        data = read_mapping(root / "params.yaml")["data"]
        if not (root / data).exists():  # not in git
            (root / data).parent.mkdir(parents=True, exist_ok=True)
            (root / data).symlink_to((REPOSITORY / data).resolve())
        for path in (REPOSITORY / "data" / "weights").glob("*.safetensors"):  # neither are these
            (root / "data" / "weights" / path.name).symlink_to(path.resolve())
        environment, seconds = isolate(root), 0.0
        for stage in STAGES:
            began = time.monotonic()
            done = dvc(root, environment, "repro", "--single-item", stage, capture_output=True)
            if done.returncode:
                raise click.ClickException(f"{stage} failed:\n{(done.stdout + done.stderr)[-2000:]}")
            if stage == "train":
                seconds = time.monotonic() - began
        return json.loads((root / "metrics" / "evaluate.json").read_text(encoding="utf-8")), seconds


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.seeds")
