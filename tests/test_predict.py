"""python -m petals.predict"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import REPOSITORY
from PIL import Image
from sklearn.metrics import f1_score
from tiny_model import plain, tiny_model

from petals.errors import PetalsError
from petals.images import decode, square
from petals.inference import Model
from petals.predict import main, predict, read


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a model in its usual place and a few images of other sizes than it sees."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    tiny_model(Path("models/model.onnx"))
    for name, size in {
        "a/red.png": (30, 20),
        "a/b/green.JPG": (9, 9),
        "a/.hidden.png": (9, 9),
        "blue.webp": (7, 60),
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        image = plain(Path(name).stem.strip("."), *size)
        Image.fromarray(image).save(name)
    Path("a/notes.txt").write_text("bought in May")
    return tmp_path


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def fail(error: PetalsError) -> None:
    raise error


def test_files_and_folders_the_likeliest_first(folder):
    result = call("blue.webp", "a")
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["blue.webp", "a/b/green.JPG", "a/red.png"]
    assert lines[1].split() == ["100.0%", "blue"] and lines[5].split()[1] == "green"


def test_labelled_images_are_scored(folder):
    for name, colour in {
        "red/1.png": "red",
        "red/2.png": "green",
        "green/3.png": "green",
        "blue/4.png": "blue",
    }.items():
        Path("held", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(plain(colour, 20, 20)).save(Path("held", name))
    done = call("--score", "held")
    wrong, said = done.stdout.splitlines()
    assert done.exit_code == 0 and wrong.startswith("held/red/2.png: green (") and wrong.endswith("), but is red")
    expected = f1_score(["red", "red", "green", "blue"], ["red", "green", "green", "blue"], average="macro")
    assert said.startswith(f"macro F1 {expected:.4f}, 95 % interval ") and said.endswith("; accuracy 0.7500; 4 images")
    *rows, last = map(json.loads, call("--score", "--json", "held").stdout.splitlines())
    assert {row["image"]: row["actual"] for row in rows}["held/red/2.png"] == "red" and len(rows) == 4
    assert last["macro_f1"] == pytest.approx(expected, abs=1e-6) and last["low"] <= expected <= last["high"]


def test_photographs_in_formats_that_are_not_read_are_told(folder):
    Path("a/b/raw.heic").write_bytes(b"")
    Path("a/b/scan.TIFF").write_bytes(b"")
    Path("a/b/green.NEF").write_bytes(b"")  # beside green.JPG
    done = call("a")
    assert (
        done.exit_code == 1 and done.stderr == "Error: a: 1 .heic, 1 .tiff are left out: convert them to JPEG first\n"
    )
    assert "a/red.png" in done.stdout


def test_what_lies_in_no_folder_of_a_class_is_told_and_not_scored(folder, monkeypatch):
    Path("red").mkdir()
    Image.fromarray(plain("red", 20, 20)).save("red/1.png")
    Path("red/below").mkdir()
    monkeypatch.chdir("red/below")
    assert call("--model", "../../models/model.onnx", "--score", "..").stdout.endswith("; 1 images\n")
    monkeypatch.chdir("..")
    shutil.copy("1.png", "../a/again.png")
    done = call("--model", "../models/model.onnx", "--score", "../a", "1.png")
    assert done.exit_code == 1 and done.stdout == "macro F1 1.0000; accuracy 1.0000; 1 images\n"
    assert done.stderr.count("Error: ../a: its name, 'a', is none of the model's classes\n") == 1


def test_a_console_that_cannot_show_a_class_does_not_end_it(folder):
    model = tiny_model(Path("models/blossom.onnx"), classes=["花", "green", "blue"])
    command = [sys.executable, "-m", "petals.predict", "--model", model, "a/red.png"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "100.0%  \\u82b1" in done.stdout


def test_photographs_are_read_as_prepare_reads_them(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg")
    data = (tmp_path / "noise.jpg").read_bytes()
    np.testing.assert_array_equal(read(tmp_path / "noise.jpg", 32), square(decode(data, "here", 32), 32))
    assert (read(tmp_path / "noise.jpg", 32) != square(decode(data, "here"), 32)).any()


def test_json_is_an_object_a_line(folder):
    result = call("--json", "blue.webp", "a/red.png")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["image"], second["predictions"][0]["class"]) == ("blue.webp", "red")
    assert sum(each["probability"] for each in first["predictions"]) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_read_is_a_line_and_the_others_are_answered(folder):
    Path("cut.webp").write_bytes(Path("blue.webp").read_bytes()[:-9])
    Path("empty").mkdir()
    result = call("none.jpg", "blue.webp", "cut.webp", "empty", "a/red.png", "a/notes.txt")
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if not line.startswith(" ")] == ["blue.webp", "a/red.png"]
    missing, cut, empty, notes = result.stderr.splitlines()
    assert missing == "Error: none.jpg: not found" and cut.startswith("Error: cut.webp: the image is damaged")
    assert empty.startswith("Error: empty: no image") and "notes.txt: not a JPEG, PNG or WebP image" in notes


def test_what_is_below_a_hidden_folder_is_not_looked_at(folder):
    Path("a/.trash").mkdir()
    Path("a/red.png").rename("a/.trash/red.png")
    Path("a").rename(".a")  # that is named itself, and so meant
    result = call(".a")
    assert [line for line in result.stdout.splitlines() if not line.startswith(" ")] == [".a/b/green.JPG"]


def test_a_folder_that_cannot_be_listed_is_a_line_and_the_others_are_answered(folder, monkeypatch):
    listed = os.scandir

    def scandir(path: str):
        if str(path) == "a/b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = call("a", "blue.webp")
    assert result.exit_code == 1 and result.stderr == "Error: a/b: cannot be read: Permission denied\n"
    assert [line for line in result.stdout.splitlines() if not line.startswith(" ")] == ["a/red.png", "blue.webp"]


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo("pipe")
    result = call("pipe", "blue.webp")
    assert result.exit_code == 1 and result.stderr == "Error: pipe: neither a file nor a folder\n"
    assert "blue.webp" in result.stdout


def test_an_empty_name_is_a_mistake(folder):
    result = call("")
    assert result.exit_code == 2 and "an empty name; name a file or a folder" in result.stderr


def test_more_threads_than_a_machine_bears_are_refused(folder):
    """ONNX Runtime would start as many as it is told to."""
    done = call("a", "--threads", "100000")
    assert done.exit_code == 2 and "1<=x<=256" in done.output


def test_want_of_memory_is_one_line(folder, monkeypatch):
    def greedy(*_):
        raise MemoryError

    monkeypatch.setattr(Model, "open", greedy)
    done = call("a")
    assert done.exit_code == 1 and done.output.startswith("Error: out of memory; ") and done.output.count("\n") == 1


def test_a_model_that_is_not_there(folder):
    result = call("--model", "models/none.onnx", "blue.webp")
    assert result.exit_code == 1 and result.stderr.startswith("Error: models/none.onnx: not found; dvc repro makes")


def test_more_images_than_are_asked_about_at_once_stay_in_order(folder):
    colours = [("red", "green", "blue")[number % 3] for number in range(40)]
    for number, colour in enumerate(colours):
        Image.fromarray(plain(colour, 8 + number, 9)).save(f"{number:02}.png")
    paths = tuple(Path(f"{number:02}.png") for number in range(40))
    found = list(predict(Model.open("models/model.onnx"), paths, fail))
    assert [best[0][0] for _, best in found] == colours
    assert tuple(path for path, _ in found) == paths


def test_made_square_before_or_inside_is_the_same(folder):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(image).save("noise.png")
    model = Model.open("models/model.onnx")
    [(_, best)] = predict(model, (Path("noise.png"),), fail)
    inside = dict(zip(model.classes, model.run(image[None])[0][0], strict=True))
    assert dict(best) == pytest.approx(inside, abs=2e-3)


def test_nothing_heavy_is_loaded(folder):
    code = (
        "import sys; from petals.predict import main; main(['blue.webp'], standalone_mode=False);"
        "print([name for name in ('torch', 'scipy', 'sklearn', 'kornia', 'onnx', 'dvc') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]" and "blue" in done.stdout
