"""The measurements: pairs and their table, growth and its verdict, and one row from end to end."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY
from project import tiny_records
from small_model import CLASSES, pictures, write_model

from benchmarks import bench, drift, folds, growth, oxford, seeds, soak, training, usual
from benchmarks.growth import Run, verdicts
from benchmarks.pairs import Row, alternate, ratios, table
from petals import cluster
from petals.tune import __main__ as tune


def row(reach: str, *measured: float) -> Row:
    return Row("work", "bare work", reach, "images/s", list(measured), 20.0, 21.0, "as told")


def test_sides_take_turns_and_the_limit_begins_every_second_pair():
    turns = []

    def side(name: str, value: float):
        return lambda: turns.append(name) or value

    ours, limit = alternate(side("ours", 3.0), side("limit", 4.0), 3)
    assert turns == ["ours", "limit", "limit", "ours", "ours", "limit"]
    assert ratios(ours, limit) == [0.75, 0.75, 0.75]


@pytest.mark.parametrize(
    ("reach", "measured", "reached"),
    [
        (">= 0.97", (0.5, 0.97, 1.5), True),
        (">= 0.97", (0.96,), False),
        ("<= 0.5", (0.4, 0.6, 0.45), True),
        ("<= 0.5", (0.51,), False),
        ("", (7.0,), None),
    ],
)
def test_the_median_decides_what_is_reached(reach: str, measured: tuple[float, ...], reached: bool | None):
    assert row(reach, *measured).reached is reached


def test_the_table_has_median_spread_and_a_mark_for_what_is_missed():
    lines = table([row(">= 0.97", 0.9, 0.95, 0.99).summary(), row("<= 0.5", 0.4).summary()]).splitlines()
    assert lines[2] == "| work | bare work | ≥ 0.97 | 0.95 (0.9–0.99) ✗ | 20 images/s; as told |"
    assert lines[3] == "| work | bare work | ≤ 0.5 | 0.4 | 20 images/s; as told |"


def test_rows_that_are_not_measured_stay_unless_the_machine_is_another(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(bench, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench, "description", lambda root: {"cpu": "this"})
    monkeypatch.setattr(
        bench, "ROWS", {"a": lambda _: row("", 1.0), "b": lambda _: row("", 2.0), "c": lambda _: "it is night"}
    )

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(bench.main, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    said = run()
    assert "c: skipped, since it is night" in said and "| work |" in said
    monkeypatch.setitem(bench.ROWS, "b", lambda _: row("", 3.0))
    monkeypatch.setattr(bench.main.params[0], "type", bench.click.Choice(list(bench.ROWS)))
    assert "b: 3 of 3…3, was 2" in run("--only", "b")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["machine"]["cpu"] == "this"
    assert {name: each["median"] for name, each in kept["rows"].items()} == {"a": 1.0, "b": 3.0}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=bench.REPOSITORY, capture_output=True, text=True).stdout
    assert all(head.startswith(each["commit"].rstrip("+")) and each["commit"] for each in kept["rows"].values())
    monkeypatch.setattr(bench, "description", lambda root: {"cpu": "another"})
    run("--only", "b")
    assert list(json.loads((tmp_path / "results.json").read_text())["rows"]) == ["b"]


def test_growth_is_judged_by_what_each_further_image_costs():
    even = [
        Run("prepare", share, images, 2 + images / 1000, 300.0)
        for share, images in ((0.1, 1000), (0.5, 5000), (1, 10000))
    ]
    told = "prepare: 1.00 ms for each further image, +0% from the smaller sizes, "
    assert verdicts(even) == [told + "memory 300 MiB at most, +0% over the sizes"]
    bent = [*even[:2], Run("prepare", 1, 10000, 14.0, 300.0)]
    assert verdicts(bent)[0].endswith("✗") and "+40% from the smaller sizes" in verdicts(bent)[0]
    hungry = [*even[:2], Run("prepare", 1, 10000, 12.0, 360.0)]
    assert "+20% over the sizes" in verdicts(hungry)[0] and verdicts(hungry)[0].endswith("✗")
    assert verdicts([Run("train", 1, 10000, 60.0, 700.0)])[0].endswith("✗")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--sizes", "1,x", "1,x should be numbers above 0"),
        ("--sizes", "0,1", "0,1 should be numbers above 0"),
        ("--sizes", "nan", "nan should be numbers above 0"),
        ("--stages", "prepare,foo", "'foo' is none of prepare, augment, train"),
    ],
)
def test_sizes_and_stages_that_there_are_none_of(option: str, value: str, said: str):
    done = CliRunner().invoke(growth.main, [option, value])
    assert done.exit_code == 2 and said in done.output


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_memory_is_that_of_the_hungriest_process_without_mapped_files(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(60 * 2**20))
    child = "x = bytearray(b'1') * (40 * 2**20); input()"
    program = f"""
import mmap, subprocess, sys
file = open({str(tmp_path / "file")!r}, "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[::4096])
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=sys.stdin)
child.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    memory = growth.Memory(process.pid)
    until = time.monotonic() + 60
    while memory.peak < 40 * 2**20 and time.monotonic() < until:
        memory.thread.join(0.05)
    process.communicate(b"\n")
    assert 40 <= memory.stop() < 60  # of the child alone, the parent's 60 MiB are mapped


def test_a_run_is_timed_until_it_is_good_and_ended_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "told.py").write_text(
        "import sys\n"
        "print('epoch 1/9: train loss 1.0, val macro F1 0.500', flush=True)\n"
        "print('epoch 2/9: val macro F1 0.931', flush=True)\n"
        "sys.stdin.read()\n"  # until the test ends
    )
    way = oxford.until_good(["told"], tmp_path, 0.93, float("inf"))
    assert 0 < way.seconds < 600 and (way.last, way.end) == ("0.931 after epoch 2", "good")
    assert oxford.until_good(["told"], tmp_path, 0.5, float("inf")).last == "0.500 after epoch 1"
    way = oxford.until_good(["told"], tmp_path, 0.99, 0.0)
    assert (way.last, way.end) == ("0.500 after epoch 1", "cut off")


