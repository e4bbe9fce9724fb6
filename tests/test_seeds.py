"""The rows of several seeds and of cross-validation."""

import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from project import COLOURS, SMALL, tiny_folders
from sklearn.metrics import f1_score

from benchmarks import folds, runs, seeds
from benchmarks.runs import Outcome
from petals.params import read_mapping
from petals.rawdata import Record, open_dataset


def scores(f1: float) -> Outcome:
    return Outcome({"macro_f1": f1, "nll": 0.25}, [], 90.0)


def test_a_row_has_mean_and_deviation_over_the_seeds(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def run(root: Path) -> Outcome:
        settings = read_mapping(root / "params.yaml")
        asked.append([settings[knob] for knob in ("seed", "lr", "robustness")])
        return scores(0.9 + 0.01 * settings["seed"])

    monkeypatch.setattr(runs, "run", run)
    done = CliRunner().invoke(seeds.main, ["-S", "lr=1e-4", "-S", "epochs=2", "--seeds", "3"])
    assert done.exit_code == 0, done.output
    deviation = statistics.stdev([0.91, 0.92, 0.93])
    assert done.output.splitlines()[-1] == f"| `-S lr=1e-4 -S epochs=2` | 0.9200 ± {deviation:.4f} | 0.250 | 1.5 |"
    assert asked == [[1, 1e-4, 0], [2, 1e-4, 0], [3, 1e-4, 0]]


def test_one_seed_has_no_deviation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "run", lambda root: scores(0.9))
    done = CliRunner().invoke(seeds.main, ["--seeds", "1"])
    assert done.output.splitlines()[-1] == "| `the defaults` | 0.9000 | 0.250 | 1.5 |"


@pytest.mark.parametrize("command", [seeds.main, folds.main])
def test_a_knob_that_is_not_there_is_named(command: Callable):
    done = CliRunner().invoke(command, ["-S", "learning_rate=1"])
    assert done.exit_code == 2 and "params.yaml has no learning_rate" in done.output


@pytest.mark.parametrize("command", [seeds.main, folds.main])
def test_a_setting_without_a_value_is_refused(command: Callable):
    done = CliRunner().invoke(command, ["-S", "lr"])
    assert done.exit_code == 2 and "KNOB=VALUE" in done.output


@pytest.mark.parametrize("command", [seeds.main, folds.main])
def test_a_recipe_that_leaves_nothing_to_score_is_refused(command: Callable, tmp_path: Path):
    tiny_folders(tmp_path)
    done = CliRunner().invoke(command, ["-S", "final=true", "-S", f"data={tmp_path}"])
    assert done.exit_code == 2 and "final: true leaves nothing unseen to score" in done.output


def records_of(data: str, split: str) -> list[Record]:
    return [each for source in open_dataset(data, 32, 0.2).splits[split] for each in source.records()]


def test_every_labelled_image_is_scored_once_by_a_run_that_has_not_seen_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny_folders(tmp_path / "data")
    names, actual, guesses = list(COLOURS), [], []

    def run(root: Path) -> Outcome:
        data = read_mapping(root / "params.yaml")["data"]
        val, train = (records_of(data, split) for split in ("val", "train"))
        assert {each.id for each in val}.isdisjoint(each.id for each in train)
        assert len(val) + len(train) == 24 and len({each.label for each in val}) == 3
        answers = []
        for number, each in enumerate(val):
            guess = each.label if number % 5 else 0  # wrong for some
            answers.append({"actual": names[each.label], "predicted": names[guess]})
            actual.append(each.label)
            guesses.append(guess)
        return Outcome({"macro_f1": 0.5, "nll": 0.1 * len(val)}, answers, 60.0)

    monkeypatch.setattr(runs, "run", run)
    written = tmp_path / "answers.csv"
    options = ["-S", f"data={tmp_path / 'data'}", "--folds", "4", "--answers", str(written)]
    done = CliRunner().invoke(folds.main, options)
    assert done.exit_code == 0, done.output
    assert Counter(actual) == {0: 8, 1: 8, 2: 8}
    wrong = np.sum(np.array(actual) != guesses)
    pairs = zip(actual, guesses, strict=True)
    score = f1_score(actual, guesses, average="macro")
    line = f"| {score:.4f} | {wrong} mistakes of 24 | 0.600 | 1.0 |"
    assert wrong and done.output.splitlines()[-1].endswith(line)
    assert written.read_text().splitlines() == ["actual,predicted", *(f"{names[a]},{names[b]}" for a, b in pairs)]


def test_classes_are_divided_evenly_and_what_is_alike_stays_together():
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 400)
    groups = np.arange(400)
    for label in range(6):
        rows = np.flatnonzero(labels == label)
        groups[rows[1:6]] = rows[0]  # six near-duplicates in each class
    fold = folds.divide(labels, groups, 5)
    for group in set(groups):
        assert len(set(fold[groups == group])) == 1
    for label in range(6):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    counts = np.bincount(fold, minlength=5)
    assert counts.max() - counts.min() <= 1


def test_near_duplicates_are_alike_across_a_chain_of_them(tmp_path: Path):
    tiny_folders(tmp_path, each=3)
    records = records_of(str(tmp_path), "train") + records_of(str(tmp_path), "val")
    again = [Record(f"copy of {each.id}", each.label, each.data, each.where) for each in records[:2]]
    groups = folds.alike(records + again + again[:1], 32)
    assert len(set(groups)) == len(records)
    assert groups[0] == groups[len(records)] == groups[-1] and groups[1] == groups[len(records) + 1]


def test_a_recipe_is_run_up_to_its_scores(tmp_path: Path):
    tiny_folders(tmp_path / "photographs")
    settings = SMALL | {"epochs": 1, "robustness": 0, "data": str(tmp_path / "photographs")}
    (outcome,) = runs.run_all([{knob: str(value) for knob, value in settings.items()}], jobs=1)
    assert 0 <= outcome.scores["macro_f1"] <= 1 and outcome.seconds > 0
    assert Counter(row["actual"] for row in outcome.answers) == dict.fromkeys(COLOURS, 2)


def test_a_stage_that_fails_is_named_with_what_it_said(tmp_path: Path):
    done = CliRunner().invoke(seeds.main, ["-S", f"data={tmp_path}", "--seeds", "1"])
    assert done.exit_code == 1 and "prepare failed" in done.output and "no class folder" in done.output
