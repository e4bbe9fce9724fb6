"""Search for better settings: python -m petals.tune."""

import signal
from pathlib import Path

import click
from filelock import FileLock, Timeout
from tqdm import tqdm

from petals.commands import Command
from petals.files import STATE
from petals.tune.results import best, pictures, table
from petals.tune.search import Stopped, Tuner
from petals.tune.space import load_search
from petals.tune.study import open_study


def plain_name(context: click.Context, option: click.Parameter, name: str) -> str:
    if not name.replace("_", "").isalnum() or not name.isascii():
        raise click.BadParameter(f"{name!r} should be letters, digits and _: experiments are named after it")
    return name


def say(line: str) -> None:
    with tqdm.external_write_mode():  # not into the bar
        click.echo(line)


@click.command(cls=Command)
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1),
              help="Total number of trials, with those of earlier runs of the search.")  # fmt: skip
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Number of trials at a time.")
@click.option("-S", "--set-param", "settings", multiple=True, metavar="KNOB=VALUE",
              help="Set a knob for all trials; one that is searched starts there. Repeatable.")  # fmt: skip
@click.option("--name", default="tune", show_default=True, callback=plain_name,
              help="Name of the search; its trials are NAME-000, …")  # fmt: skip
@click.option("--space", default="tune.yaml", show_default=True, type=click.Path(path_type=Path),
              help="What is searched, where, and for what.")  # fmt: skip
def main(trials: int, jobs: int, settings: tuple[str, ...], name: str, space: Path) -> None:
    """Search the space of tune.yaml for the settings with the best score.

    Optuna proposes. Each trial is an experiment in DVC's queue, to be shown, compared, applied and pushed like any
    other. The first has the settings of params.yaml, where the space holds them. A trial whose curve is below the
    median of the others is stopped; failed trials are listed with the reason.

    The study is kept in .petals/tune/NAME. A search that was stopped or killed goes on when the same command is
    given again, and a larger --trials adds to it. Experiments start from the working tree as it is: leave the code
    alone while they run, or search in a clone. Whatever else waits in DVC's queue is run by the same workers.
    """
    folder = STATE / "tune" / name
    try:
        search, values = load_search(space, settings)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            study = open_study(folder / "study.journal", name, search)
            tuner = Tuner(study, search, values, jobs, say)
            tuner.experiments.check_data(values["data"])
            with tqdm(total=trials, unit="trial", disable=None, leave=False) as bar:
                tuner.run(trials, lambda done: bar.update(done - bar.n))
            click.echo(f"\n{table(study, search)}\n\n{best(study, search)}\n")
            for path in pictures(study, search, folder):
                click.echo(f"  {path}")
    except Timeout:
        raise click.ClickException(f"the search {name!r} is running already; give another --name, or wait") from None
    except Stopped as stopped:
        told = signal.Signals(stopped.signum).name
        click.echo(f"stopped by {told}; the same command goes on from here", err=True)
        raise SystemExit(128 + stopped.signum) from None


if __name__ == "__main__":
    main(prog_name="python -m petals.tune")