def test_a_way_that_ends_below_the_goal_has_no_ratio_and_one_that_fails_no_row(tmp_path: Path):
    said = "print('epoch 1/1: val macro F1 0.500', flush=True)\n"
    (tmp_path / "ends.py").write_text(said)
    (tmp_path / "fails.py").write_text(said + "raise SystemExit(3)\n")
    ended = oxford.until_good(["ends"], tmp_path, 0.93, float("inf"))
    assert (ended.last, ended.end) == ("0.500 after epoch 1", "ended below")
    with pytest.raises(RuntimeError, match=r"^fails failed with exit code 3, its last: 0\.500 after epoch 1$"):
        oxford.until_good(["fails"], tmp_path, 0.93, float("inf"))
    good = oxford.Way(8.0, "0.94 after epoch 3", "good")
    row = oxford.row(0.93, 10.0, good, ended)
    assert row.reached is None and row.theirs is None and "below the goal: there is no ratio" in row.note
    row = oxford.row(0.93, 10.0, good, oxford.Way(40.0, "0.9 after epoch 9", "cut off"))
    assert row.reached and row.median == pytest.approx(1 / 2.5) and "cut off after 2.5 times as long" in row.note
    assert row.theirs is None  # nobody knows how long it would have taken


def test_photographs_in_another_layout_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oxford, "DATA", tmp_path)  # absolute, so that it replaces the repository's
    assert "no image in tfrecords-jpeg-192x192/train" in oxford.measure(tmp_path)


def test_rows_of_a_gpu_need_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: False)
    assert training.measure_on_gpu("efficientnet_lite0", tmp_path) == "there is no GPU"


def test_the_row_of_oxford_needs_its_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oxford, "DATA", Path("data") / "not-there")
    assert oxford.measure(tmp_path) == "data/not-there is not there"


@pytest.mark.slow
def test_train_is_measured_while_the_stage_runs(tmp_path: Path, params: Path):
    tiny_records(tmp_path / "tiny")
    program = (
        "from functools import partial; from pathlib import Path; from benchmarks import lab, training, workspace\n"
        f"workspace.PARAMS = Path({str(params)!r})\n"
        f"lab.run_stage = partial(lab.run_stage, data={str(tmp_path / 'tiny')!r})\n"
        "quick = dict(epochs=1, image_size=40, views=0, batch_size=2, threads=1)\n"
        f"row = training.measure(Path({str(tmp_path)!r}), **quick)\n"
        "print(len(row.ratios), 0 < row.median < 10, row.ours > 0, row.note[:14])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["1 True True Kornia's part "], done.stderr


def test_the_first_step_of_the_optimiser_is_noted_once(tmp_path: Path):
    steps = """
        import os, torch
        from petals.optim import AdamW
        weight = torch.nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.ones(2, 2)
        optimizer = AdamW([{"params": [weight], "weight_decay": 0.0}], 0.1)
        noted = os.environ["FIRST_STEP"]
        optimizer.step()
        os.replace(noted, f"{noted} of all")
        optimizer.step()
    """
    path = os.pathsep.join([str(REPOSITORY / "benchmarks" / "startup"), str(REPOSITORY)])
    noted, began = tmp_path / "first-step", time.time()
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(steps), "stages.train"],
        env=os.environ | {"PYTHONPATH": path, "FIRST_STEP": str(noted)}, check=True,
    )  # fmt: skip
    at, imported = map(float, (tmp_path / "first-step of all").read_text(encoding="utf-8").split())
    assert not noted.exists()
    assert began < at < time.time() and 0 < imported < at - began


def test_drift_is_told_of_what_is_no_flower_and_not_of_images_as_they_were(tmp_path: Path):
    files, labels = pictures(2000, 70)  # others than the model's reference is of
    for number, (data, label) in enumerate(zip(files, labels, strict=True)):
        for folder in (f"train/{CLASSES[label]}", "test"):
            path = tmp_path / "data" / folder / f"{folder[:5].strip('/')}{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    model = write_model(tmp_path / "model.onnx")
    done = CliRunner().invoke(drift.main, ["--model", str(model), "--data", str(tmp_path / "data")])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == list(drift.CHANGES), done.output
    assert all(int(row[1]) >= 200 for row in rows)
    assert not any("drift" in cell for cell in rows[0]) and any("drift" in cell for cell in rows[-1])


def test_drift_refuses_photographs_of_other_classes_than_the_models(tmp_path: Path):
    for name in (*CLASSES[1:], "another"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / f"{name}.jpg").touch()
    model = write_model(tmp_path / "model.onnx")
    done = CliRunner().invoke(drift.main, ["--model", str(model), "--data", str(tmp_path / "data")])
    assert done.exit_code == 1 and done.output.startswith(f"Error: {tmp_path / 'data'}: its classes are not those of ")


@pytest.mark.parametrize("command", [folds.main, seeds.main, soak.main, cluster.main, tune.main])
def test_settings_are_given_to_all_commands_alike(command):
    (option,) = [each for each in command.params if "-S" in each.opts]
    assert option.opts == ["-S", "--set-param"] and option.multiple and option.metavar == "KNOB=VALUE"


def test_the_help_of_the_usual_way_names_its_command_once():
    assert CliRunner().invoke(usual.main, ["--help"]).output.count("benchmarks.usual") == 1
