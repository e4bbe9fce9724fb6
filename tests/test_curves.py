"""Training curves: what DVCLive writes, moved into place, and the same bytes after a resumption."""

import csv
import json
from pathlib import Path

import pytest

from petals.curves import Curves
from petals.files import STATE

EPOCHS = [
    {"train": {"loss": 3.14159265, "lr": 1e-3}, "val": {"macro_f1": 0.1, "nll": 4.0}},
    {"train": {"loss": 1.0, "lr": 1.23456789e-7}, "val": {"macro_f1": 2 / 3, "nll": 2.5}},
    {"train": {"loss": 0.25, "lr": 0.0}, "val": {"macro_f1": 0.75, "nll": 1.0}},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, history: list, epochs: list) -> dict[str, bytes]:
    """Log `epochs` on top of `history`; what is in the folder `name` then."""
    root = Path(name)
    with Curves(root / "train.json", root / "curves", history) as curves:
        for values in epochs:
            curves.add(values)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_file_a_series_and_the_last_values():
    history = []
    files = run("run", history, EPOCHS)
    series = {"train/loss", "train/lr", "val/macro_f1", "val/nll"}
    assert set(files) == {"train.json", *(f"curves/{name}.tsv" for name in series)}
    for name in series:
        group, value = name.split("/")
        rows = list(csv.reader(files[f"curves/{name}.tsv"].decode().splitlines(), delimiter="\t"))
        assert rows[0] == ["step", value]
        assert [int(step) for step, _ in rows[1:]] == [0, 1, 2]
        assert [float(each) for _, each in rows[1:]] == pytest.approx([e[group][value] for e in EPOCHS], rel=1e-5)
    assert json.loads(files["train.json"])["train"]["loss"] == 0.25
    assert len(history) == 3


def test_small_rates_keep_their_digits():
    files = run("run", [], EPOCHS)
    assert files["curves/train/lr.tsv"].decode().split() == ["step", "lr", "0", "0.001", "1", "1.23457e-07", "2", "0.0"]


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_resumed_run_writes_the_same_bytes(done: int):
    whole = run("whole", [], EPOCHS)
    history = []
    with pytest.raises(KeyboardInterrupt), Curves(Path("m.json"), Path("c"), history) as curves:
        for values in EPOCHS[:done]:
            curves.add(values)
        raise KeyboardInterrupt
    kept = json.loads(json.dumps(history))  # as a checkpoint keeps it
    assert run("resumed", kept, EPOCHS[done:]) == whole


def test_an_error_leaves_the_former_curves_and_no_scratch():
    before = run("run", [], EPOCHS)
    with pytest.raises(ZeroDivisionError), Curves(Path("run/train.json"), Path("run/curves"), []) as curves:
        curves.add(EPOCHS[2])
        raise ZeroDivisionError
    assert {str(p.relative_to("run")): p.read_bytes() for p in sorted(Path("run").rglob("*")) if p.is_file()} == before
    assert not (STATE / "live").exists()


def test_nothing_else_is_written():
    (STATE / "live").mkdir(parents=True)
    (STATE / "live" / "metrics.json").write_text("left by a run that was killed")
    run("run", [], EPOCHS[:1])
    assert sorted(path.name for path in Path().iterdir()) == [".petals", "run"]
    assert list(STATE.iterdir()) == []
