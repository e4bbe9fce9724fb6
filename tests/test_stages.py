"""Each stage as a command, in this process, on a tiny data set."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from conftest import ORIGINAL
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from PIL import Image, ImageFilter
from project import COLOURS, SMALL, picture, tiny_folders, tiny_records
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from petals import onnx_export, packed, quantisation
from petals.augmentation import POLICY_KNOBS
from petals.calibration import class_offsets
from petals.checkpoint import Checkpoint
from petals.drift import Reference
from petals.inference import Model
from petals.models import weights as model_weights
from petals.optim import AveragedWeights
from petals.params import TrainParams, load_params
from petals.quantisation import Quantiser
from petals.summary import summary
from petals.tfrecord import decode_example, encode_example, read_records, write_records
from stages import augment, evaluate, export, prepare, train

pytestmark = pytest.mark.usefixtures("untraced_exporter")
PREPARE = ["data/prepared", "metrics/prepare.json", "plots/classes.csv", "plots/duplicates.csv", "--workers", "1"]
AUGMENT = ["data/prepared/train", "data/augmented", "plots/augmentation.jpg"]
TRAIN = [
    *("data/prepared/train", "data/prepared/val", "data/augmented", "data/weights/true"),
    *("models/model.safetensors", "metrics/train.json", "plots/train"),
]
EVALUATE = [
    *("models/model.safetensors", "data/prepared/val", "data/prepared/test"),
    *("metrics/evaluate.json", "metrics/robustness.json", "plots", "data/submission.csv", "models/reference.json"),
]
EXPORT = [
    *("models/model.safetensors", "models/reference.json", "data/prepared/train", "data/prepared/val"),
    *("models/model.onnx", "models/model.int8.onnx", "metrics/export.json"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder with params for a tiny run."""
    monkeypatch.chdir(tmp_path)
    knobs(image_size=32)
    return tmp_path


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A folder in which prepare, augment and train have run; what train said is in its file `said`."""
    root = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        knobs()
        tiny_records(root / "data/tiny")
        done(prepare, "data/tiny", *PREPARE)
        done(augment, *AUGMENT)
        Path("said").write_text(done(train, *TRAIN))
    return root


@pytest.fixture
def trained(ran, folder) -> Path:
    """A copy of that folder to work in."""
    shutil.copytree(ran, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def graph(ran) -> onnx.ModelProto:
    """The network of that model, exported."""
    return onnx_export.network(model_weights.load(ran / "models/model.safetensors")[0])


@pytest.fixture
def exported_once(graph, monkeypatch) -> None:
    """That is what torch's exporter gives, which takes seconds each time."""
    monkeypatch.setattr(onnx_export, "network", lambda net: graph)


def knobs(**changed: object) -> None:
    values = {**yaml.safe_load(ORIGINAL), **SMALL, "image_size": 32, "epochs": 1, **changed}
    Path("params.yaml").write_text(yaml.safe_dump(values))


