"""tune.yaml, and the mistakes that one makes in it: each is one line, before anything runs."""

import json
import shutil
from pathlib import Path

import optuna
import pytest
import yaml
from click.testing import CliRunner
from conftest import ORIGINAL, REPOSITORY
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import FixedTrial

from petals.errors import PetalsError
from petals.tune.__main__ import main
from petals.tune.experiments import last_error, override, read_curve
from petals.tune.space import Choice, FloatRange, fingerprint, load_search, metric

SEARCH = {
    "objective": "metrics/evaluate.json:macro_f1",
    "curve": "val/macro_f1",
    "space": {
        "lr": {"type": "float", "low": 3e-5, "high": 3e-3, "log": True},
        "head_lr": {"type": "int", "low": 1, "high": 30},
        "frozen": {"type": "choice", "values": [0.0, 0.3, 0.6]},
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(ORIGINAL)
    monkeypatch.chdir(tmp_path)
    write()
    return tmp_path


def write(**changed: object) -> None:
    with open("tune.yaml", "w") as file:
        yaml.safe_dump(SEARCH | changed, file)


def test_the_search_of_this_repository_can_be_read():
    load_search(REPOSITORY / "tune.yaml", [], REPOSITORY / "params.yaml")


def test_a_value_that_is_not_in_the_space_is_told():
    search, values = load_search("tune.yaml", [])
    assert search.outside(values) == []
    assert sorted(search.outside(values | {"lr": 0.1, "head_lr": True, "frozen": 0.5})) == ["frozen", "head_lr", "lr"]
    assert search.outside(values | {"head_lr": 2.5}) == ["head_lr"], "which Optuna would make 2 of"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": {"learning_rate": {"type": "float", "low": 0, "high": 1}}}, "space: no stage reads 'learning_rate'"),
        ({"space": {"head_ls": {"type": "float", "low": 1, "high": 2}}}, "'head_ls'; did you mean head_lr?"),
        ({"space": {"epochs": {"type": "float", "low": 1.5, "high": 3}}}, "space: epochs: should be a valid integer"),
        ({"space": {"lr": {"type": "float", "low": 0.1, "high": 20}}}, "lr: should be less than or equal to 10"),
        ({"space": {"lr": {"type": "float", "low": "small", "high": 1}}}, "space.lr.low: should be a valid number"),
        ({"space": {"lr": {"type": "float", "low": 1, "high": 0.1}}}, "space.lr: low should be less than high"),
        ({"space": {"mixup": {"type": "float", "low": 0, "high": 0.5, "log": True}}}, "more than 0 where log is true"),
        ({"space": {"lr": {"type": "double", "low": 1, "high": 2}}}, "space.lr: should be {type: float, int or choice"),
        ({"space": {"lr": {"type": "float", "low": 0.1}}}, "space.lr.high is missing"),
        ({"space": {"lr": 3}}, "space.lr: "),
        ({"space": {"model": {"type": "choice", "values": ["vit_ti_16", "vgg"]}}}, "vgg"),
        ({"space": {"model": {"type": "choice", "values": []}}}, "space.model.values: "),
        ({"space": {"mixup": {"type": "float", "low": 0, "high": 0.95}}}, "add up to 1 at most"),
        ({"space": {"seed": {"type": "int", "low": 1, "high": 9}}}, "seed is chance"),
        ({"space": {}}, "space: "),
        ({"seeds": [1, 1]}, "seeds: each should be there once"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [99999999999999999999]}, "seeds.0: should be less than 9223372036854775808"),
        ({"objective": "macro_f1"}, "objective: "),
        (
            {"objective": "metrics/test.json:f1"},
            "objective: the pipeline has no metrics metrics/test.json; there is m",
        ),
        (
            {"objective": "/tmp/x.json:f1"},
            "objective: the pipeline has no metrics /tmp/x.json; there is metrics/p",
        ),
        ({"curve": "../val/nll"}, "curve: should be one of plots/train, but is '../val/nll'"),
        ({"curve": "/val/nll"}, "curve: should be one of plots/train, but is '/val/nll'"),
        ({"direction": "up"}, "direction: "),
        ({"direction": "minimize"}, "objective: macro_f1 should be maximized; write direction: maximize"),
        (
            {"objective": "metrics/evaluate.json:calibration.nll_before", "direction": "minimize"},
            "curve: val/macro_f1 is",
        ),
        ({"objective": "metrics/evaluate.json:nll"}, "objective: nll should be minimized; write direction: minimize"),
        ({"curve": "val/nll"}, "curve: val/nll is to minimize, but the objective to maximize"),
        ({"trials": 3}, "trials: there is no such key"),
    ],
)
def test_a_mistake_is_one_line(changed, said):
    write(**changed)
    with pytest.raises(PetalsError) as caught:
        load_search("tune.yaml", [])
    assert str(caught.value).startswith("tune.yaml: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_narrow_range_is_searched_in_its_own_digits():
    trial = FixedTrial({"ema": 0.99951234, "lr": 3.21987e-5, "zero": 0.0, "wide": 1234.5678})
    for knob, low, high, value in (
        ("ema", 0.999, 0.9999, 0.999512),
        ("lr", 1e-5, 1e-1, 3.22e-5),
        ("zero", -1, 1, 0.0),
        ("wide", 1.0, 1e4, 1230.0),
    ):
        found = FloatRange(type="float", low=low, high=high).suggest(trial, knob)
        assert found == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("stages", [3, {"prepare": None}])
def test_a_pipeline_that_is_none_is_one_line(folder, stages):
    write()
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(PetalsError, match=r"^dvc\.yaml: stages: should be a mapping of names to stages"):
        load_search("tune.yaml", [])


def test_a_curve_that_lies_elsewhere_is_told_with_those_there_are(folder):
    for name in ("val/nll", "train/loss"):
        (folder / "plots/train" / name).parent.mkdir(parents=True)
        (folder / "plots/train" / f"{name}.tsv").touch()
    write(curve="../nll")
    with pytest.raises(PetalsError, match=r"but is '\.\./nll'; there is train/loss, val/nll$"):
        load_search("tune.yaml", [])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lr", "-S lr: is not KNOB=VALUE"),
        ("lrr=1", "-S: no stage reads 'lrr'; did you mean lr?"),
        ("lr=20", "-S lr=20: lr: should be less than or equal to 10, but is 20"),
        ("seed=3", "-S seed=3: the search sets it, to each of seeds: in tune.yaml; write it there"),
        ("epochs=many", "epochs: should be a valid integer, but is 'many'"),
        ("epochs=!!bool many", "epochs: should be a valid integer, but is '!!bool many'"),
    ],
)
def test_a_setting_that_will_not_do_is_one_line(setting, said):
    with pytest.raises(PetalsError) as caught:
        load_search("tune.yaml", [setting])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_says_it_in_one_line_and_begins_nothing(folder):
    write(space={"learning_rate": {"type": "float", "low": 0, "high": 1}})
    done = CliRunner().invoke(main, [])
    assert (done.exit_code, done.output) == (
        1,
        "Error: tune.yaml: space: no stage reads 'learning_rate'; the knobs are those of params.yaml\n",
    )
    assert not (folder / ".petals").exists()
    assert CliRunner().invoke(main, ["--name", "../x"]).exit_code == 2
    assert CliRunner().invoke(main, ["--space", "none.yaml"]).output.startswith("Error: none.yaml: not found")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("macrof1", "metrics/evaluate.json has no number 'macrof1'; there is macro_f1, best.macro_f1"),
        ("best.f1", "metrics/evaluate.json has no number 'best.f1'; there is "),
        ("best", "metrics/evaluate.json has no number 'best'; there is "),
        ("classes", "metrics/evaluate.json has no number 'classes'; there is "),
    ],
)
def test_an_objective_that_is_not_in_its_file_is_told_before_any_trial(folder, key, said):
    (folder / "metrics").mkdir()
    measured = {"macro_f1": 0.5, "classes": ["rose"], "best": {"macro_f1": 1, "nll": 0.1}}
    (folder / "metrics/evaluate.json").write_text(json.dumps(measured))
    write(objective="metrics/evaluate.json:best.macro_f1")
    assert load_search("tune.yaml", [])[0].objective.endswith("best.macro_f1")
    write(objective=f"metrics/evaluate.json:{key}")
    with pytest.raises(PetalsError) as caught:
        load_search("tune.yaml", [])
    assert str(caught.value).startswith(f"tune.yaml: objective: {said}") and "\n" not in str(caught.value)


