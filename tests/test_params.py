"""params.yaml: what is read, by whom, and what DVC may write into it."""

import ast
from pathlib import Path

import pytest
import yaml
from conftest import with_line
from dvc.utils.hydra import apply_overrides
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from petals.params import KNOBS, STAGES, PipelineParams, TrainParams, load_params, read_mapping

REPOSITORY = Path(__file__).parents[1]


# --- who reads what ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_dvc_yaml_says(stage: str):
    described = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(described) == list(STAGES)
    assert list(STAGES[stage].model_fields) == described[stage]["params"]
    assert ("${data}" in described[stage]["deps"]) == (stage == "prepare")


@pytest.mark.parametrize("folder", [".", "tests"])
def test_every_knob_of_the_file_is_read_and_every_knob_read_is_there(folder: str):
    path = REPOSITORY / folder / "params.yaml"
    assert set(read_mapping(path)) == KNOBS
    load_params(PipelineParams, path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_uses_each_knob_that_it_declares(stage: str):
    tree = ast.parse((REPOSITORY / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    if stage == "augment":  # takes these by name
        from petals.augmentation import POLICY_KNOBS

        used |= set(POLICY_KNOBS)
    assert used - {"model_dump", "model_copy"} == set(STAGES[stage].model_fields)


def test_the_values_come_as_their_types(params: Path):
    knobs = load_params(TrainParams, params)
    assert [type(each) for each in (knobs.lr, knobs.pretrained, knobs.epochs, knobs.device)] == [float, bool, int, str]
    assert load_params(PipelineParams, params).data == "data/sample"
    with pytest.raises(ValueError, match="frozen"):
        knobs.lr = 1.0


def test_a_whole_number_will_do_for_a_float(params: Path):
    params.write_text(with_line("clip_norm", "5"), encoding="utf-8")
    assert load_params(TrainParams, params).clip_norm == 5


# --- what DVC writes ---


@pytest.mark.parametrize(
    ("knob", "written", "meant"),
    [
        ("lr", "1e-4", 1e-4),
        ("lr", "1e-05", 1e-5),
        ("lr", "0.0001", 1e-4),
        ("lr", "1E-4", 1e-4),
        ("lr", "5", 5.0),
        ("clip_norm", "1e20", 1e20),
        ("clip_norm", "123456789012345680.0", 123456789012345680.0),
        ("seed", "1000", 1000),
        ("seed", "1_000", 1000),
        ("seed", "0", 0),
        ("pretrained", "false", False),
        ("pretrained", "True", True),
        ("pretrained", "roses.safetensors", "roses.safetensors"),
        ("model", "tiny_vit_5m", "tiny_vit_5m"),
        *(("data", text, text) for text in ("on", "no", "off", "y", "1:30", "'010'", "'1e-3'", "'5'", "0x10")),
        ("data", "data/oxford17", "data/oxford17"),
        ("data", "2020-01-01", "2020-01-01"),
        ("data", "'true'", "true"),
        ("data", "'null'", "null"),
        ("data", "'my flowers: the best'", "my flowers: the best"),
        ("data", "'fleurs/été'", "fleurs/été"),
    ],
)
def test_what_dvc_exp_run_sets_comes_back(params: Path, knob: str, written: str, meant: object):
    apply_overrides(params, [f"{knob}={written}"])
    meant = meant.strip("'") if isinstance(meant, str) else meant
    model = PipelineParams if knob == "data" else TrainParams
    found = getattr(load_params(model, params), knob)
    assert found == meant and type(found) is type(meant)


scalars = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.booleans(),
    st.none(),
    st.text(st.characters(codec="utf-8", exclude_categories=("C",))),
    st.from_regex(r"[-+.0-9eE_:xobnyNYftrualsi~]{1,8}", fullmatch=True),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=scalars)
def test_whatever_dvcs_yaml_writer_writes_is_read_back_the_same(tmp_path: Path, value: object):
    path = tmp_path / "one.yaml"
    YAML().dump({"knob": value}, path)
    found = read_mapping(path)["knob"]
    assert found == value and type(found) is type(value)
