"""The rows of several seeds and of cross-validation."""

import csv
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from project import COLOURS, SMALL, picture, tiny_folders
from sklearn.metrics import f1_score

from benchmarks import folds, runs, seeds, workspace
from benchmarks.runs import Outcome
from petals.images import decode, square
from petals.params import read_mapping
from petals.rawdata import Record, open_dataset
from petals.resizing import bicubic


@pytest.fixture(autouse=True)
def defaults(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe that `-S` changes."""
    monkeypatch.setattr(workspace, "PARAMS", params)


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


def test_a_seed_beside_the_seeds_is_refused():
    done = CliRunner().invoke(seeds.main, ["-S", "seed=5"])
    assert done.exit_code == 2 and "seed is set by --seeds" in done.output


@pytest.mark.parametrize("command", [seeds.main, folds.main])
def test_data_that_are_not_there_are_named(command: Callable, tmp_path: Path):
    missing = tmp_path / "none" / "at all"
    done = CliRunner().invoke(command, ["-S", f"data={missing}"])
    assert done.exit_code and str(missing) in done.output.replace("\n", "") and not missing.parent.exists()


@pytest.mark.parametrize("command", [seeds.main, folds.main])
def test_a_recipe_that_leaves_nothing_to_score_is_refused(command: Callable):
    done = CliRunner().invoke(command, ["-S", "final=true"])
    assert done.exit_code == 2 and "final: true leaves nothing unseen to score" in done.output


def records_of(data: str, split: str) -> list[Record]:
    return [each for source in open_dataset(data, 32).splits[split] for each in source.records()]


def test_every_labelled_image_is_scored_once_by_a_run_that_has_not_seen_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny_folders(tmp_path / "data")
    daisy = tmp_path / "data" / "daisy"
    (daisy / "again.jpg").write_bytes((daisy / "daisy 3.jpg").read_bytes())
    names = list(COLOURS)

    def run(root: Path) -> Outcome:
        data = read_mapping(root / "params.yaml")["data"]
        val, train = (records_of(data, split) for split in ("val", "train"))
        ids = {each.id for each in val}
        assert len(val) + len(train) == 25 and ids.isdisjoint(each.id for each in train)
        assert {each.label for each in val} == {0, 1, 2} and len(ids & {"again", "daisy 3"}) in (0, 2)
        guesses = [each.label if number % 5 else 0 for number, each in enumerate(val)]  # some are wrong
        answers = [
            {"id": each.id, "actual": names[each.label], "predicted": names[guess]}
            for each, guess in zip(val, guesses, strict=True)
        ]
        return Outcome({"macro_f1": 0.5, "nll": 0.1 * len(val)}, answers, 60.0)

    monkeypatch.setattr(runs, "run", run)
    written = tmp_path / "answers.csv"
    options = ["-S", f"data={tmp_path / 'data'}", "--folds", "4", "--jobs", "2", "--answers", str(written)]
    done = CliRunner().invoke(folds.main, options)
    assert done.exit_code == 0, done.output
    assert "25 labelled images, 2 of them near-duplicates" in done.output
    with written.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == len(rows) == 25
    actual, guesses = ([row[column] for row in rows] for column in ("actual", "predicted"))
    score = f1_score(actual, guesses, average="macro")
    wrong = sum(a != b for a, b in zip(actual, guesses, strict=True))
    sizes = [int(line.split(" of ")[1].split(",")[0]) for line in done.output.splitlines() if line.startswith("fold")]
    assert len(set(sizes)) > 1
    nll = sum(0.1 * size * size for size in sizes) / 25
    assert wrong and done.output.splitlines()[-1].endswith(
        f"| {score:.4f} | {wrong} mistakes of 25 | {nll:.3f} | 1.0 |"
    )


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


def test_large_photographs_are_made_small_and_prepare_gives_the_same_pixels(tmp_path: Path):
    tiny_folders(tmp_path / "data", each=2)
    large = tmp_path / "data" / "daisy" / "large.jpg"
    large.write_bytes(picture(COLOURS["daisy"], 1, size=700))
    settings = {"data": str(tmp_path / "data"), "image_size": "64"}
    (one, _) = folds.fold_sets(settings, 2, tmp_path)
    originals = {each.id: each for each in records_of(str(tmp_path / "data"), "train")}
    found = {each.id: each for split in ("train", "val") for each in records_of(str(one), split)}
    assert found.keys() == originals.keys() and len(found["large"].data) < 64 * 64 * 3 < large.stat().st_size
    for name, original in originals.items():
        pixels = [square(decode(each.data, name, 64), 64, bicubic) for each in (found[name], original)]
        assert np.array_equal(*pixels)


def test_many_copies_of_one_image_stay_together(tmp_path: Path):
    tiny_folders(tmp_path / "data", each=3)
    daisy = tmp_path / "data" / "daisy"
    for number in range(8):
        (daisy / f"copy {number}.jpg").write_bytes((daisy / "daisy 0.jpg").read_bytes())
    sets = folds.fold_sets({"data": str(tmp_path / "data")}, 3, tmp_path)
    copies = [[each.id for each in records_of(str(folder), "val") if "copy" in each.id] for folder in sets]
    assert sorted(map(len, copies)) == [0, 0, 8]


@pytest.mark.slow
def test_a_recipe_is_run_up_to_its_scores(tmp_path: Path):
    tiny_folders(tmp_path / "photographs")
    settings = SMALL | {"epochs": 1, "robustness": 0, "data": str(tmp_path / "photographs")}
    (outcome,) = runs.run_all([{knob: str(value) for knob, value in settings.items()}], jobs=1)
    assert 0 <= outcome.scores["macro_f1"] <= 1 and outcome.seconds > 0
    assert Counter(row["actual"] for row in outcome.answers) == dict.fromkeys(COLOURS, 2)


def test_a_stage_that_fails_is_named_with_what_it_said(tmp_path: Path):
    done = CliRunner().invoke(seeds.main, ["-S", f"data={tmp_path}", "--seeds", "1"])
    assert done.exit_code == 1 and "prepare failed" in done.output and "no class folder" in done.output