def test_settings_are_read_as_params_yaml_is():
    _, values = load_search("tune.yaml", ["lr=3e-5", "pretrained=false", "data=data/my photographs"])
    assert (values["lr"], values["pretrained"], values["data"]) == (3e-5, False, "data/my photographs")


def test_what_is_suggested_lies_in_the_space_and_has_three_digits():
    search, _ = load_search("tune.yaml", [])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(50):
        settings = search.suggest(study.ask())
        assert search.outside(settings) == []
        assert float(f"{settings['lr']:.3g}") == settings["lr"]


@pytest.mark.parametrize(
    "value", [1, 2.5, 1e-05, True, False, "auto", "cuda:1", "true", "1e-3", "my 'own' photographs", "a,b"]
)
def test_hydra_reads_a_setting_back_as_what_it_was(value):
    parsed = OverridesParser.create().parse_override(override("knob", value)).value()
    assert parsed == value and type(parsed) is type(value)


def test_only_what_trials_have_in_common_is_in_the_fingerprint(folder):
    search, values = load_search("tune.yaml", [])
    first = fingerprint(search, values)
    assert fingerprint(search, values | {"lr": 1e-3, "seed": 5}) == first
    assert fingerprint(search, values | {"epochs": 5}) != first
    assert fingerprint(search.model_copy(update={"seeds": [1, 2]}), values) != first
    (folder / "stages").mkdir()
    for path in ("stages/train.py", f"{values['data']}.dvc", "data.dvc"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("another")
        former, first = first, fingerprint(search, values)
        assert first != former


def test_a_curve_is_read_up_to_its_last_whole_line():
    assert read_curve("step\tmacro_f1\n0\t0.5\n1\t0.625\n2\t0.7") == {0: 0.5, 1: 0.625}
    assert read_curve("") == read_curve("step\tmac") == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epoch 1\nError: lower lr\nERROR: failed to reproduce 'train': failed to run: x, exited with 1\n", "lower lr"),
        ("ERROR: failed to reproduce 'train': failed to run: x, exited with -9\n", "train exited with -9"),
        ("ERROR: the queue is shut\n\nsee the docs", "the queue is shut"),
        ("fatal: bad object", "bad object"),
        (
            "'./dvc.lock' is invalid.\n\nDid not find expected node content, in line 3\n  3\n",
            "'./dvc.lock' is invalid.",
        ),
        ("Did it run?\n'./dvc.lock' validation failed.\n\n  3   a: 3\n  745", "'./dvc.lock' validation failed."),
        ("it ends\n  745", "it ends"),
        ("Traceback (most recent call last):\n  File x\n    y()\nOSError: no space", "OSError: no space"),
        ("", "it gave no reason"),
    ],
)
def test_the_reason_is_found_in_what_was_printed(text, line):
    assert last_error(text) == line


def test_other_weights_to_start_from_are_another_search(folder):
    search, values = load_search("tune.yaml", [])
    values = values | {"pretrained": "flowers.safetensors"}
    first = fingerprint(search, values)
    (folder / "data/weights").mkdir(parents=True)
    (folder / "data/weights/flowers.safetensors.dvc").write_text("outs: [{md5: a}]")
    assert fingerprint(search, values) != first


def test_whether_is_no_score():
    with pytest.raises(PetalsError, match=r"has no number 'int8\.kept'"):
        metric('{"int8": {"kept": true, "macro_f1": 0.5}}', "metrics/export.json:int8.kept")


def test_what_is_rounded_stays_within_its_range():
    narrow = FloatRange(type="float", low=0.12345, high=0.98765)
    for value in (0.12345, 0.98765):
        assert narrow.holds(narrow.suggest(FixedTrial({"lr": value}), "lr"))


def test_true_is_none_of_the_numbers():
    assert not Choice(type="choice", values=[1, 2]).holds(True)
    assert not Choice(type="choice", values=[True, False]).holds(1)