def call(stage, *arguments: str) -> Result:
    result = CliRunner().invoke(stage.main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def done(stage, *arguments: str) -> str:
    result = call(stage, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(stage, *arguments: str) -> str:
    """The one line of a stage that must fail."""
    result = call(stage, *arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: "), result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()[-1]


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def card() -> dict:
    return json.loads(Path("metrics/prepare.json").read_text())


def test_all_five_with_the_policy_online(folder):
    tiny_records(folder / "data/tiny")
    knobs(views=0, mixup=0.5, cutmix=0.5, image_size=40)  # that of the pictures, so that no worker imports torch
    assert "train: 24 images" in done(prepare, "data/tiny", *PREPARE, "--workers", "2")
    assert "0 views of 24 images" in done(augment, *AUGMENT)
    assert not list(Path("data/augmented").glob("*.npy"))
    assert "epoch 1/1: train loss" in done(train, *TRAIN)
    assert "4 rows in data/submission.csv" in done(evaluate, *EVALUATE)
    assert "top-1 agreement 100.00%" in done(export, *EXPORT)
    assert card()["images"] == {"train": 24, "val": 9, "test": 4}
    for picture_file in ("plots/augmentation.jpg", "plots/mistakes.jpg"):
        assert Path(picture_file).read_bytes().startswith(b"\xff\xd8")


@pytest.mark.slow
def test_a_checkpoint_of_another_precision_is_not_taken_up(trained, monkeypatch):
    """`precision: auto` is bf16 on one processor and fp32 on another of the same capability."""
    keys = []
    monkeypatch.setattr(train, "fingerprint", lambda settings, inputs: keys.append(settings) or "key")
    for has_tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has_tiles=has_tiles: has_tiles)
        knobs(precision="auto", model="tiny_vit_5m", pretrained=False)
        done(train, *TRAIN)
    assert [each["precision"] for each in keys] == ["bf16", "fp32"]


@pytest.mark.slow
def test_batch_norms_that_learn_get_two_images_at_least(folder):
    tiny_records(folder / "data/tiny")
    knobs(freeze_stats=False, batch_size=6, accumulate=4)
    done(prepare, "data/tiny", *PREPARE)
    done(augment, *AUGMENT)
    needed = "Error: batch norms that learn need {} images in a step, two for each of its {} parts; {}"
    advice = "lower accumulate, or raise batch_size, or set freeze_stats: true"
    assert refused(train, *TRAIN) == needed.format(8, 4, advice)
    knobs(freeze_stats=False, batch_size=6, accumulate=3)
    done(train, *TRAIN)
    knobs(freeze_stats=False, batch_size=64, accumulate=15)  # of the 24 images that there are
    assert refused(train, *TRAIN) == needed.format(30, 15, advice.replace("raise batch_size", "add images"))
    knobs(pretrained=False, freeze_stats=True, batch_size=3, accumulate=2)  # there are none to freeze
    assert refused(train, *TRAIN) == needed.format(4, 2, "lower accumulate, or raise batch_size")


@pytest.mark.slow
def test_few_images_are_seen_more_often_and_looked_at_as_often(folder):
    tiny_records(folder / "data/tiny")
    knobs(epochs=2, min_steps=35, warmup_epochs=5.0)
    done(prepare, "data/tiny", *PREPARE)
    done(augment, *AUGMENT)
    said = done(train, *TRAIN)
    assert said.startswith("min_steps: 2 epochs of 6 passes over the images each, 36 steps in all\n")
    # 24 images are 3 steps of 8: two epochs of six passes are 36 steps, and three of five, the other way, 45.
    assert [line.partition(":")[0] for line in said.splitlines() if "train loss" in line] == [
        "epoch 1/2", "epoch 2/2"
    ]  # fmt: skip
    with safe_open(next(Path(".petals").glob("train-*.safetensors")), "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 36
    with open("plots/train/train/lr.tsv", encoding="utf-8") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file, delimiter="\t")]
    assert rates[0] == load_params(TrainParams).lr  # the warm-up is half of all


@pytest.mark.slow
@pytest.mark.parametrize("final", [False, True])
def test_epochs_of_a_moment_are_not_each_saved(folder, monkeypatch, final: bool):
    tiny_records(folder / "data/tiny")
    knobs(epochs=4, final=final)
    done(prepare, "data/tiny", *PREPARE)
    done(augment, *AUGMENT)
    saved, save = [], Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", lambda own, state: (saved.append(state["step"]), save(own, state)))
    done(train, *TRAIN)
    first, last = saved
    assert last == 4 * first, "after the first epoch, and at the end"


@pytest.mark.slow
@pytest.mark.parametrize("final", [False, True])
def test_a_rare_class_is_adjusted_and_once_only(folder, final: bool):
    tiny_folders(folder / "data/folders")
    for path in sorted(Path("data/folders/tulip").iterdir())[3:]:
        path.unlink()
    knobs(final=final)
    done(prepare, "data/folders", *PREPARE)
    done(augment, *AUGMENT)
    biases = []
    for adjust in (1, 0, 1):
        knobs(final=final, adjust=adjust)
        done(train, *TRAIN)
        weights = load_file("models/model.safetensors")
        biases.append(weights["head.bias"].numpy())
        learnt = weights["head.learnt_bias"].numpy()
        assert np.array_equal(learnt, biases[-1]) == (adjust == 0), "for a warm start"
        if not adjust:
            temperature = json.loads(Path("models/model.json").read_text())["temperature"]
    offsets = class_offsets(np.bincount(np.load("data/prepared/train/labels.npy")), 1.0)
    scale = (biases[0] - biases[1]) / offsets  # of the logits: the temperature that is fitted to val, or to train
    assert np.allclose(scale, scale[0], rtol=1e-4) and 0.25 <= scale[0] < 4
    assert temperature == (1.0 if final else pytest.approx(scale[0], rel=1e-3))
    assert np.array_equal(biases[2], biases[0])

    once = Path("models/model.safetensors").read_bytes()
    assert "going on from the checkpoint" in done(train, *TRAIN)
    assert Path("models/model.safetensors").read_bytes() == once


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_the_temperature_goes_into_the_model_and_its_export(trained):
    assert "fitted to val" in Path("said").read_text()
    temperature = json.loads(Path("models/model.json").read_text())["temperature"]
    assert temperature != 1.0
    done(evaluate, *EVALUATE)
    done(export, *EXPORT)
    scores = json.loads(Path("metrics/evaluate.json").read_text())
    assert scores["calibration"]["temperature"] == temperature
    assert {row["scaling"] for row in table("plots/calibration.csv")} == {"before", "after"}
    exported = {entry.key: entry.value for entry in onnx.load("models/model.onnx").metadata_props}
    assert json.loads(exported["temperature"]) == temperature

    model = Model.open("models/model.onnx")
    answers, features = model.run(np.load("data/prepared/val/images-00000.npy"))
    assert Path("models/reference.json").read_text() == model.metadata["reference"]
    reference = Reference.from_json(model.metadata["reference"])
    compared = reference.compare(answers, reference.distances(features))
    assert compared["images"] == 9 and compared["psi_classes"] < compared["psi_classes_limit"]
    said = [float(row["confidence"]) for row in table("plots/predictions.csv")]
    assert answers.max(1) == pytest.approx(said, abs=1e-4)
    likelihoods = [float(row["likelihood"]) for row in table("plots/predictions.csv")]
    assert -np.log(likelihoods).mean() == pytest.approx(scores["nll"], abs=1e-5)
    meta = Path("models/model.json")
    meta.write_text(meta.read_text().replace(f'"temperature": {temperature}', '"temperature": 1.0'))
    done(evaluate, *EVALUATE)
    before = [float(row["confidence"]) for row in table("plots/predictions.csv")]
    assert before != pytest.approx(said, abs=1e-4)
    own = np.array([row["predicted"] == row["actual"] for row in table("plots/predictions.csv")])
    assert own.mean() == pytest.approx(scores["accuracy"], abs=1e-6)
    plain = json.loads(Path("metrics/evaluate.json").read_text())
    assert plain["calibration"]["nll_before"] == pytest.approx(scores["calibration"]["nll_before"], abs=2e-6)


def test_a_final_model_learns_from_val_and_is_not_scored(folder):
    tiny_records(folder / "data/tiny")
    knobs(final=True)
    assert "final: train holds 9 images of val too" in done(prepare, "data/tiny", *PREPARE)
    assert card()["images"] == {"train": 24, "val": 9, "test": 4}
    ids = {split: json.loads(Path(f"data/prepared/{split}/ids.json").read_text()) for split in ("train", "val")}
    assert len(ids["train"]) == 33 and ids["train"][24:] == ids["val"]
    assert "1 view of 33 images" in done(augment, *AUGMENT)
    said = done(train, *TRAIN)
    assert "final: train holds val too" in said and "-S temperature=" in said and "val nll" not in said
    info = json.loads(Path("models/model.json").read_text())
    assert info["final"] is True and info["temperature"] == 1.0
    assert [path.name for path in Path("plots/train").iterdir()] == ["train"]

    assert "scores nothing unseen" in done(evaluate, *EVALUATE)
    assert json.loads(Path("metrics/evaluate.json").read_text()) == {"final": True}
    for name in ("predictions", "per_class", "calibration"):
        assert table(f"plots/{name}.csv") == []
    assert Path("plots/mistakes.jpg").read_bytes().startswith(b"\xff\xd8")
    assert len(table("data/submission.csv")) == 4
    assert Reference.from_json(Path("models/reference.json").read_text()).images == 4, "those of test, not learnt from"


@pytest.mark.slow
@pytest.mark.parametrize("final", [False, True])
def test_a_given_temperature_scales_the_answers_and_what_is_added_goes_by_it_in_a_final_run_alone(folder, final: bool):
    tiny_folders(folder / "data/folders")
    for path in sorted(Path("data/folders/tulip").iterdir())[3:]:
        path.unlink()
    knobs(final=final)
    done(prepare, "data/folders", *PREPARE)
    done(augment, *AUGMENT)
    biases = []
    for settings in ({"temperature": 0.5, "adjust": 0.7}, {"temperature": 0.5, "adjust": 0}):
        knobs(final=final, **settings)
        assert "temperature 0.5, as params.yaml has it" in done(train, *TRAIN)
        biases.append(load_file("models/model.safetensors")["head.bias"].numpy())
        assert json.loads(Path("models/model.json").read_text())["temperature"] == 0.5
        done(evaluate, *EVALUATE)
        if not final:
            confidence = [float(row["confidence"]) for row in table("plots/predictions.csv")]
            right = [row["actual"] == row["predicted"] for row in table("plots/predictions.csv")]
            bins = [row for row in table("plots/calibration.csv") if row["scaling"] == "after"]
            said = sum(float(each["confidence"]) * int(each["images"]) for each in bins) / len(right)
            assert said == pytest.approx(np.mean(confidence), abs=1e-4), "those of the model as it is"
    counts = np.bincount(np.load("data/prepared/train/labels.npy"))
    added = (biases[0] - biases[1]) / class_offsets(counts, 0.7)
    assert np.allclose(added, added[0], rtol=1e-4)
    if final:  # the temperature of the run before, fitted to what it had not seen
        assert added[0] == pytest.approx(0.5, rel=1e-4)
    else:
        knobs(adjust=0)
        done(train, *TRAIN)  # and fits it
        fitted = json.loads(Path("models/model.json").read_text())["temperature"]
        assert added[0] == pytest.approx(fitted, rel=1e-3), "no number changes which class is named"


@pytest.mark.parametrize("final", [False, True])
def test_answers_that_are_not_finite_are_no_submission(trained, final: bool):
    weights = load_file("models/model.safetensors")
    weights["head.weight"].fill_(3e38)  # finite, as training leaves them, and their sums are not
    save_file(weights, "models/model.safetensors")
    meta = Path("models/model.json")
    meta.write_text(meta.read_text().replace('"final": false', f'"final": {str(final).lower()}'))
    said = refused(evaluate, *EVALUATE)
    assert said.startswith("Error: models/model.safetensors: its answers to data/prepared/val are not finite; lower lr")
    assert not Path("data/submission.csv").exists()


def test_robustness_is_measured_as_often_as_asked_or_not_at_all(trained):
    written = {}
    for severities in (2, 2, 0):
        knobs(robustness=severities)
        output = done(evaluate, *EVALUATE)
        assert ("robustness: macro F1" in output) == bool(severities)
        files = Path("metrics/robustness.json"), Path("plots/robustness.csv")
        assert written.setdefault(severities, [path.read_text() for path in files]) == [
            path.read_text() for path in files
        ]
    measured, curves = written[2]
    assert len(json.loads(measured)["by_corruption"]) == 7 and curves.count("\n") == 1 + 7 * 3
    clean = {line.split(",")[2] for line in curves.splitlines() if ",0," in line}
    assert clean == {f"{json.loads(Path('metrics/evaluate.json').read_text())['macro_f1']:.4f}"}
    assert json.loads(written[0][0]) == {"severities": []} and written[0][1] == "corruption,severity,macro_f1\n"


def test_views_repeat_themselves_for_any_number_of_workers(folder, monkeypatch):
    monkeypatch.setattr(packed, "PIXELS_AT_ONCE", 7 * 32**2)  # so that there is work for all
    tiny_records(folder / "data/tiny")
    knobs(views=3)
    done(prepare, "data/tiny", *PREPARE)
    views = []
    for workers in ("1", "3"):
        done(augment, *AUGMENT, "--workers", workers)
        views.append(np.load("data/augmented/images-00000.npy"))
    assert np.array_equal(*views)
    knobs(views=3, seed=2)
    done(augment, *AUGMENT)
    assert not np.array_equal(views[0], np.load("data/augmented/images-00000.npy"))


def test_one_folder_a_class_tells_what_it_skipped_and_set_aside_and_has_nothing_to_submit(folder):
    tiny_folders(folder / "data/folders")
    (folder / "data/folders/daisy/notes.txt").write_text("bought in May")
    output = done(prepare, "data/folders", *PREPARE)
    assert "notes.txt" in output and "val" in output
    assert card()["images"] == {"train": 18, "val": 6, "test": 0}
    assert [row["class"] for row in table("plots/classes.csv")] == sorted(COLOURS)
    knobs(robustness=0)
    done(augment, *AUGMENT)
    done(train, *TRAIN)
    done(evaluate, *EVALUATE)
    assert len(table("plots/predictions.csv")) == 6 and table("data/submission.csv") == []


def test_a_burst_is_set_aside_as_a_whole_or_not_at_all(folder):
    tiny_folders(folder / "data/bursts")
    for path in sorted((folder / "data/bursts").rglob("*.jpg")):
        for shot in (2, 3):
            with Image.open(path) as image:
                image.point(lambda level, shot=shot: level * 0.9 + shot).save(path.with_name(f"{shot} {path.name}"))
    assert "no val split: it gets 18 of the 72 images of train" in done(prepare, "data/bursts", *PREPARE)
    assert card()["images"] == {"train": 54, "val": 18, "test": 0}
    assert card()["near_duplicates"] == {"within_splits": 72, "across_splits": 0}
    split = {split: set(json.loads(Path(f"data/prepared/{split}/ids.json").read_text())) for split in ("train", "val")}
    assert not {name[2:] for name in split["val"] if name[0] in "23"} & split["train"]
    assert len(np.load("data/prepared/train/images-00000.npy")) == 54


def test_photographs_that_are_all_alike_are_set_aside_one_by_one(folder):
    for name in ("daisy", "tulip"):
        (folder / "data/alike" / name).mkdir(parents=True)
        for number in range(5):
            (folder / "data/alike" / name / f"{name} {number}.jpg").write_bytes(picture(COLOURS[name], 1))
    assert "it gets 2 of the 10 images of train" in done(prepare, "data/alike", *PREPARE)


def test_one_image_a_class_leaves_nothing_to_validate_on(folder):
    tiny_folders(folder / "data/folders", each=1)
    assert "no class has two images, of which one" in refused(prepare, "data/folders", *PREPARE)
    assert not Path("data/prepared").exists()


def test_leaks_are_reported_with_both_ids_and_dropped_when_asked(folder):
    tiny_folders(folder / "data/leaky/train")
    tiny_folders(folder / "data/leaky/val", each=2)
    done(prepare, "data/leaky", *PREPARE)
    pairs = table("plots/duplicates.csv")
    across = [pair for pair in pairs if pair["split_a"] != pair["split_b"]]
    assert len(across) == 6 and card()["near_duplicates"]["across_splits"] == 6 and card()["dropped_from_train"] == 0
    assert [(row["train"], row["val"]) for row in table("plots/classes.csv")] == [("8", "2")] * 3
    assert {(pair["id_a"], pair["id_b"]) for pair in across} == {
        (f"train/{name}/{name} {number}", f"val/{name}/{name} {number}") for name in COLOURS for number in (0, 1)
    }

    knobs(drop_leaks=True)
    assert "dropped from train" in done(prepare, "data/leaky", *PREPARE)
    kept = json.loads(Path("data/prepared/train/ids.json").read_text())
    assert len(kept) == 18 and not {pair["id_a"] for pair in across} & set(kept)
    assert len(np.load("data/prepared/train/images-00000.npy")) == 18
    assert card()["dropped_from_train"] == 6


def test_an_id_stands_in_one_split_only(folder):
    tiny_records(folder / "data/tiny")
    (_, first), *_ = read_records(next((folder / "data/tiny").rglob("train/00*.tfrec")))
    val = next((folder / "data/tiny").rglob("val/00*.tfrec"))
    examples = [decode_example(payload) for _, payload in read_records(val)]
    examples[0]["id"] = decode_example(first)["id"]
    write_records(val, [encode_example({name: each[name][0] for name in each}) for each in examples])
    assert "stands twice" in refused(prepare, "data/tiny", *PREPARE)


def test_a_class_without_images_is_no_reason_to_refuse_drop_leaks(folder):
    tiny_folders(folder / "data/leaky/train")
    tiny_folders(folder / "data/leaky/val", each=8)
    knobs(drop_leaks=True)
    assert "all training images of" in refused(prepare, "data/leaky", *PREPARE)

    tiny_records(folder / "data/tiny")
    names = folder / "data/tiny/classes.txt"
    names.write_text(names.read_text() + "rose\n")
    first = next((folder / "data/tiny").rglob("train/00*.tfrec"))
    (_, leak), *_ = read_records(first)
    test = next((folder / "data/tiny").rglob("test/00*.tfrec"))
    image, name = (decode_example(leak)[key][0] for key in ("image", "id"))
    write_records(test.with_name("09-40x40-1.tfrec"), [encode_example({"image": image, "id": b"leak"})])
    assert "training images are near-duplicates" in done(prepare, "data/tiny", *PREPARE)
    assert name.decode() not in json.loads(Path("data/prepared/train/ids.json").read_text())


def test_a_final_model_learns_from_no_copy_of_a_test_image(folder):
    tiny_records(folder / "data/tiny")
    (_, leak), *_ = read_records(next((folder / "data/tiny").rglob("val/00*.tfrec")))
    test = next((folder / "data/tiny").rglob("test/00*.tfrec"))
    image, name = (decode_example(leak)[key][0] for key in ("image", "id"))
    write_records(test.with_name("09-40x40-1.tfrec"), [encode_example({"image": image, "id": b"leak"})])
    knobs(final=True, drop_leaks=True)
    said = done(prepare, "data/tiny", *PREPARE)
    found = re.search(r"(\d+) training images are near-duplicates of test images \(dropped from train\)", said)
    learnt = json.loads(Path("data/prepared/train/ids.json").read_text())
    assert len(learnt) == 33 - int(found[1]) and name.decode() not in learnt
    assert name.decode() in json.loads(Path("data/prepared/val/ids.json").read_text())


def test_a_class_without_training_images_is_told_and_gets_nothing(folder):
    tiny_records(folder / "data/tiny")
    with (folder / "data/tiny/classes.txt").open("a") as file:
        file.write("zinnia\n")
    assert "no training image of zinnia; add some" in done(prepare, "data/tiny", *PREPARE)
    assert card()["imbalance"] == 1.0


def test_a_class_whose_only_images_are_in_val_is_learnt_by_a_final_run(folder):
    tiny_records(folder / "data/tiny")
    for path in (folder / "data/tiny").rglob("train/*.tfrec"):
        others = [record for _, record in read_records(path) if decode_example(record)["class"][0] != 0]
        path.unlink()
        write_records(path.with_name(f"{path.name[:2]}-40x40-{len(others)}.tfrec"), others)
    assert "no training image of crocus; add some" in done(prepare, "data/tiny", *PREPARE)
    knobs(final=True)
    assert "no training image" not in done(prepare, "data/tiny", *PREPARE)


def test_of_very_many_near_duplicates_those_across_splits_and_the_most_alike_are_listed(folder, monkeypatch):
    tiny_folders(folder / "data/leaky/train")
    tiny_folders(folder / "data/leaky/val", each=2)
    blurred = Path("data/leaky/train/tulip/blurred.jpg")
    with Image.open("data/leaky/train/tulip/tulip 0.jpg") as image:
        image.filter(ImageFilter.GaussianBlur(2)).save(blurred)
    shutil.copy("data/leaky/train/daisy/daisy 5.jpg", "data/leaky/train/daisy/daisy copy.jpg")
    done(prepare, "data/leaky", *PREPARE)
    everything = table("plots/duplicates.csv")
    across = [row for row in everything if row["split_a"] != row["split_b"]]
    copy = [row for row in everything if "daisy copy" in (row["id_a"], row["id_b"])]
    softer = [row for row in everything if "blurred" in (row["id_a"], row["id_b"]) and row not in across]
    assert len(copy) == 1 and softer and all(row["correlation"] < copy[0]["correlation"] for row in softer)
    monkeypatch.setattr(prepare, "MOST_PAIRS", len(across) + 1)
    said = done(prepare, "data/leaky", *PREPARE)
    assert f"plots/duplicates.csv has {len(across) + 1} of {len(everything)} pairs: those across splits" in said
    assert table("plots/duplicates.csv") == [row for row in everything if row in across or row in copy]
    assert sum(card()["near_duplicates"].values()) == len(everything)


@pytest.mark.parametrize(("stage", "arguments"), [(prepare, ("data/tiny", *PREPARE[:-2])), (augment, AUGMENT)])
def test_the_number_of_workers_may_stand_in_the_environment(trained, monkeypatch, stage, arguments):
    monkeypatch.setenv("PETALS_WORKERS", "none")
    result = call(stage, *arguments)
    assert result.exit_code == 2 and "PETALS_WORKERS" in result.output
    monkeypatch.setenv("PETALS_WORKERS", "1")
    monkeypatch.setattr("petals.parallel.ProcessPoolExecutor", None)
    monkeypatch.setattr("petals.parallel.cores", lambda: pytest.fail("the number of cores was asked for"))
    done(stage, *arguments)


def test_many_near_duplicates_of_unseen_images_are_worth_a_look(folder):
    tiny_folders(folder / "data/leaky/train")
    tiny_folders(folder / "data/leaky/val")
    said = done(prepare, "data/leaky", *PREPARE)
    assert "24 training images are near-duplicates of val or test images" in said and "that is 100% of them" in said


def test_images_that_dvc_links_to_its_cache_are_read(folder):
    tiny_folders(folder / "data/folders")
    cache = folder / "cache/files/md5"
    for number, path in enumerate(sorted((folder / "data/folders").rglob("*.jpg"))):
        kept = cache / f"{number:02x}" / f"{number:030x}"
        kept.parent.mkdir(parents=True)
        path.rename(kept)
        path.symlink_to(kept)
    assert "train: 24 images" in done(prepare, "data/folders", *PREPARE)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        Fail("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 1284505600"),
    ],
)
def test_want_of_memory_is_one_line(folder, monkeypatch, error: Exception):
    def greedy(*_):
        raise error

    monkeypatch.setattr(prepare, "open_dataset", greedy)
    assert "out of memory; with PETALS_WORKERS=1 in the environment it needs the least" in refused(
        prepare, "data/tiny", *PREPARE
    )
    monkeypatch.setattr(train, "PackedSplit", greedy)
    assert "out of memory; raise accumulate, lower image_size" in refused(train, *TRAIN)


