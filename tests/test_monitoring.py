"""What watches the service names what the service says, and means what it says."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import REPOSITORY

from serving.__main__ import main
from serving.metrics import Metrics

FOLDER = REPOSITORY / "serving" / "monitoring"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    families = list(Metrics().registry.collect())
    return {family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, ("",))}


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:petals|process|python)_\w+", expression))


def test_each_metric_of_the_dashboard_is_exported(exported):
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert names(target["expr"]), panel["title"]
            assert names(target["expr"]) <= exported
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert names(" ".join(variables)) <= exported
    assert names(dashboard["annotations"]["list"][0]["expr"]) <= exported


def test_the_likeliest_are_those_of_now():
    """Over a range of time topk is asked for each step, and those of all steps together are more than it says."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    ranked = [target for panel in panels for target in panel["targets"] if "topk(" in target["expr"]]
    assert ranked and all(target.get("instant") for target in ranked)


def test_the_panels_lie_beside_each_other():
    taken = set()
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells and at["x"] + at["w"] <= 24
        taken |= cells


def test_each_metric_of_the_alerts_is_exported(exported):
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert names(rule["expr"]) <= exported


def test_each_alert_is_seen_to_fire():
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in rules}


def test_any_window_can_be_full_enough_for_an_alert():
    (window,) = (each for each in main.params if each.name == "window")
    asked = re.findall(r"petals_drift_images >= (\d+)", (FOLDER / "alerts.yml").read_text())
    assert len(asked) == 3 and window.type.min >= max(map(int, asked))


def test_the_documentation_names_every_metric_and_alert(exported):
    text = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported if name.startswith("petals_")}
    assert not [name for name in families | {rule["alert"] for rule in rules} if f"`{name}`" not in text]


@pytest.mark.parametrize(
    "command",
    [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_finds_nothing_amiss(command):
    if not shutil.which("promtool"):
        pytest.skip("no promtool here; Debian's package prometheus has it")
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_reads_what_the_dashboard_asks(tmp_path):
    if not shutil.which("promtool"):
        pytest.skip("no promtool here; Debian's package prometheus has it")
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    asked = [target["expr"].replace("$__rate_interval", "1m") for panel in panels for target in panel["targets"]]
    rules = [{"record": f"asked:{number}", "expr": expression} for number, expression in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
