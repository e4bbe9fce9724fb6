"""The report on small repositories with known predictions: what it says, what it survives, its exit code."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY
from markdown_it import MarkdownIt
from scipy.stats import chi2
from sklearn.metrics import accuracy_score, f1_score
from test_report_markdown import HOSTILE, inlines

from petals.errors import PetalsError
from petals.report import statistics
from petals.report.__main__ import main
from petals.report.comparison import compare
from petals.report.page import MOST_CHARACTERS
from petals.report.revisions import resolve
from petals.report.sides import _predictions
from petals.scores import EPSILON

CLASSES = ["daisy", "iris", "rose", "wild rose"]


class Repository:
    """A git repository in which each commit holds the given files and no others."""

    def __init__(self, root: Path):
        self.root = root
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, files: dict[str, str], branch: str | None = None) -> str:
        self.git("rm", "-rq", "--ignore-unmatch", ".")
        for path, text in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="")
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a run")
        if branch:
            self.git("branch", branch)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.com")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)
    return Repository(tmp_path)


def run_files(actual, predicted, ids=None, curves=None, likelihoods=None, **params) -> dict[str, str]:
    """What git keeps of a run that predicted this: everything the report reads."""
    ids = ids or [f"image-{position}" for position in range(len(actual))]
    rows = [f'"{i}","{a}","{p}",0.750000' for i, a, p in zip(ids, actual, predicted, strict=True)]
    header = "id,actual,predicted,confidence"
    if likelihoods is not None:  # older runs have none
        header, rows = (
            f"{header},likelihood",
            [f"{row},{each:.6g}" for row, each in zip(rows, likelihoods, strict=True)],
        )
    scores = {
        "macro_f1": round(f1_score(actual, predicted, labels=sorted(set(actual)), average="macro"), 6),
        "accuracy": round(accuracy_score(actual, predicted), 6),
        "top5_accuracy": 0.9876,
        "nll": 0.4321,
        "ece": 0.0123,
        "calibration": {"temperature": 0.75, "nll_before": 0.5432, "ece_before": 0.1234},
        "f1": [{"class": name, "f1": 0.5} for name in CLASSES],
    }
    params = {"lr": 0.001, "epochs": 4} | params
    files = {
        "metrics/evaluate.json": json.dumps(scores),
        "metrics/prepare.json": json.dumps({"count": {"train": 100, "val": len(actual)}, "size": 64}),
        "plots/predictions.csv": "\n".join([header, *rows]) + "\n",
        "params.yaml": "".join(f"{name}: {value}  # why\n" for name, value in params.items()),
        "dvc.lock": lock(params),
        "data/sample.dvc": "outs: [{path: sample, md5: aaa.dir}]\n",
    }
    for name, values in (curves or {"train/loss": [2.0, 1.0, 0.5, 0.25]}).items():
        points = "".join(f"{step}\t{value}\n" for step, value in enumerate(values))
        files[f"plots/train/{name}.tsv"] = f"step\t{name.split('/')[-1]}\n{points}"
    return files


def lock(params: dict, model_size: int = 18_000_000) -> str:
    """A lock of two stages; a change of lr re-runs train alone."""
    return f"""schema: '2.0'
stages:
  prepare:
    cmd: python -m stages.prepare
    deps: [{{path: data/sample, hash: md5, md5: aaa.dir, size: 4000000, nfiles: 3}}]
    outs: [{{path: data/prepared, hash: md5, md5: bbb.dir, size: 100}}]
  train:
    cmd: python -m stages.train
    deps: [{{path: data/prepared, hash: md5, md5: bbb.dir, size: 100}}]
    params: {{params.yaml: {{lr: {params["lr"]}}}}}
    outs: [{{path: models/model.safetensors, hash: md5, md5: m{params["lr"]}, size: {model_size}}}]