def test_ids_with_commas_quotes_and_paths_stay_whole_in_the_tables(folder):
    hostile = ['rose, "red"', "../../etc/passwd", "=1+1", "naïve ☘"]
    tiny_records(folder / "data/odd")
    for split in ("val", "test"):
        for path in (folder / "data/odd").rglob(f"{split}/*.tfrec"):
            path.unlink()
        examples = [
            encode_example({"image": picture((9, 9, 200), number), "class": 0, "id": f"{name}{split}".encode()})
            for number, name in enumerate(hostile)
        ]
        write_records(folder / f"data/odd/tfrecords-jpeg-40x40/{split}/00-40x40-4.tfrec", examples)
    done(prepare, "data/odd", *PREPARE)
    done(augment, *AUGMENT)
    done(train, *TRAIN)
    assert "leaves out classes that val has no image of (2):" in done(evaluate, *EVALUATE)
    assert [row["id"] for row in table("data/submission.csv")] == [f"{name}test" for name in hostile]
    assert [row["id"] for row in table("plots/predictions.csv")] == [f"{name}val" for name in hostile]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".petals",
        "data",
        "metrics",
        "models",
        "params.yaml",
        "plots",
    ]


def test_bad_data_leaves_the_former_outputs(folder):
    tiny_records(folder / "data/tiny")
    done(prepare, "data/tiny", *PREPARE)
    before = {path: path.read_bytes() for path in Path("data/prepared").rglob("*") if path.is_file()}
    broken = next((folder / "data/tiny").rglob("train/*.tfrec"))
    content = bytearray(broken.read_bytes())
    content[200] ^= 1
    broken.write_bytes(content)
    line = refused(prepare, "data/tiny", *PREPARE)
    assert broken.name in line and "record 0" in line
    assert before == {path: path.read_bytes() for path in Path("data/prepared").rglob("*") if path.is_file()}
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize(
    ("stage", "arguments", "names"),
    [
        (prepare, ["data/nowhere", *PREPARE], "data/nowhere"),
        (augment, AUGMENT, "data/prepared/train"),
        (train, TRAIN, "data/prepared/train"),
        (evaluate, EVALUATE, "model.json"),
        (export, EXPORT, "model.json"),
    ],
)
def test_a_missing_input_is_named(folder, stage, arguments, names):
    assert names in refused(stage, *arguments)


