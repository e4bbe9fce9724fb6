"""The table row of several seeds; the runs themselves are those of test_soak and test_pipeline."""

import statistics

import pytest
from click.testing import CliRunner

from benchmarks import seeds


def test_a_row_has_mean_and_deviation_over_the_seeds(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def run(knobs: dict[str, str]) -> tuple[dict[str, float], float]:
        asked.append(knobs)
        return {"macro_f1": 0.9 + 0.01 * int(knobs["seed"]), "nll": 0.25}, 90.0

    monkeypatch.setattr(seeds, "run", run)
    done = CliRunner().invoke(seeds.main, ["-S", "lr=1e-4", "-S", "data=data/mine", "--seeds", "3"])
    assert done.exit_code == 0, done.output
    deviation = statistics.stdev([0.91, 0.92, 0.93])
    assert (
        done.output.splitlines()[-1] == f"| `-S lr=1e-4 -S data=data/mine` | 0.9200 ± {deviation:.4f} | 0.250 | 1.5 |"
    )
    assert [knobs["seed"] for knobs in asked] == ["1", "2", "3"]
    assert asked[0] == {"robustness": "0", "lr": "1e-4", "data": "data/mine", "seed": "1"}


def test_one_seed_has_no_deviation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seeds, "run", lambda knobs: ({"macro_f1": 0.9, "nll": 0.25}, 90.0))
    done = CliRunner().invoke(seeds.main, ["--seeds", "1"])
    assert done.output.splitlines()[-1] == "| `the defaults` | 0.9000 | 0.250 | 1.5 |"


def test_a_knob_that_is_not_there_is_named():
    done = CliRunner().invoke(seeds.main, ["-S", "learning_rate=1"])
    assert done.exit_code == 2 and "params.yaml has no learning_rate" in done.output


def test_a_setting_without_a_value_is_refused():
    done = CliRunner().invoke(seeds.main, ["-S", "lr"])
    assert done.exit_code == 2 and "KNOB=VALUE" in done.output
