"""The scores of the last run in a few lines."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from petals.errors import PetalsError
from petals.summary import main, summary

METRICS = {
    "prepare": {"images": {"train": 748, "val": 204, "test": 408}, "classes": 17},
    "evaluate": {"macro_f1": 0.94321, "accuracy": 0.9444449, "top5_accuracy": 1.0, "ece": 0.021},
    "robustness": {"mean_macro_f1": 0.71234, "severities": [3]},
    "export": {
        "top1_agreement": 0.99951,
        "bytes": 13_650_000,
        "int8": {"kept": True, "top1_agreement": 0.98893, "macro_f1": 0.886, "bytes": 3_990_000},
    },
}


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "metrics").mkdir()
    for name, values in METRICS.items():
        (tmp_path / "metrics" / f"{name}.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table(finished: Path):
    lines = summary(finished).splitlines()
    table = {line[2:22].strip(): line[22:] for line in lines[: lines.index("")]}
    assert table == {
        "images": "748 train, 204 val, 408 test",
        "classes": "17",
        "macro F1": "0.9432",
        "accuracy": "0.9444",
        "top5 accuracy": "1.0000",
        "calibration error": "0.0210",
        "macro F1, corrupted": "0.7123",
        "ONNX agrees": "99.95%, 13.7 MB",
        "int8 agrees": "98.89%, 4.0 MB, macro F1 0.8860",
    }
    assert all(len(line) <= 80 for line in lines)


def test_five_of_five_classes_are_no_score(finished: Path):
    (finished / "metrics" / "prepare.json").write_text(json.dumps(METRICS["prepare"] | {"classes": 5}))
    assert "accuracy            0.9444" in summary(finished) and "top5" not in summary(finished)


def test_images_that_were_dropped_are_counted_beside_the_splits_and_not_of_train(finished: Path):
    """Where train holds val too, some of them are val's."""
    (finished / "metrics" / "prepare.json").write_text(json.dumps(METRICS["prepare"] | {"dropped_from_train": 2}))
    assert "748 train, 204 val, 408 test (2 left out of training)" in summary(finished)


def test_how_far_macro_f1_would_move_with_other_images_of_its_kind(finished: Path):
    (finished / "plots").mkdir()
    rows = ["rose,rose"] * 45 + ["rose,iris"] * 5 + ["iris,iris"] * 50
    text = "id,actual,predicted,confidence\n" + "".join(f"{n},{row},0.9\n" for n, row in enumerate(rows))
    (finished / "plots" / "predictions.csv").write_text(text)
    line = next(line for line in summary(finished).splitlines() if "macro F1  " in line)
    low, high = map(float, line.split("interval ")[1].split(" … "))
    # Against the normal approximation of the share of a hundred that is right.
    deviation = (0.95 * 0.05 / 100) ** 0.5
    assert low == pytest.approx(0.95 - 1.96 * deviation, abs=0.012)
    assert high == pytest.approx(0.95 + 1.96 * deviation, abs=0.012)


def test_a_file_that_git_has_left_in_conflict_is_one_line(finished: Path):
    (finished / "metrics/prepare.json").write_text("<<<<<<< HEAD\n{}\n")
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert result.output.startswith("Error: metrics/prepare.json: not JSON") and result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"metrics/{name}.json", text) for name in METRICS for text in ("{}", "[]", "3", "null")),
        ("plots/predictions.csv", "id\na\n"),
        ("plots/predictions.csv", "<<<<<<< ours\nid,actual,predicted\n"),
        ("plots/predictions.csv", "id,actual,predicted\na,\xff\n"),
    ],
)
def test_a_file_that_is_damaged_is_one_line(finished: Path, name: str, text: str):
    (finished / "plots").mkdir(exist_ok=True)
    (finished / name).write_bytes(text.encode("latin-1"))
    result = CliRunner().invoke(main)
    assert result.exit_code == 1 and result.output.startswith("Error: metrics or plots/predictions.csv: not as the ")
    assert result.output.count("\n") == 1


def test_a_final_model_has_no_scores(finished: Path):
    (finished / "metrics" / "evaluate.json").write_text('{"final": true}')
    int8 = {"kept": False, "top1_agreement": 0.98893, "bytes": 0}
    (finished / "metrics" / "export.json").write_text(json.dumps(METRICS["export"] | {"int8": int8}))
    text = summary(finished)
    assert "  scores              none, as it is trained on val too (final: true)\n  ONNX agrees" in text
    assert "left out: it changes too many answers" in text
    assert "macro" not in text and "mistakes" not in text and "data/submission.csv" in text


def test_where_to_look_are_outputs_of_the_pipeline(finished: Path):
    pipeline = (Path(__file__).parents[1] / "dvc.yaml").read_text(encoding="utf-8")
    text = summary(finished)
    paths = [word for word in text.split() if "/" in word]
    assert len(paths) >= 4 and all(f"- {path}" in pipeline for path in paths)


def test_as_a_command(finished: Path):
    done = CliRunner().invoke(main)
    assert done.exit_code == 0 and done.output == summary() + "\n"


@pytest.mark.parametrize("name", METRICS)
def test_without_a_run_it_says_what_to_do(finished: Path, name: str):
    (finished / "metrics" / f"{name}.json").unlink()
    with pytest.raises(PetalsError, match=rf"metrics/{name}.json: not found; run dvc repro first$"):
        summary(finished)
    done = CliRunner().invoke(main)
    assert done.exit_code == 1
    assert done.stderr == f"Error: metrics/{name}.json: not found; run dvc repro first\n"