def test_a_model_of_other_classes_is_refused(trained):
    meta = Path("data/prepared/val/meta.json")
    meta.write_text(meta.read_text().replace("tulip", "rose"))
    assert "classes" in refused(evaluate, *EVALUATE)
    assert "classes" in refused(export, *EXPORT)


@pytest.mark.slow
def test_the_finish_is_on_whole_images(trained):
    """Of all epochs, it is the run that has no views and no policy, to the byte."""
    unchanged = dict.fromkeys(POLICY_KNOBS, 0) | {"crop_min": 1}

    def weights(**changed: object) -> bytes:
        knobs(epochs=2, **changed)
        done(augment, *AUGMENT)
        done(train, *TRAIN)
        return Path(TRAIN[4]).read_bytes()

    whole = weights(views=0, **unchanged)
    assert weights(views=1, finish=1) == weights(views=0, finish=1) == whole
    half, none = weights(views=1, finish=0.5), weights(views=1, finish=0)
    assert len({whole, half, none}) == 3


def shapes_of_training(monkeypatch) -> list[tuple[int, ...]]:
    """A list to which train adds the shape of each batch that its network sees."""
    shapes, create = [], train.models.create

    def watched(*arguments):
        net = create(*arguments)
        net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)) if net.training else None)
        return net

    monkeypatch.setattr(train.models, "create", watched)
    return shapes


