"""What a search has found: a table, the command that takes the best, and pictures."""

import statistics
import warnings
from pathlib import Path

import matplotlib
import optuna
from optuna.trial import FrozenTrial, TrialState

from petals.files import replacing
from petals.tune.space import Search
from petals.tune.study import complete, counted, names

matplotlib.use("Agg")  # into files, with or without a screen

from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

ORDER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)


def table(study: optuna.Study, search: Search) -> str:
    """The trials in markdown: scores from the best down, then those given up, then those that failed, and why."""
    sign = -1 if search.direction == "maximize" else 1
    trials = sorted(counted(study), key=lambda each: (ORDER.index(each.state), sign * (each.value or 0), each.number))
    header = ["experiment", search.objective.partition(":")[2], *search.space]
    rows = []
    for each in trials:
        settings = each.user_attrs.get("settings", each.params)
        name = f"`{names(study, search, each.number)[0]}`"
        rows.append([name, outcome(each), *(str(settings.get(knob, "")) for knob in search.space)])
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in (header, rule, *rows)]
    failed = [each for each in trials if each.state == TrialState.FAIL]
    why = [f"{names(study, search, each.number)[0]} failed: {each.user_attrs['error']}" for each in failed]
    return "\n".join([*lines, *([""] if why else []), *why])


def outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        scores = trial.user_attrs["scores"]
        return f"{trial.value:.4f}" + (f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else "")
    if trial.state == TrialState.PRUNED:
        return f"given up after epoch {max(trial.intermediate_values, default=0) + 1}"
    return "failed" if trial.state == TrialState.FAIL else "not ended"


def best(study: optuna.Study, search: Search) -> str:
    """The best trial, and the command that puts it into the working tree: with its first seed, not its luckiest."""
    found = study.best_trial
    (name, *others) = names(study, search, found.number)
    seeds = f", the mean of {len(others) + 1} seeds; this takes the first" if others else ""
    return f"best: {search.objective} {found.value:.4f}{seeds}\n\n  dvc exp apply {name}"


def pictures(study: optuna.Study, search: Search, folder: Path) -> list[Path]:
    """Draw the history of the scores, the curves, and how much each knob mattered, where there is enough to draw."""
    from optuna.visualization import matplotlib as draw

    score = search.objective.partition(":")[2]
    wanted = {
        "history.png": (
            lambda: draw.plot_optimization_history(study, target_name=score),
            "Score by trial",
            "trial",
            score,
        )
    }
    if any(each.intermediate_values for each in counted(study)):
        title = "Curves of the trials; those that end early were given up"
        wanted["curves.png"] = (lambda: draw.plot_intermediate_values(study), title, "epoch, from 0", search.curve)
    if len({each.value for each in complete(study)}) > 1 and len(search.space) > 1:
        title = "How much each knob mattered (PED-ANOVA)"
        wanted["importance.png"] = (lambda: draw.plot_param_importances(study, target_name=score), title, "share", "")
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        for name, (plot, title, x_label, y_label) in wanted.items():
            axes = plot()
            axes.set_title("", loc="left")  # where optuna puts the title of one of them
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
            if name != "importance.png":
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            with replacing(folder / name) as partial:
                axes.figure.savefig(partial, format="png", dpi=110, bbox_inches="tight")
            pyplot.close(axes.figure)
    return [folder / name for name in wanted]
