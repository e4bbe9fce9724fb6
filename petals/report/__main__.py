"""Print the report: python -m petals.report BASE [HEAD]."""

import math
import sys

import click

from petals.commands import show_all_names
from petals.errors import PetalsError
from petals.report.page import report
from petals.report.revisions import resolve


@click.command()
@click.argument("base")
@click.argument("head", default="HEAD")
@click.option(
    "--fail-under",
    type=float,
    metavar="DELTA",
    help="Exit with 1 where the upper end of the 95 % interval of macro F1, head − base, lies below DELTA, "
    "such as -0.01. The report is printed all the same.",
)
def main(base: str, head: str, fail_under: float | None) -> None:
    """Print in markdown what changed between the revisions BASE and HEAD: scores and whether they moved by
    more than other images explain, settings, data, stages, classes, training curves.

    Everything is read from git, so nothing needs to be pulled. The two revisions are compared as they
    stand; to see what a branch did since it left main, name the merge base: "$(git merge-base main HEAD)".

    Exit code: 0; 1 by --fail-under; 2 for a revision that does not exist. Where the two sides cannot be
    compared, as on a first run, or are too large for an interval, --fail-under does not apply and says so
    on standard error.
    """
    show_all_names()
    try:
        if fail_under is not None and not math.isfinite(fail_under):
            raise PetalsError(f"--fail-under should be a finite number such as -0.01, but is {fail_under}")
        result = report(resolve(base), resolve(head))
    except PetalsError as error:
        failure = click.ClickException(str(error))
        failure.exit_code = 2  # 1 is the answer of --fail-under
        raise failure from None
    click.echo(result.markdown, nl=False)
    if fail_under is None:
        return
    if result.interval is None:
        click.echo("--fail-under does not apply: there is no interval to judge by.", err=True)
    elif result.interval.high < fail_under:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m petals.report")
