"""The whole pipeline, run by DVC in a copy of this repository on a tiny data set."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from project import COLOURS, copy_project, run, tiny_folders, tiny_records

pytestmark = pytest.mark.slow
STAGES = ("prepare", "augment", "train", "evaluate", "export")
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The project after one `dvc repro`; what its stages opened is in watch.log beside it."""
    folder = tmp_path_factory.mktemp("pipeline") / "petals"
    copy_project(folder)
    tiny_records(folder / "data" / "tiny")
    watch = {"PYTHONPATH": str(REPOSITORY / "tests" / "watch"), "WATCH_LOG": str(folder.parent / "watch.log")}
    (folder.parent / "repro.log").write_text(run("dvc repro", folder, **watch).stdout)
    run("git add -A && git commit -qm run", folder)
    return folder


def ran(output: str) -> list[str]:
    """The stages that DVC says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_repro_runs_the_five_stages(project):
    assert ran((project.parent / "repro.log").read_text()) == list(STAGES)
    assert run("dvc status", project).stdout.strip() == "Data and pipelines are up to date."


def test_scores_and_tables_agree(project):
    scores = json.loads((project / "metrics/evaluate.json").read_text())
    predictions = rows(project / "plots/predictions.csv")
    right = [row["actual"] == row["predicted"] for row in predictions]
    assert len(predictions) == 9 and {row["actual"] for row in predictions} == set(COLOURS)
    assert scores["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    by_class = {row["class"]: float(row["f1"]) for row in rows(project / "plots/per_class.csv")}
    assert scores["macro_f1"] == pytest.approx(sum(by_class.values()) / 3, abs=1e-4)
    assert scores["f1"] == [{"class": name, "f1": pytest.approx(f1, abs=1e-4)} for name, f1 in by_class.items()]


def test_the_submission_names_every_test_image_once(project):
    ids = json.loads((project / "data/prepared/test/ids.json").read_text())
    submission = rows(project / "data/submission.csv")
    assert [row["id"] for row in submission] == ids and len(set(ids)) == 4
    assert {int(row["label"]) for row in submission} <= {0, 1, 2}


def test_curves_have_a_point_an_epoch(project):
    loss = (project / "plots/train/train/loss.tsv").read_text().splitlines()
    assert loss[0] == "step\tloss" and len(loss) == 1 + 2
    assert json.loads((project / "metrics/train.json").read_text())["train"]["loss"] == float(loss[-1].split()[1])


def test_the_export_agrees(project):
    export = json.loads((project / "metrics/export.json").read_text())
    assert export["top1_agreement"] == 1.0 and export["max_abs_diff"] < 1e-4
    assert export["bytes"] == (project / "models/model.onnx").stat().st_size
    assert export["int8"]["bytes"] == (project / "models/model.int8.onnx").stat().st_size
    assert str(project).encode() not in (project / "models/model.onnx").read_bytes()


def test_no_output_names_a_place_of_this_machine(project):
    for folder in ("metrics", "plots", "models", "data/prepared", "data/augmented"):
        for path in (project / folder).rglob("*"):
            if path.is_file():
                assert str(project.parent).encode() not in path.read_bytes(), path


def assert_declared(project: Path, log: str, stage: str) -> None:
    """The watch in the file `log` beside the project saw `stage` open what it declares, and write it, and no more."""
    declared = yaml.safe_load((project / "dvc.yaml").read_text())["stages"][stage]
    knobs = yaml.safe_load((project / "params.yaml").read_text())
    weights = str(knobs["pretrained"]).replace("True", "true")
    deps = {dep.replace("${data}", knobs["data"]).replace("${pretrained}", weights) for dep in declared["deps"]}
    outs = {out if isinstance(out, str) else next(iter(out)) for out in declared["outs"] + declared.get("metrics", [])}

    read, written = set(), set()
    for line in (project.parent / log).read_text().splitlines():
        who, kind, name = line.split("\t")
        local = Path(name).relative_to(project).as_posix() if Path(name).is_relative_to(project) else ""
        # DVCLive asks DVC about the repository it is in; a folder is opened to be listed or removed.
        if who == stage and (project / local).is_file() and not local.startswith((".git", ".dvc", ".petals/")):
            (read if kind == "r" else written).add(local)

    def inside(path: str, roots: set[str]) -> bool:
        return any(path == root or path.startswith(root + "/") for root in roots)

    assert {path for path in read if not inside(path, deps | outs)} == {"params.yaml"}
    assert not {path for path in written if not inside(path, outs)}
    untouched = {dep for dep in deps if not any(inside(path, {dep}) for path in read)}
    assert not untouched, "declared, but never opened"
    assert all((project / out).exists() for out in outs)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_what_it_touches(project, stage):
    assert_declared(project, "watch.log", stage)


def test_again_by_force_gives_the_same_lock(project):
    lock = (project / "dvc.lock").read_bytes()
    shutil.rmtree(project / ".dvc/cache/runs", ignore_errors=True)
    assert ran(run("dvc repro --force", project).stdout) == list(STAGES)
    assert (project / "dvc.lock").read_bytes() == lock


def test_another_learning_rate_runs_train_and_what_follows(project):
    model = project / "models/model.safetensors"
    before = hashlib.md5(model.read_bytes()).hexdigest()
    output = run("dvc exp run -S lr=1e-4 evaluate", project).stdout
    assert ran(output) == ["train", "evaluate"]
    changed = json.loads(run("dvc status --json", project).stdout)
    assert list(changed) == ["export"]
    assert yaml.safe_load((project / "params.yaml").read_text())["lr"] == 1e-4
    assert hashlib.md5(model.read_bytes()).hexdigest() != before
    run("git checkout -q . && dvc checkout -q", project)


def test_a_final_run_of_one_folder_a_class_is_shown_and_compared_without_scores(project):
    tiny_folders(project / "data" / "my photographs")
    output = run("dvc exp run -S final=true -S 'data=data/my photographs'", project).stdout
    assert ran(output) == list(STAGES) and "scores nothing unseen" in output
    card = json.loads((project / "metrics/prepare.json").read_text())
    assert card["images"] == {"train": 18, "val": 6, "test": 0} and card["classes"] == 3
    assert rows(project / "data/submission.csv") == []
    assert json.loads((project / "metrics/evaluate.json").read_text()) == {"final": True}
    changed = json.loads(run("dvc metrics diff --json 2>/dev/null", project).stdout)
    assert changed["metrics/evaluate.json"]["macro_f1"]["new"] is None
    assert "Traceback" not in run("dvc plots show && dvc plots diff HEAD", project).stdout
    assert "none, as it is trained on val too" in run("python -m petals.summary", project).stdout
    run("git checkout -q -b final && git commit -qam final", project)
    assert "head is trained on validation too" in run("python -m petals.report main final", project).stdout
    assert "in step" in run("python -m petals.lockgate", project).stdout
    run("git checkout -q main && dvc checkout -q", project)


def test_weights_from_a_file_are_declared_like_everything_else(project):
    run("cp models/model.safetensors data/weights/flowers.safetensors", project)
    run("dvc add -q data/weights/flowers.safetensors && git add -A && git commit -qm weights", project)
    assert run("dvc status", project).stdout.strip() == "Data and pipelines are up to date."
    watch = {"PYTHONPATH": str(REPOSITORY / "tests" / "watch"), "WATCH_LOG": str(project.parent / "weights.log")}
    settings = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(settings.replace("pretrained: true", "pretrained: flowers.safetensors"))
    output = run("dvc repro train", project, **watch).stdout  # in `dvc exp run`, DVCLive has DVC open more
    assert ran(output) == ["train"]
    assert list(json.loads(run("dvc status --json", project).stdout)) == ["evaluate", "export"]
    assert "weights and head from data/weights/flowers.safetensors" in output
    assert_declared(project, "weights.log", "train")
    assert "data/weights/flowers.safetensors" in (project / "dvc.lock").read_text()
    run("git checkout -q . && dvc checkout -q", project)
