"""params.yaml: what is read, by whom, what DVC may write into it, and a line for every mistake."""

import ast
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from petals.errors import PetalsError
from petals.params import KNOBS, STAGES, PipelineParams, TrainParams, load_params, read_mapping

REPOSITORY = Path(__file__).parents[1]
ORIGINAL = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(ORIGINAL, encoding="utf-8")
    return path


def with_line(key: str, value: str) -> str:
    """The text of params.yaml with `key` set to `value`, whatever that is."""
    lines = [line for line in ORIGINAL.splitlines() if not line.startswith(f"{key}:")]
    return "\n".join([*lines, f"{key}: {value}", ""])


def fault(path: Path) -> str:
    with pytest.raises(PetalsError) as error:
        load_params(TrainParams, path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


# --- who reads what ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_dvc_yaml_says(stage: str):
    described = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(described) == list(STAGES)
    assert list(STAGES[stage].model_fields) == described[stage]["params"]
    assert ("${data}" in described[stage]["deps"]) == (stage == "prepare")


def test_every_knob_of_the_file_is_read_and_every_knob_read_is_there(params: Path):
    assert set(read_mapping(params)) == KNOBS


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
    assert used - {"model_dump"} == set(STAGES[stage].model_fields)


def test_the_values_come_as_their_types(params: Path):
    knobs = load_params(TrainParams, params)
    assert knobs.lr == 1e-3 and isinstance(knobs.lr, float)
    assert knobs.pretrained is True and knobs.epochs == 8 and knobs.device == "auto"
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
        ("model", "tiny_vit_5m", "tiny_vit_5m"),
        *(("model", text, text) for text in ("on", "no", "off", "y", "1:30", "'010'", "'1e-3'", "'5'", "0x10")),
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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=scalars)
def test_whatever_dvcs_yaml_writer_writes_is_read_back_the_same(tmp_path: Path, value: object):
    path = tmp_path / "one.yaml"
    YAML().dump({"knob": value}, path)
    found = read_mapping(path)["knob"]
    assert found == value and type(found) is type(value)


# --- mistakes ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- lr\n- epochs\n", "is a list"),
        (b"lr\n", "is a str"),
        (b"lr: [1,\n", "not valid YAML"),
        (b"\tlr: 1\n", "not valid YAML"),
        (b"lr: !!python/object:os.system x\n", "not valid YAML"),
        (b"lr: 1\n---\nlr: 2\n", "not valid YAML"),
        (b"? [a]\n: 1\n", "not valid YAML"),
        (b"seed: " + b"1" * 5000, "not valid YAML"),
        (b"seed: " + b"[" * 5000, "not valid YAML"),
        (b"1: 2\n", "1 is not a name"),
        (b"lr: \xff\n", "cannot be read as UTF-8"),
        (b"lr: 1\nepochs: 2\nlr: 3\n", "'lr' twice"),
        (b"lr: 1\n'lr': 3\n", "'lr' twice"),
    ],
)
def test_a_file_that_is_no_flat_mapping(params: Path, content: bytes, said: str):
    params.write_bytes(content)
    assert said in fault(params)


def test_the_place_of_a_mistake_is_said(params: Path):
    params.write_text("lr: 1\nepochs: 2\nlr: 3\n")
    assert fault(params) == "line 3: not valid YAML: 'lr' twice"
    params.write_text("lr: 1\nepochs: {2\n")
    assert fault(params).startswith("line 3: not valid YAML: expected ',' or '}'")


def test_an_absent_file(tmp_path: Path):
    assert "not found; run from the top folder" in fault(tmp_path / "params.yaml")
    assert "cannot be read" in fault(tmp_path)


def test_a_misspelt_knob_is_given_its_nearest_name(params: Path):
    params.write_text(ORIGINAL.replace("epochs:", "epoch:", 1))
    assert fault(params) == "no stage reads 'epoch'; did you mean epochs?"
    params.write_text(ORIGINAL + "zzzzzzzz: 1\n")
    assert fault(params) == "no stage reads 'zzzzzzzz'; remove it"


@pytest.mark.parametrize("key", sorted(KNOBS))
def test_a_missing_knob(params: Path, key: str):
    params.write_text("\n".join(line for line in ORIGINAL.splitlines() if not line.startswith(f"{key}:")))
    assert fault(params) == f"{key} is missing; add a line '{key}: …'"


@pytest.mark.parametrize("key", sorted(KNOBS))
@pytest.mark.parametrize("value", ["", "[1]", "{a: 1}", ".nan", "-.inf"])
def test_a_wrong_type_for_any_knob(params: Path, key: str, value: str):
    params.write_text(with_line(key, value))
    assert fault(params).startswith(f"{key}: should ")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr", "'1e-3'", "should be a valid number, but is '1e-3'"),
        ("epochs", '"8"', "should be a valid integer, but is '8'"),
        ("epochs", "8.0", "should be a valid integer"),
        ("epochs", "true", "should be a valid integer"),
        ("lr", "true", "should be a valid number"),
        ("pretrained", "yes", "should be a valid boolean, but is 'yes'"),
        ("pretrained", "1", "should be a valid boolean"),
        ("model", "5", "should be a valid string"),
        ("data", "''", "should have at least 1 character"),
        ("epochs", "0", "should be greater than or equal to 1, but is 0"),
        ("lr", "0", "should be greater than 0"),
        ("lr", "1e400", "should be a finite number"),
        ("clip_norm", ".inf", "should be a finite number"),
        ("ema", "1.0", "should be less than 1"),
        ("image_size", "15", "should be greater than or equal to 16"),
        ("val_fraction", "1", "should be less than 1"),
        ("hue", "0.6", "should be less than or equal to 0.5"),
        ("views", "-1", "should be greater than or equal to 0"),
        ("precision", "fp16", "should be 'fp32', 'bf16' or 'auto', but is 'fp16'"),
        ("device", "gpu", "but is 'gpu'"),
        ("device", '"cpu\\n"', "but is 'cpu\\n'"),
        ("cutmix", "0.95", "mixup and cutmix should add up to 1 at most, but is 0.95"),
    ],
)
def test_a_value_that_will_not_do(params: Path, key: str, value: str, said: str):
    params.write_text(with_line(key, value))
    message = fault(params)
    assert message.startswith(f"{key}: ") and said in message


def test_a_mistake_in_another_stages_knob_shows_at_once(params: Path):
    params.write_text(with_line("blur", "2"))
    assert fault(params).startswith("blur: should be less than or equal to 1")
