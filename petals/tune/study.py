"""Optuna's study in a file, and its trials as the search sees them."""

import os
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from petals.errors import PetalsError
from petals.tune.space import Search


def open_study(path: Path, name: str, search: Search) -> optuna.Study:
    """The study in the journal at `path`, which is made if it is not there; PetalsError where it is damaged."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        whole = path.read_bytes().rpartition(b"\n")
        if whole[2]:  # a kill cut the last line short
            os.truncate(path, len(whole[0]) + len(whole[1]))
    Path(f"{path}.lock").unlink(missing_ok=True)  # of a search that was killed; petals.tune holds a lock of its own
    pruner = optuna.pruners.MedianPruner(n_startup_trials=search.startup, n_warmup_steps=search.curve_from - 1)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=storage, study_name=name, direction=search.direction, pruner=pruner, load_if_exists=True
        )
    except (ValueError, TypeError, LookupError, AssertionError):  # what Optuna makes of a line that it did not write
        raise PetalsError(f"{path}: damaged, so this search cannot go on; begin another with --name") from None


def names(study: optuna.Study, search: Search, number: int) -> list[str]:
    """The experiments of trial `number`, one a seed."""
    name = f"{study.study_name}-{number:03}"
    return [name] if len(search.seeds) == 1 else [f"{name}-seed{seed}" for seed in search.seeds]


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were begun, but for those that were lost and are tried again."""
    trials = study.get_trials(deepcopy=False)
    return [each for each in trials if each.state != TrialState.WAITING and "lost" not in each.user_attrs]


def complete(study: optuna.Study) -> list[FrozenTrial]:
    return [each for each in counted(study) if each.state == TrialState.COMPLETE]