@pytest.mark.slow
def test_whole_images_come_in_parts_of_no_more_pixels(folder, monkeypatch):
    tiny_records(folder / "data/tiny")
    knobs(image_size=160, train_size=0.8, epochs=2, finish=0.25, batch_size=12, robustness=0)  # half an epoch is one
    done(prepare, "data/tiny", *PREPARE)
    done(augment, *AUGMENT)
    shapes = shapes_of_training(monkeypatch)
    done(train, *TRAIN)
    assert shapes == [(12, 3, 128, 128)] * 2 + [(6, 3, 160, 160)] * 4


class OnGpu(torch.Tensor):
    """Behaves as a tensor on a GPU towards NumPy, which is only given what `cpu` gives."""

    def numpy(self, **_: object) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def on_gpu(net: nn.Module) -> nn.Module:
    for module in net.modules():
        for name, each in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(each.detach().as_subclass(OnGpu), each.requires_grad))
        for name, each in module.named_buffers(recurse=False):
            module._buffers[name] = each.as_subclass(OnGpu)
    return net


@pytest.mark.slow
def test_what_is_written_is_fetched_from_the_device_first(trained, monkeypatch):
    there = {path: path.read_bytes() for path in (Path("models/model.safetensors"), Path("models/model.json"))}
    create, load = train.create, evaluate.weights.load
    monkeypatch.setattr(train, "create", lambda *settings: on_gpu(create(*settings)))
    shutil.rmtree("models")
    shutil.rmtree(".petals")
    done(train, *TRAIN)
    assert {path: path.read_bytes() for path in there} == there
    monkeypatch.setattr(evaluate.weights, "load", lambda path: (on_gpu(load(path)[0]), load(path)[1]))
    done(evaluate, *EVALUATE)