"""


def labels(rng: np.random.Generator, count: int, right: float) -> tuple[list[str], list[str]]:
    actual = rng.choice(CLASSES, count, p=[0.55, 0.25, 0.15, 0.05])
    predicted = np.where(rng.random(count) < right, actual, rng.choice(CLASSES, count))
    return actual.tolist(), predicted.tolist()


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def report(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# The page


def test_a_better_branch_is_said_to_be_better(repository):
    rng = np.random.default_rng(0)
    actual, base = labels(rng, 400, 0.6)
    head = np.where(rng.random(400) < 0.6, actual, base).tolist()
    repository.commit(run_files(actual, base), "before")
    repository.commit(run_files(actual, head, lr=0.01, mixup=0.2))
    page = report("before")

    old, new = (f1_score(actual, side, average="macro") for side in (base, head))
    first = page.splitlines()[0]
    assert first.startswith(f"## macro F1 {old:.3f} → {new:.3f} (+{new - old:.3f}, 95 % interval +0.")
    assert first.endswith("better, more than other images explain")
    old, new = (accuracy_score(actual, side) for side in (base, head))
    assert f"| accuracy | {old:.4f} | {new:.4f} | +{new - old:.4f} | +0." in page
    assert "| negative log-likelihood (lower is better) | 0.4321 | 0.4321 | 0.0000 |" in page
    assert "| … calibration error before temperature scaling | 0.1234 | 0.1234 | 0.0000 |" in page
    assert "| `lr` | `0.001` | `0.01` |\n| `mixup` | – | `0.2` |" in page
    assert "| `train` | params `lr`; outs `models/model.safetensors` |" in page
    assert "Unchanged: data card, size of the model." in page and "Model:" not in page

    won = sum(b != a == h for a, b, h in zip(actual, base, head, strict=True))
    lost = sum(b == a != h for a, b, h in zip(actual, base, head, strict=True))
    p = chi2.sf((abs(won - lost) - 1) ** 2 / (won + lost), df=1)
    assert f"{won} images newly right, {lost} newly wrong: McNemar's test gives p = {p:.2g}" in page
    per_class = zip(CLASSES, *(f1_score(actual, s, average=None) for s in (base, head)), strict=True)
    for name, old, new in per_class:
        assert re.search(rf"\| `{name}` \| {actual.count(name)} \| {old:.3f} \| {new:.3f} \| \+", page)

    assert report("HEAD", "before").splitlines()[0].endswith("worse, more than other images explain")
    assert report("before", "before").splitlines()[0].endswith("the same prediction for every image")


def test_a_console_that_cannot_show_an_arrow_shows_its_number(repository):
    repository.commit(run_files(["rose"], ["rose"]), "before")
    code = "from petals.report.__main__ import main; main(['before', 'HEAD'])"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "\\u2192" in done.stdout, done.stderr


def test_scores_of_other_code_or_settings_than_those_beside_them_are_doubted(repository):
    train, md5 = "lr = 1\n", hashlib.md5(b"lr = 1\n").hexdigest()
    files = run_files(["rose", "iris"], ["rose", "iris"]) | {"stages/train.py": train}
    code = f"    deps: [{{path: stages/train.py, hash: md5, md5: {md5}, size: 7}}, {{path: data/prepared,"
    files["dvc.lock"] = files["dvc.lock"].replace("    deps: [{path: data/prepared,", code)
    repository.commit(files, "before")
    repository.commit(files | {"notes.txt": "new"})
    page = report("before")
    assert page.splitlines()[0].endswith("the same prediction for every image") and "`dvc.lock`" not in page
    repository.commit(
        files | {"stages/train.py": "lr = 2\n", "params.yaml": files["params.yaml"].replace("0.001", "0.01")}
    )
    page = report("before")
    assert page.splitlines()[0].endswith("; but of a run before head's last changes")
    assert "- In head, `stages/train.py`, `lr` changed after the run that `dvc.lock` names" in page
    assert "- In base, `stages/train.py`, `lr` changed after" in report("HEAD", "before")


def test_scores_that_were_edited_after_the_run_are_doubted(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    md5 = hashlib.md5(files["metrics/evaluate.json"].encode()).hexdigest()
    out = f"    outs: [{{path: metrics/evaluate.json, hash: md5, md5: {md5}, size: 1}}, {{path: data/prepared"
    files["dvc.lock"] = files["dvc.lock"].replace("    outs: [{path: data/prepared", out)
    repository.commit(files, "before")
    assert "`dvc.lock`" not in report("before")
    repository.commit(files | {"metrics/evaluate.json": files["metrics/evaluate.json"] + "\n"})
    assert "- In head, `metrics/evaluate.json` changed after the run that `dvc.lock` names" in report("before")


def test_dates_in_the_settings_are_shown_as_they_are(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    repository.commit(files, "before")
    repository.commit(files | {"params.yaml": files["params.yaml"] + "a: 2020-01-01\nb: {2020-01-01: 1}\n"})
    assert "2020-01-01" in report("before")


def test_scores_of_other_data_or_of_code_that_is_gone_are_doubted(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    code = (
        "    deps: [{path: code.py, hash: md5, md5: d41d8cd98f00b204e9800998ecf8427e, size: 0}, {path: data/prepared,"
    )
    files["dvc.lock"] = files["dvc.lock"].replace("    deps: [{path: data/prepared,", code)
    files |= {"code.py": "", "params.yaml": files["params.yaml"] + "data: data/sample/\n"}
    repository.commit(files, "before")
    assert "`dvc.lock`" not in report("before")
    del files["code.py"]
    repository.commit(files)
    assert "- In head, `code.py` changed after the run that `dvc.lock` names" in report("before")
    repository.commit(files | {"params.yaml": files["params.yaml"].replace("data/sample/", "data/mine")})
    assert "- In head, `code.py`, `data` changed after the run that `dvc.lock` names" in report("before")


def test_noise_is_called_noise(repository):
    rng = np.random.default_rng(1)
    actual, base = labels(rng, 200, 0.8)
    head = list(base)
    swap = [next(i for i in range(200) if (base[i] == actual[i]) is right) for right in (True, False)]
    head[swap[0]] = next(name for name in CLASSES if name != actual[swap[0]])
    head[swap[1]] = actual[swap[1]]
    repository.commit(run_files(actual, base), "before")
    repository.commit(run_files(actual, head))
    page = report("before")
    assert page.splitlines()[0].endswith("not told apart from noise")
    assert page.count("| within noise |") == 2
    assert "1 image newly right, 1 newly wrong: McNemar's test gives p = 1 (exact binomial)" in page
    assert "There are no intervals" not in page
    assert "1 image newly wrong, 1 newly right" in page


def test_pairs_of_classes_that_are_confused_more_or_less_than_before(repository):
    actual = ["rose"] * 5 + ["iris"] * 5
    repository.commit(run_files(actual, ["wild rose"] * 3 + ["rose"] * 2 + ["daisy"] * 2 + ["iris"] * 3), "before")
    repository.commit(run_files(actual, ["rose"] * 5 + ["iris"] * 1 + ["daisy"] * 4))
    page = report("before")
    assert "1 pair of classes confused more often, 1 less often" in page
    assert "| `rose` | `wild rose` | 3 | 0 |\n| `iris` | `daisy` | 2 | 4 |\n" in page
    assert "| `image-8` | `iris` | `daisy` | 0.750 |" in page


@pytest.mark.parametrize(
    ("ids", "actual", "words"),
    [
        (["a", "b", "d"], ["rose", "iris", "rose"], "1 image only in base, 1 image only in head"),
        (["a", "b", "c"], ["rose", "iris", "daisy"], "1 image labelled differently"),
        (["a", "b", "c", "d"], ["rose", "iris", "rose", "rose"], "1 image only in head"),
    ],
)
def test_different_validation_sets_are_not_compared(repository, ids, actual, words):
    repository.commit(run_files(["rose", "iris", "rose"], ["rose", "iris", "iris"], ["a", "b", "c"]), "before")
    repository.commit(run_files(actual, actual, ids))
    result = run("before", "--fail-under", "5")
    page = result.stdout
    assert page.splitlines()[0].endswith(f"not compared, the validation sets differ ({words})")
    assert re.search(r"\| accuracy \| 0\.6667 \| 1\.0000 \| – \|", page)
    assert "McNemar" not in page
    assert "Classes" not in page
    assert result.exit_code == 0
    assert "does not apply" in result.stderr


def test_what_both_validation_sets_have_is_compared(repository):
    """Photographs were added, and one of them went into validation."""
    rng = np.random.default_rng(0)
    actual, base = labels(rng, 60, 0.3)
    ids = [f"image-{number}" for number in range(60)]
    repository.commit(run_files(actual, base, ids), "before")
    repository.commit(run_files([*actual[2:], "rose"], [*actual[2:], "iris"], [*ids[2:], "new"]))
    page = report("before")
    old = f1_score(actual[2:], base[2:], average="macro")
    assert page.startswith(f"## macro F1 {old:.3f} → 1.000 on the 58 images that both have (+{1 - old:.3f}, 95 %")
    assert page.splitlines()[0].endswith("better, more than other images explain")
    assert "; 58 validation images that both have." in page
    assert "(2 images only in base, 1 image only in head), so the scores stand side by side and the differences" in page
    whole = accuracy_score(actual, base)
    assert f"| accuracy | {whole:.4f} | {58 / 59:.4f} | +{1 - accuracy_score(actual[2:], base[2:]):.4f} |" in page
    assert "| negative log-likelihood (lower is better) | 0.4321 | 0.4321 | – |" in page
    assert run("before", "--fail-under", "0.99").exit_code == 1


def test_the_likelihood_of_each_image_tells_more_than_its_answer(repository):
    rng = np.random.default_rng(0)
    actual, said = labels(rng, 100, 0.8)
    before = rng.uniform(0.2, 0.9, 100)
    after = before * rng.uniform(0.7, 1.0, 100)
    repository.commit(run_files(actual, said, likelihoods=before), "before")
    repository.commit(run_files(actual, said, likelihoods=after))
    page = report("before")
    change = np.log(before) - np.log(after)
    (row,) = [line for line in page.splitlines() if line.startswith("| negative log-likelihood (lower")]
    low, high = map(float, re.search(r"\+(0\.\d+) … \+(0\.\d+) \| worse \|", row).groups())
    margin = 1.96 * change.std() / 10
    assert (low, high) == pytest.approx((change.mean() - margin, change.mean() + margin), abs=0.005)
    assert "Both sides predict the same for every image, so there is nothing to test. Intervals: paired bootst" in page
    assert f"| {-np.log(before).mean():.4f} | {-np.log(after).mean():.4f} | +{change.mean():.4f} |" in row
    assert "`metrics/evaluate.json` says negative log-likelihood (lower is better) 0.4321, but" in page
    assert "| better |" in report("HEAD", "before")
    assert "| worse |" not in report("HEAD", "HEAD")


def test_an_interval_that_nearly_reaches_zero_is_told_in_more_digits(repository):
    actual = ["rose", "iris"] * 1500
    base = [*actual[:-8], *["daisy"] * 8]
    repository.commit(run_files(actual, base), "before")
    repository.commit(run_files(actual, actual))
    assert re.search(r"95 % interval \+0\.000\d+ … \+0\.00\d\d\): better", report("before").splitlines()[0])


def test_leaks_between_the_splits_are_told_with_the_scores(repository):
    files = run_files(["rose"], ["rose"])
    card = {"near_duplicates": {"within_splits": 5, "across_splits": 12}, "dropped_from_train": 0}
    repository.commit(files, "before")
    repository.commit(files | {"metrics/prepare.json": json.dumps(card)})
    assert "- In head, 12 pairs of near-duplicates lie across train, val and test, so its scores" in report("before")
    dropped = {"params.yaml": files["params.yaml"] + "drop_leaks: true\n"}
    repository.commit(files | {"metrics/prepare.json": json.dumps(card)} | dropped)
    assert "near-duplicates lie across" not in report("before")


def test_long_values_that_differ_at_their_end_are_shown_to_differ(repository):
    launch = "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint host:29500 -m"
    repository.commit(run_files(["rose"], ["rose"], launch=launch), "before")
    repository.commit(run_files(["rose"], ["rose"], launch=launch.replace("29500", "29501")))
    page = report("before")
    assert "host:29500 -m`" in page and "host:29501 -m`" in page


def test_the_order_of_rows_does_not_matter(repository):
    actual, predicted = ["rose", "iris", "daisy"], ["rose", "iris", "iris"]
    repository.commit(run_files(actual, predicted, ["a", "b", "c"]), "before")
    repository.commit(run_files(actual[::-1], predicted[::-1], ["c", "b", "a"]))
    page = report("before")
    assert "the same prediction for every image" in page.splitlines()[0]
    assert "Both sides predict the same for every image, so there is nothing to test." in page
    assert "McNemar" not in page and "paired bootstrap" not in page and "noise" not in page
    assert "| accuracy | 0.6667 | 0.6667 | 0.0000 |  |  |" in page


def test_scores_that_are_not_of_the_predictions_are_pointed_out(repository):
    files = run_files(["rose", "iris"], ["rose", "rose"])
    repository.commit(files | {"metrics/evaluate.json": '{"accuracy": 0.75, "robustness": {"blur": 0.25}}'})
    page = report("HEAD")
    assert "`metrics/evaluate.json` says accuracy 0.7500, but `plots/predictions.csv` gives 0.5000" in page
    assert "| `robustness.blur` | 0.2500 | 0.2500 | 0.0000 |" in page


def test_robustness_is_a_score_where_it_was_measured(repository):
    files = run_files(["rose", "iris"], ["rose", "rose"])
    repository.commit(files, "before")
    measured = {"mean_macro_f1": 0.25, "severities": [3], "by_corruption": []}
    repository.commit(files | {"metrics/robustness.json": json.dumps(measured)}, "measured")
    repository.commit(files | {"metrics/robustness.json": json.dumps(measured | {"mean_macro_f1": 0.5})}, "after")
    repository.commit(files | {"metrics/robustness.json": '{"severities": []}'}, "off")
    row = "| macro F1 on corrupted images, the mean "
    assert f"{row}| 0.2500 | 0.5000 | +0.2500 |" in report("measured", "after")
    assert f"{row}| – | 0.5000 | – |" in report("before", "after")
    assert row not in report("before", "off") and "robustness.json" not in report("before", "off")
    assert "other ways" not in report("measured", "after") + report("before", "after")
    other = {"mean_macro_f1": 0.5, "severities": [1, 3, 5], "by_corruption": []}
    repository.commit(files | {"metrics/robustness.json": json.dumps(other)}, "other")
    page = report("measured", "other")
    assert f"{row}| 0.2500 | 0.5000 | – |" in page
    assert "Images were corrupted in other ways (base `[3]`, head `[1, 3, 5]`), so those means are not comp" in page
    kinds = {"mean_macro_f1": 0.5, "severities": [3], "by_corruption": [{"corruption": "fog"}]}
    repository.commit(files | {"metrics/robustness.json": json.dumps(kinds)}, "kinds")
    page = report("measured", "kinds")
    assert f"{row}| 0.2500 | 0.5000 | – |" in page and "(base `[3]`, head `[3] fog`)" in page


def test_the_score_in_int8_is_told_or_that_it_was_left_out(repository):
    files = run_files(["rose", "iris"], ["rose", "rose"])
    repository.commit(files, "older")
    for name, int8 in {
        "kept": {"kept": True, "macro_f1": 0.5},
        "better": {"kept": True, "macro_f1": 0.75},
        "lost": {"kept": False, "macro_f1": 0.125},
        "damaged": [1],
    }.items():
        repository.commit(files | {"metrics/export.json": json.dumps({"int8": int8})}, name)
    row = "| macro F1 in int8 "
    assert f"{row}| 0.5000 | 0.7500 | +0.2500 |" in report("kept", "better")
    assert f"{row}| 0.5000 | left out | – |" in report("kept", "lost")
    assert f"{row}| left out | left out | – |" in report("lost", "lost")
    assert f"{row}| – | 0.5000 | – |" in report("older", "kept")
    assert row not in report("older", "damaged")


def test_scores_that_are_too_many_for_the_table_are_counted(repository):
    files = run_files(["rose", "iris"], ["rose", "rose"])
    repository.commit(files | {"metrics/evaluate.json": json.dumps({f"score {n}": 0.5 for n in range(30)})})
    page = report("HEAD")
    assert "`score 29`" in page and "`score 3`" not in page
    assert "\n\n… and 7 more.\n" in page


def test_the_size_of_the_model_is_told_where_it_changed(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    repository.commit(files, "before")
    larger = files["dvc.lock"].replace("18000000", "20000000")
    repository.commit(files | {"dvc.lock": larger}, "larger")
    repository.commit(files | {"dvc.lock": "stages: {}\n"}, "none")
    page = report("before", "larger")
    assert "Model: 20.0 MB in 1 file" in page
    assert "| `models/model.safetensors` | 18,000,000 | 20,000,000 | +2,000,000 |" in page
    page = report("before", "none")
    assert "Model: none in head" in page and "| `models/model.safetensors` | 18,000,000 | – | – |" in page
    assert "size of the model" not in report("none", "none")


def test_stages_say_why_their_lock_changed(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    repository.commit(files, "before")
    changed = files["dvc.lock"].replace("bbb.dir", "ccc.dir").replace("-m stages.train", "-m stages.train x")
    changed += "  export:\n    cmd: python -m stages.export\n"
    repository.commit(files | {"dvc.lock": changed})
    page = report("before")
    assert "Stages whose lock changed (3)" in page
    assert "| `prepare` | only its outs, from the same inputs: `data/prepared` |" in page
    assert "| `train` | command; deps `data/prepared` |" in page
    assert "| `export` | new stage |" in page
    assert "| `export` | stage removed |" in report("HEAD", "before")


def test_a_setting_that_changed_its_type_alone_has_changed(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"], epochs=1)
    repository.commit(files, "before")
    repository.commit(files | {"params.yaml": files["params.yaml"].replace("epochs: 1", "epochs: 1.0")})
    page = report("before")
    assert "| `epochs` | `1` | `1.0` |" in page
    assert "Unchanged: data card, stages, size of the model." in page


def test_a_data_card_that_changed_is_shown(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    card = {"count": {"train": 90, "val": 2}, "size": 64, "duplicates": [["a", "b"]]}
    repository.commit(files, "before")
    repository.commit(files | {"metrics/prepare.json": json.dumps(card)})
    page = report("before")
    assert "Data card (2)" in page
    assert '| `count.train` | `100` | `90` |\n| `duplicates` | – | `[["a", "b"]]` |' in page


def test_a_base_with_commits_of_its_own_is_pointed_out(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    repository.commit(files)
    repository.git("checkout", "-q", "-b", "work")
    repository.commit(files)
    repository.git("checkout", "-q", "main")
    repository.commit(files | {"params.yaml": "lr: 0.1\n"})
    assert "Base has 1 commit that head lacks" in report("main", "work")
    assert "head lacks" not in report("main~1", "work")


# Curves


def charts(page: str) -> list[str]:
    return re.findall(r"```mermaid\n(.*?)\n```", page, flags=re.DOTALL)


def test_curves_of_both_sides_are_drawn(repository):
    before = {"val/macro_f1": [0.1, 0.2, 0.4], "train/loss": [3, 2, 1], "train/once": [1], "a@b": [1, 2]}
    after = {
        "val/macro_f1": [0.2, 0.3, 0.5],
        "train/loss": ["nan", 2, 1],
        "train/lr": [1e-5] * 3,
        "a@b": [1, 2],
    }
    repository.commit(run_files(["rose"], ["rose"], curves=before), "before")
    repository.commit(run_files(["rose"], ["rose"], curves=after))
    page = report("before")
    assert "The same on both sides: `a@b`." in page
    macro, loss, rate = charts(page)
    assert macro.splitlines() == [
        '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#8c959f, #0969da"}}}}%%',
        "xychart-beta",
        '    title "val/macro_f1"',
        '    x-axis "epoch" 0 --> 2',
        "    y-axis 0.1 --> 0.5",
        '    line "base" [0.1, 0.2, 0.4]',
        '    line "head" [0.2, 0.3, 0.5]',
    ]
    assert '"share of the run in %, as the runs differ in length" 0 --> 100' in loss
    assert [line.count(",") for line in loss.splitlines()[-2:]] == [32, 32]
    assert '    line "head" [0.00001, 0.00001, 0.00001]' in rate
    assert 'line "base"' not in rate
    assert '"#0969da"' in rate


def test_long_curves_are_thinned_and_numbers_have_no_exponent(repository):
    values = list(np.exp(-np.arange(1000) / 50))
    repository.commit(run_files(["rose"], ["rose"], curves={"train/loss": values[::-1]}), "before")
    repository.commit(run_files(["rose"], ["rose"], curves={"train/loss": values, "train/blown": [1, 1e300]}))
    page = report("before")
    assert "as not finite or beyond 1e+12: `train/blown` in head." in page
    (chart,) = charts(page)
    first, second = chart.splitlines()[-2:]
    assert first.count(",") == second.count(",") == 32
    assert '    x-axis "epoch" 0 --> 999' in chart
    for line in (first, second):
        assert re.fullmatch(r' {4}line "\w+" \[[0-9.]+(, [0-9.]+)*\]', line)
        drawn = json.loads(line[line.index("[") :])
        ends = [1, values[-1]] if '"head"' in line else [values[-1], 1]
        assert [drawn[0], drawn[-1]] == pytest.approx(ends, abs=1e-3)


def test_curves_of_a_run_that_diverged_are_named(repository):
    good, lost = {"train/loss": [3, 2, 1], "val/nll": [1, 2]}, {"train/loss": ["nan"] * 3, "val/nll": [1, 2]}
    half = {"train/loss": [3, 2, "inf"], "val/nll": [1, 2]}
    for name, curves in {"good": good, "lost": lost, "half": half}.items():
        repository.commit(run_files(["rose"], ["rose"], curves=curves), name)
    line = "Not drawn, or not in full, as not finite or beyond 1e+12: "
    assert f"{line}`train/loss` in head." in report("good", "lost")
    assert f"{line}`train/loss` in base, `train/loss` in head." in report("lost", "half")
    assert line not in report("lost", "lost") + report("good", "good")


# What is missing or damaged


def test_a_first_run_has_nothing_to_compare_with(repository):
    repository.commit({"README.md": "no run yet"}, "before")
    repository.commit(run_files(["rose", "iris"], ["rose", "iris"]))
    page = report("before")
    assert page.splitlines()[0] == "## macro F1 1.000; nothing to compare with, base has no scores"
    assert "- In base, `metrics/evaluate.json` is missing, `plots/predictions.csv` is missing" in page
    assert "Settings" not in page
    page = report("HEAD", "before")
    assert page.splitlines()[0] == "## no macro F1 to report: head has no scores"


def test_a_final_model_has_no_score_and_that_is_no_fault(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"], final="false")
    final = run_files(["rose", "iris"], ["rose", "iris"], final="true")
    final |= {"metrics/evaluate.json": '{"final": true}', "plots/predictions.csv": "id,actual,predicted,confidence\n"}
    repository.commit(files, "before")
    repository.commit(final, "final")
    result = run("before", "final", "--fail-under", "0")
    assert result.exit_code == 0 and "does not apply" in result.stderr
    page = result.stdout
    reason = "is trained on validation too (final: true)"
    assert page.splitlines()[0] == f"## no macro F1 to report: head {reason}"
    assert "| accuracy | 1.0000 | – | – |" in page and "| `final` | `false` | `true` |" in page
    assert "predictions.csv" not in page and "noise" not in page
    page = report("final", "before")
    assert page.splitlines()[0] == f"## macro F1 1.000; nothing to compare with, base {reason}"
    claim = final | {"metrics/evaluate.json": '{"final": true, "macro_f1": 1.0}'}
    repository.commit(claim)
    assert report("before").splitlines()[0] == f"## no macro F1 to report: head {reason}"


SIZES = [
    f"stages: {{train: {{outs: [{{path: models/m, size: {size}}}]}}}}"
    for size in (f"'{'9' * 400}'", "'5'", "1.5", "true", "-1", 2**63, "[]", "null")
]
DAMAGED = {
    "plots/predictions.csv": [
        "", "id,actual,predicted,confidence\n", "id;actual;predicted\n1;2;3\n", "id,actual,predicted\na,b\n",
        "id,actual,predicted\na,b,c\na,b,c\n", 'id,actual,predicted\n"a',
        f"id,actual,predicted\na,b,{'c' * 200_000}\n",
    ],
    "metrics/evaluate.json": ["", "[1]", "{", "NaN", "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500],
    "params.yaml": ["", "a: [", "- 1", "a: &x [1]\nb: *x", "a: !!python/object:os.system x",
                    "a: 0x" + "f" * 9000, "a:\n  ? 0x" + "f" * 9000 + "\n  : 1", "a: !!set {? 0x" + "f" * 9000 + "}"],
    "dvc.lock": ["stages: 3", "stages: {train: [1]}", "<<<<<<< HEAD\nstages: {}\n=======", "a\x00b", *SIZES],
    "plots/train/train/loss.tsv": ["", "x\ty\n1\t2\n", "step\tloss\n1\n", "step\tloss\n1\ttwo\n", "\ufeff"],
}  # fmt: skip


def test_damaged_files_are_named_and_never_raise(repository):
    files = run_files(["rose", "iris"], ["rose", "rose"])
    good = repository.commit(files)
    for turn in range(max(map(len, DAMAGED.values()))):
        broken = {path: texts[turn] for path, texts in DAMAGED.items() if turn < len(texts)}
        repository.commit(files | broken)
        for arguments in ((good, "HEAD"), ("HEAD", good)):
            page = report(*arguments)
            for path in broken:
                assert re.search(rf"`{path}` (is|holds|uses) ", page), (path, broken[path][:50])


def test_files_that_are_no_text_or_no_files_are_named(repository):
    (repository.root / "params.yaml").write_bytes(b"\xff\xfe\x00")
    repository.commit({"metrics/evaluate.json/nested": "{}"})
    page = report("HEAD")
    assert "`metrics/evaluate.json` is not a file" in page
    assert "`params.yaml` is not UTF-8 text" in page


@pytest.mark.parametrize("name", ["nowhere", "HEAD~99", "", "--version", "a b", "HEAD:README.md", "@{", "a\x00b"])
def test_an_unknown_revision_is_one_clear_line(repository, name):
    repository.commit({"README.md": "a"})
    result = run("--", name, "HEAD")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "is not a revision of this repository" in result.stderr


def test_an_experiment_goes_by_its_name(repository, monkeypatch):
    repository.commit({"README.md": "a"})
    old = resolve("HEAD").commit
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2040-01-01T00:00:00Z")
    repository.commit({"README.md": "b"})
    for number, commit in (("0", old), ("9", "HEAD"), ("f", old)):  # each of another beginning
        repository.git("update-ref", f"refs/exps/{number * 2}/{number * 38}/silky-rose", commit)
    repository.git("update-ref", "refs/exps/exec/EXEC_HEAD", "HEAD")
    assert resolve("silky-rose").commit == resolve("HEAD").commit != old
    for name in ("silky", "silky-*", "*", "EXEC_HEAD"):
        with pytest.raises(PetalsError, match="is not a revision"):
            resolve(name)


def test_outside_a_repository_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    result = run("main")
    assert result.exit_code == 2
    assert "git rev-parse: not a git repository" in result.stderr


def test_a_repository_of_another_user_is_what_git_says_of_it(repository, monkeypatch):
    repository.commit({"README.md": "a"})
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    result = run("main")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "detected dubious ownership in repository" in result.stderr and "safe.directory" in result.stderr


# --fail-under


def test_fail_under_fails_by_the_upper_end_of_the_interval(repository):
    rng = np.random.default_rng(2)
    actual, base = labels(rng, 300, 0.9)
    head = np.where(rng.random(300) < 0.3, "daisy", base).tolist()
    repository.commit(run_files(actual, base), "before")
    repository.commit(run_files(actual, head))
    index = {name: position for position, name in enumerate(CLASSES)}
    arrays = [np.array([index[name] for name in column]) for column in (actual, base, head)]
    high = statistics.bootstrap(*arrays, 4)["macro_f1"].high
    assert high < -0.02
    assert run("before", "--fail-under", str(high + 1e-6)).exit_code == 1
    assert run("before", "--fail-under", str(high - 1e-6)).exit_code == 0
    assert run("before", "--fail-under", "-0.01").stdout == report("before")
    assert run("before", "before", "--fail-under", "0").exit_code == 0
    assert run("before", "before", "--fail-under", "0.01").exit_code == 1


@pytest.mark.parametrize("delta", ["nan", "inf", "-inf"])
def test_fail_under_of_no_number_is_refused(repository, delta):
    repository.commit(run_files(["rose", "iris"], ["rose", "rose"]))
    result = run("HEAD", "--fail-under", delta)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "finite number" in result.stderr and result.stderr.count("\n") == 1


def test_more_than_can_be_resampled_in_a_minute_is_scored_without_intervals(repository, monkeypatch):
    actual = ["rose", "iris", "daisy", "rose"]
    repository.commit(run_files(actual, actual[::-1]), "before")
    repository.commit(run_files(actual, actual))
    monkeypatch.setattr(statistics, "MOST_CELLS", 5)  # there are 3 triples and 3 classes
    result = run("before", "--fail-under", "1")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].endswith("not judged, too much to resample")
    assert "There are no intervals of macro F1 and accuracy: so many images in so many classes" in result.stdout
    assert "McNemar's test gives p" in result.stdout and "noise" not in result.stdout
    assert "--fail-under does not apply: there is no interval" in result.stderr


# Untrusted text


def test_a_hostile_branch_cannot_shape_the_page(repository):
    hostile = [name.replace('"', "'").replace("\x00", "") for name in HOSTILE if "\ud800" not in name]
    actual = [name for name in hostile for _ in range(2)]
    curves = {f"val/x' {position}`@a": [1, 2] for position in range(2)}
    ids = [f"{name}{position}" for position, name in enumerate(actual)]
    before = run_files(actual, actual, ids, curves)
    after = run_files(actual, actual[1:] + actual[:1], ids, {name: [2, 1] for name in curves})
    after["params.yaml"] = json.dumps(dict.fromkeys(filter(str.strip, hostile), "@team #1 <b> | `"))
    after["metrics/prepare.json"] = json.dumps({name: hostile for name in hostile})
    after["metrics/evaluate.json"] = json.dumps(dict.fromkeys(hostile, 1.5))
    after["dvc.lock"] = json.dumps({"stages": {name: {"cmd": name} for name in hostile}})
    repository.commit(before, "@team`#1|<b>x")
    repository.commit(after)
    page = report("@team`#1|<b>x")
    tokens = inlines(page)
    assert {token.type for token in tokens} == {"text", "code_inline", "strong_open", "strong_close"}
    written = " ".join(token.content for token in tokens if token.type == "text")
    assert not re.search(r"[@#<>\[\]]|www|http|GH-|[0-9a-f]{7}", written)
    blocks = MarkdownIt("commonmark").enable("table").parse(page)
    html = {line for token in blocks if token.type == "html_block" for line in token.content.splitlines()}
    assert all(re.fullmatch(r"</?details>|<summary>[\w ,':.]*(\(\d+( \w+)*\))?</summary>", line) for line in html)
    assert page.count("```mermaid\n") == page.count("\n```\n") == 2
    assert all('title "val/x? ' in chart and "@" not in chart for chart in charts(page))


# The size of the page


def test_many_classes_fit_into_a_comment_by_leaving_out_the_least_important(repository):
    names = [f"class number {number} of a very long list of flower names" for number in range(800)]
    actual = [name for name in names for _ in range(2)]
    predicted = [name for pair in zip(names, names[1:] + names[:1], strict=True) for name in pair]
    repository.commit(run_files(actual, actual), "before")
    repository.commit(run_files(actual, predicted))
    page = report("before")
    assert len(page) <= MOST_CHARACTERS
    assert page.endswith("_Left out, as a comment holds no more: All 800 classes whose F1 moved._\n")
    assert "… and 790 more." in page


def with_confidence(files: dict[str, str], **confidence: object) -> dict[str, str]:
    for name, value in confidence.items():
        pattern = rf'("{name.replace("_", "-")}",.*),0\.75\d*'
        files["plots/predictions.csv"] = re.sub(pattern, rf"\g<1>,{value}", files["plots/predictions.csv"])
    return files


def test_images_come_with_what_the_mistaken_side_said_the_surest_mistake_first(repository):
    actual = ["rose"] * 4
    base = with_confidence(run_files(actual, ["iris", "daisy", "rose", "rose"]), image_0=0.6, image_1=0.9)
    head = with_confidence(run_files(actual, ["rose", "rose", "iris", "daisy"]), image_2=0.4, image_3=0.8)
    repository.commit(base, "before")
    repository.commit(head)
    page = report("before")
    assert "| `image-3` | `rose` | `daisy` | 0.800 |\n| `image-2` | `rose` | `iris` | 0.400 |" in page
    assert "| `image-1` | `rose` | `daisy` | 0.900 |\n| `image-0` | `rose` | `iris` | 0.600 |" in page


def test_a_confidence_that_is_none_is_a_dash(repository):
    repository.commit(run_files(["rose"] * 2, ["rose"] * 2), "before")
    repository.commit(with_confidence(run_files(["rose"] * 2, ["iris"] * 2), image_0="nan", image_1=2))
    page = report("before")
    assert "| `image-0` | `rose` | `iris` | – |" in page and "| `image-1` | `rose` | `iris` | – |" in page


def test_what_moved_most_comes_first(repository):
    actual = ["rose"] * 4 + ["iris"] * 4 + ["daisy"] * 4
    base = ["wild rose"] * 4 + ["iris"] * 4 + ["daisy"] * 4
    head = ["rose"] * 4 + ["iris"] * 3 + ["wild rose"] + ["daisy"] * 2 + ["iris"] * 2
    repository.commit(run_files(actual, base), "before")
    repository.commit(run_files(actual, head))
    page = report("before")
    assert re.findall(r"^\| `(\w+)` \| 4 \| \d", page, re.MULTILINE) == ["rose", "daisy", "iris"]
    assert "| `daisy` | `iris` | 0 | 2 |\n| `iris` | `wild rose` | 0 | 1 |" in page


def test_of_a_step_that_was_logged_twice_the_last_counts(repository):
    files = run_files(["rose"], ["rose"], curves={"train/loss": [3, 2, 2]})
    repository.commit(files, "before")
    repository.commit(files | {"plots/train/train/loss.tsv": "step\tloss\n0\t3\n1\t9\n1\t2\n2\t1\n"})
    assert '    line "head" [3, 2, 1]' in report("before")


def test_a_step_that_is_no_number_is_left_out(repository):
    files = run_files(["rose"], ["rose"])
    repository.commit(files, "before")
    repository.commit(files | {"plots/train/train/loss.tsv": "step\tloss\nnan\t5\n0\t3\n1\t2\ninf\t5\n"})
    page = report("before")
    assert '"head"' in page and "nan" not in page


def test_of_many_curves_those_of_validation_are_kept(repository):
    curves = {f"train/loss{number}": [2, 1] for number in range(9)} | {"val/nll": [2, 1]}
    repository.commit({"README.md": ""}, "before")
    repository.commit(run_files(["rose"], ["rose"], curves=curves))
    found = charts(report("before"))
    assert len(found) == 8 and 'title "val/nll"' in found[0]


def test_the_scores_of_single_classes_are_not_in_the_table(repository):
    repository.commit(run_files(["rose", "iris"], ["rose", "iris"]))
    assert "f1.daisy" not in report("HEAD")


def test_of_histories_that_have_nothing_in_common_no_commit_is_missing(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    repository.commit(files)
    repository.git("checkout", "-q", "--orphan", "work")
    repository.git("rm", "-rqf", ".")
    repository.commit(files | {"README.md": "another beginning"})
    assert "head lacks" not in report("main", "work")


def test_where_the_settings_cannot_be_read_no_knob_is_said_to_have_changed(repository):
    files = run_files(["rose", "iris"], ["rose", "iris"])
    repository.commit(files, "before")
    del files["params.yaml"]
    repository.commit(files)
    page = report("before")
    assert "`params.yaml` is missing" in page and "changed after the run" not in page


def test_a_side_with_more_images_is_not_compared_as_a_whole():
    def side(count: int) -> SimpleNamespace:
        same = SimpleNamespace(actual="x", predicted="x", likelihood=0.5)
        return SimpleNamespace(predictions={str(n): same for n in range(count)})

    assert compare(side(20), side(20)).whole
    assert not compare(side(20), side(21)).whole and not compare(side(21), side(20)).whole


def test_a_likelihood_of_zero_costs_no_comparison_and_one_beyond_is_none():
    for written, read in (("0", EPSILON), ("1e-30", EPSILON), ("0.25", 0.25), ("2", math.nan), ("-1", math.nan)):
        found = _predictions(f"id,actual,predicted,confidence,likelihood\na,x,x,0.5,{written}\n")["a"].likelihood
        assert found == read or (math.isnan(found) and math.isnan(read))
