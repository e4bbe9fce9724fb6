"""The scores of a recipe over several seeds, as mean and deviation: python -m benchmarks.seeds."""

import statistics

import click

from benchmarks.runs import recipe_options, run_all, told
from petals.commands import Command


@click.command(cls=Command)
@recipe_options
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds 1, 2, … to run.")
def main(settings: dict[str, str], jobs: int, seeds: int) -> None:
    """Run the pipeline up to evaluate with each seed, in copies of the working tree, and print one row of a table.

    The minutes are those of the train stage.
    """
    if "seed" in settings:
        raise click.BadParameter("seed is set by --seeds", param_hint="-S")
    runs = []
    for seed, outcome in enumerate(run_all([{**settings, "seed": str(seed + 1)} for seed in range(seeds)], jobs), 1):
        scores, minutes = outcome.scores, outcome.seconds / 60
        click.echo(f"seed {seed}: macro F1 {scores['macro_f1']:.4f}, nll {scores['nll']:.4f}, {minutes:.1f} min")
        runs.append((scores["macro_f1"], scores["nll"], minutes))
    f1, nll, minutes = zip(*runs, strict=True)
    score = f"{statistics.mean(f1):.4f}" + (f" ± {statistics.stdev(f1):.4f}" if seeds > 1 else "")
    click.echo(f"| `{told(settings)}` | {score} | {statistics.mean(nll):.3f} | {statistics.mean(minutes):.1f} |")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.seeds")