@pytest.mark.slow
def test_parts_stay_as_they_are_where_batch_norms_learn(folder, monkeypatch):
    """Smaller ones would give the norms other statistics."""
    tiny_records(folder / "data/tiny")
    knobs(image_size=160, train_size=0.8, epochs=2, finish=0.5, batch_size=12, robustness=0, freeze_stats=False)
    done(prepare, "data/tiny", *PREPARE)
    done(augment, *AUGMENT)
    shapes = shapes_of_training(monkeypatch)
    done(train, *TRAIN)
    assert shapes == [(12, 3, 128, 128)] * 2 + [(12, 3, 160, 160)] * 2


@pytest.mark.slow
def test_views_drawn_online_have_the_size_of_training(folder, monkeypatch):
    tiny_records(folder / "data/tiny")
    knobs(image_size=160, train_size=0.8, epochs=1, finish=0, views=0, batch_size=12, robustness=0)
    done(prepare, "data/tiny", *PREPARE)
    done(augment, *AUGMENT)
    shapes = shapes_of_training(monkeypatch)
    numbers, update = [], AveragedWeights.update
    monkeypatch.setattr(AveragedWeights, "update", lambda self, number: numbers.append(number) or update(self, number))
    done(train, *TRAIN)
    assert shapes == [(12, 3, 128, 128)] * len(shapes) and numbers == list(range(len(shapes))), "of each step its own"


def test_scores_are_those_of_answers_calibrated_on_other_images(trained, monkeypatch):
    done(evaluate, *EVALUATE)
    monkeypatch.setattr(evaluate, "cross_fitted", lambda labels, scores: np.full_like(scores, 1 / scores.shape[1]))
    done(evaluate, *EVALUATE)
    classes = json.loads(Path("data/prepared/val/meta.json").read_text())["classes"]
    found = json.loads(Path("metrics/evaluate.json").read_text())
    assert found["nll"] == pytest.approx(np.log(len(classes)), abs=1e-4)


@pytest.mark.slow
def test_training_starts_from_a_file(trained):
    Path("data/weights").mkdir()
    weights = Path("models/model.safetensors").rename("data/weights/flowers.safetensors")
    knobs(pretrained=weights.name)
    warm = [*TRAIN[:3], str(weights), *TRAIN[4:]]
    assert f"weights and head from {weights}" in done(train, *warm)
    first = set(Path(".petals").glob("train-*.safetensors"))
    Path("models/model.safetensors").rename(weights)
    done(train, *warm)
    assert len(set(Path(".petals").glob("train-*.safetensors")) - first) == 1, "other weights are another run"

    for split in ("train", "val"):
        meta = Path(f"data/prepared/{split}/meta.json")
        meta.write_text(meta.read_text().replace("tulip", "rose"))
    assert f"weights from {weights}; the head is new" in done(train, *warm)
    weights.write_bytes(b"not tensors")
    assert f"{weights} is broken or cut short" in refused(train, *warm)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "mobilevit_s", "image_size": 96}, "mobilevit_s cannot take 96, .*nearest: 64 or 128"),
        ({"model": "vit_s_conv"}, "no published weights of vit_s_conv; set pretrained=false"),
        ({"model": "tinyvit_5m"}, "did you mean tiny_vit_5m"),
        ({"pretrained": "ture"}, "pretrained: should be true, false, or the name of a .safetensors file"),
    ],
)
def test_the_first_stage_refuses_what_cannot_be_trained(folder, changed, said):
    tiny_records(folder / "data/tiny")
    knobs(**changed)
    assert re.search(said, refused(prepare, "data/tiny", *PREPARE))
    assert not Path("data/prepared").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_export_in_int8_or_not(trained, monkeypatch):
    done(evaluate, *EVALUATE)
    monkeypatch.setattr(Quantiser, "by_sensitivity", lambda quantiser, progress: quantiser.layers)
    knobs(image_size=32, max_f1_drop=1.0)
    assert "int8, 50 of 50 layers: macro F1 on val changes by +0.0000" in done(export, *EXPORT)
    written = json.loads(Path("metrics/export.json").read_text())
    assert written["int8"]["kept"] and written["int8"]["layers_in_float"] == []
    for path, scores in (("models/model.onnx", written), ("models/model.int8.onnx", written["int8"])):
        model = Model.open(path)
        model.check()
        assert model.scores == {"macro_f1": scores["macro_f1"], "accuracy": scores["accuracy"]}
        assert scores["bytes"] == Path(path).stat().st_size
    assert model.metadata["precision"] == "int8: 50 of 50 layers"
    assert written["int8"]["bytes"] < 0.4 * written["bytes"]

    monkeypatch.setattr(export, "headline", dwindling())
    monkeypatch.setattr(quantisation, "SHARES", (1 / 16, 1 / 2))
    knobs(image_size=32, max_f1_drop=0.005)
    said = done(export, *EXPORT)
    assert "int8, 46 of 50 layers" in said and "int8, 25 of 50 layers" in said
    assert "model.int8.onnx: left empty, as macro F1 on val falls by more than 0.005 in int8" in said
    assert Path("models/model.int8.onnx").read_bytes() == b""
    Model.open("models/model.onnx").check()
    left = json.loads(Path("metrics/export.json").read_text())["int8"]
    assert not left["kept"] and left["bytes"] == 0 and len(left["layers_in_float"]) == 25


def dwindling() -> Callable[..., dict[str, float]]:
    """Scores that are worse each time they are asked for."""
    falling = count(900, -50)
    return lambda labels, found: {"macro_f1": next(falling) / 1000, "accuracy": 0.5}


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_an_export_may_disagree_on_one_image_of_a_thousand(trained, monkeypatch):
    done(evaluate, *EVALUATE)
    monkeypatch.setattr(export, "agreement", lambda *_: 0.998)
    assert "not written: ONNX Runtime agrees with PyTorch on 99.80%" in refused(export, *EXPORT)


@pytest.mark.usefixtures("exported_once")
def test_an_export_that_disagrees_is_not_written(trained, monkeypatch):
    done(evaluate, *EVALUATE)
    honest = export.answers
    monkeypatch.setattr(export, "answers", lambda *arguments: [each[:, ::-1] for each in honest(*arguments)])
    assert "not written" in refused(export, *EXPORT)
    assert not Path("models/model.onnx").exists() and not Path("metrics/export.json").exists()


PLAIN = {"flip": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "balance": 0.0, "adjust": 0}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    """A folder in which prepare and augment have run on classes of eight, eight and four images."""
    root = tmp_path_factory.mktemp("uneven")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        knobs()
        tiny_folders(root / "data/folders")
        for path in sorted((root / "data/folders/tulip").iterdir())[4:]:
            path.unlink()
        done(prepare, "data/folders", *PREPARE)
        done(augment, *AUGMENT)
    return root


@pytest.fixture(scope="module")
def plain_weights(uneven) -> bytes:
    """What train makes there of PLAIN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(uneven)
        knobs(**PLAIN, epochs=2)
        done(train, *TRAIN)
        return Path(TRAIN[4]).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("flip", 1.0), ("erasing", 1.0), ("mixup", 1.0), ("cutmix", 1.0), ("label_smoothing", 0.2), ("balance", 1.0),
        ("head_lr", 7), ("weight_decay", 5.0), ("clip_norm", 1e-3), ("ema", 0.0), ("seed", 2), ("frozen", 0.9),
        ("warmup_epochs", 0.0),
    ],
)  # fmt: skip
def test_each_knob_of_training_changes_the_weights(uneven, plain_weights, monkeypatch, knob, value):
    monkeypatch.chdir(uneven)
    knobs(**PLAIN | {"epochs": 2, knob: value})
    done(train, *TRAIN)
    assert Path(TRAIN[4]).read_bytes() != plain_weights


@pytest.mark.slow
def test_each_share_of_the_augmentation_is_for_what_it_is_called(uneven, monkeypatch):
    monkeypatch.chdir(uneven)
    made, make = [], train.BatchAugmentation

    def remembered(classes: int, policy: object = None, **shares: float) -> train.BatchAugmentation:
        made.append(shares)
        return make(classes, policy=policy, **shares)

    monkeypatch.setattr(train, "BatchAugmentation", remembered)
    shares = dict(flip=0.1, erasing=0.2, mixup=0.3, cutmix=0.4)
    knobs(**shares)
    done(train, *TRAIN)
    assert made == [shares] * 2


@pytest.mark.slow
def test_another_seed_begins_with_another_head_and_draws_other_numbers(uneven, monkeypatch):
    monkeypatch.chdir(uneven)
    heads, seeds, reseed = [], [], train.reseed
    create = train.models.create

    def remembered(*arguments: object) -> train.Classifier:
        net = create(*arguments)
        heads.append(net.head.weight.detach().clone())
        return net

    monkeypatch.setattr(train.models, "create", remembered)
    monkeypatch.setattr(train, "reseed", lambda seed, device: seeds.append(seed) or reseed(seed, device))
    for seed in (1, 2):
        knobs(seed=seed)
        done(train, *TRAIN)
    assert not torch.equal(*heads)
    assert len(set(seeds)) == len(seeds)


@pytest.mark.slow
def test_the_loss_of_an_epoch_is_its_own(uneven, monkeypatch):
    monkeypatch.chdir(uneven)
    losses, step = [], train.Trainer.step
    monkeypatch.setattr(train.Trainer, "step", lambda *each: losses.append(step(*each)) or losses[-1])
    knobs(epochs=3)
    done(train, *TRAIN)
    with open("plots/train/train/loss.tsv", encoding="utf-8") as file:
        found = [float(row["loss"]) for row in csv.DictReader(file, delimiter="\t")]
    assert found == pytest.approx(np.mean(np.reshape(losses, (3, -1)), axis=1), rel=1e-5)


@pytest.mark.slow
def test_a_final_model_without_a_test_split_is_compared_with_val(uneven, folder):
    shutil.copytree(uneven, folder, dirs_exist_ok=True)
    knobs(final=True)
    done(prepare, "data/folders", *PREPARE)
    done(augment, *AUGMENT)
    done(train, *TRAIN)
    assert "models/reference.json describes images that were learnt from" in done(evaluate, *EVALUATE)
    val = json.loads(Path("data/prepared/val/ids.json").read_text())
    assert Reference.from_json(Path("models/reference.json").read_text()).images == len(val)


def test_the_picture_of_mistakes_begins_with_the_surest_and_says_which_is_which(trained, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluate.pictures, "grid", lambda tiles, captions, path: drawn.append(captions) or path.touch())
    done(evaluate, *EVALUATE)
    wrong = [row for row in table("plots/predictions.csv") if row["actual"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["confidence"]))
    assert len(wrong) > 1
    assert [caption for row in drawn[0] for caption in row] == [
        f"{row['id']}\ntrue: {row['actual']}\npredicted: {row['predicted']}\nconfidence: {float(row['confidence']):.0%}"
        for row in wrong
    ]


def test_precision_and_support_are_those_of_the_predictions(trained):
    done(evaluate, *EVALUATE)
    rows = table("plots/predictions.csv")
    for each in table("plots/per_class.csv"):
        said = [row for row in rows if row["predicted"] == each["class"]]
        hits = sum(row["actual"] == each["class"] for row in said)
        assert float(each["precision"]) == pytest.approx(hits / max(len(said), 1), abs=1e-3)
        assert int(each["support"]) == sum(row["actual"] == each["class"] for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_int8_of_a_final_model_that_changes_its_answers_is_not_kept(trained, monkeypatch):
    meta = Path("models/model.json")
    meta.write_text(meta.read_text().replace('"final": false', '"final": true'))
    done(evaluate, *EVALUATE)
    agreement = export.agreement

    def disagreement(found: np.ndarray, expected: np.ndarray) -> float:
        return agreement(found, expected) if np.allclose(found, expected, atol=1e-4) else 0.9

    monkeypatch.setattr(Quantiser, "by_sensitivity", lambda quantiser, progress: quantiser.layers)
    monkeypatch.setattr(quantisation, "SHARES", (1 / 2,))
    monkeypatch.setattr(export, "agreement", disagreement)
    knobs(max_f1_drop=0.05)
    said = done(export, *EXPORT)
    assert "left empty, as agreement with fp32 on val falls by more than 0.05" in said
    assert "top-1 agreement 100.00%" in said
    assert "macro_f1" not in json.loads(Path("metrics/export.json").read_text())
    assert "none, as it is trained on val too" in summary()
