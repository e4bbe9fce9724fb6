"""What every workflow must hold to, and what else GitHub and pre-commit read."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / ".github" / "scripts"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request) -> dict:
    return yaml.load(request.param.read_text(), Loader=yaml.BaseLoader)


def test_nothing_is_granted_but_by_a_job_and_every_job_ends(workflow):
    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert "permissions" in job
        assert int(job["timeout-minutes"])
        assert job["runs-on"] == "ubuntu-24.04" or job["runs-on"][0] == "self-hosted"


def test_what_runs_the_code_of_a_pull_request_may_read_and_no_more(workflow):
    assert "pull_request_target" not in workflow["on"]
    if "pull_request" in workflow["on"]:
        assert "secrets." not in json.dumps(workflow)
        assert all(job["permissions"] == {"contents": "read"} for job in workflow["jobs"].values())


@pytest.mark.parametrize(("word", "names"), [("id-token", ["deploy", "images", "train"]), ("secrets.", ["train"])])
def test_few_sign_in_to_google_cloud_and_training_alone_has_a_secret(word, names):
    assert [path.stem for path in WORKFLOWS if word in path.read_text()] == names


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_a_commit_with_the_version_behind(path):
    for line in re.findall(r"uses: .*", path.read_text()):
        assert re.fullmatch(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_steps_run_few_lines_with_no_expression_in_them(workflow):
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert steps
    for step in steps:
        assert "${{" not in step.get("run", "")
        assert len(step.get("run", "").splitlines()) <= 3
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


def test_the_workflow_that_comments_checks_out_the_default_branch_alone():
    comment = yaml.load((ROOT / ".github/workflows/comment.yml").read_text(), Loader=yaml.BaseLoader)
    (job,) = comment["jobs"].values()
    checkouts = [step for step in job["steps"] if "checkout" in step.get("uses", "")]
    assert [step["with"] for step in checkouts] == [{"persist-credentials": "false"}]
    assert not any("download-artifact" in step.get("uses", "") for step in job["steps"])
    (post,) = [step["run"] for step in job["steps"] if "cml " in step.get("run", "")]
    assert "--publish=false" in post
    assert comment["on"]["workflow_run"]["workflows"] == ["Report"]


@pytest.mark.parametrize(("name", "command"), [("ci", "make repro"), ("reproduce", "make verify")])
def test_what_needs_the_data_runs_only_where_it_can_be_had(name, command):
    workflow = yaml.load((ROOT / f".github/workflows/{name}.yml").read_text(), Loader=yaml.BaseLoader)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    (run,) = [step for step in steps if step.get("run") == command]
    check = steps[steps.index(run) - 1]
    assert check["run"] == ".github/scripts/data-at-hand.sh"
    assert run["if"] == f"steps.{check['id']}.outputs.here == 'true'"


def test_scripts_that_workflows_name_are_there_and_can_be_run():
    named = {name for path in WORKFLOWS for name in re.findall(r"\.github/scripts/([\w.-]+)", path.read_text())}
    assert named <= {path.name for path in SCRIPTS.iterdir()}
    assert all(os.access(path, os.X_OK) for path in SCRIPTS.glob("*.sh"))


def test_hooks_are_pinned_to_the_versions_that_are_installed():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    *others, own = hooks
    pins = {hook["repo"].rsplit("/", 1)[1]: hook["rev"] for hook in others}
    requirements = (ROOT / "requirements.txt").read_text()
    assert f"ruff=={pins['ruff-pre-commit'].removeprefix('v')} " in requirements
    assert f"dvc[gs]=={pins['dvc']} " in requirements
    assert {hook["id"] for hook in others[-1]["hooks"]} == {"dvc-pre-commit", "dvc-post-checkout"}
    (push,) = own["hooks"]  # DVC's own tries again for minutes where it has no access
    assert push["entry"] == "python -m petals.remote push --if-bucket"
    assert push["additional_dependencies"] == [f"dvc[gs]=={pins['dvc']}"]


def test_google_cloud_lets_in_the_workflows_that_sign_in_each_to_its_own_account():
    guide, deployment = (ROOT / "docs/gcp.md").read_text(), (ROOT / "docs/deploy.md").read_text()
    condition = re.search(r'^CONDITION="(.*?)"$', guide, re.MULTILINE | re.DOTALL)[1]
    assert condition.startswith("assertion.repository_id == '$ID' && (")
    refs = {"train": "refs/heads/main", "images": "refs/heads/main", "deploy": "refs/tags/flowers#prod#"}
    assert re.findall(r"\$WORKFLOWS/(\w+)\.yml@([\w/#]+)'", condition) == list(refs.items())
    assert "deploy.yml@refs/tags/flowers#prod#') && assertion.environment == 'production')" in condition
    accounts = {
        path.stem: set(re.findall(r"service_account: \$\{\{ vars\.(\w+) \}\}", path.read_text())) for path in WORKFLOWS
    }
    assert {name: names for name, names in accounts.items() if names} == {
        "train": {"GCP_SERVICE_ACCOUNT"},
        "images": {"GCP_IMAGES_ACCOUNT"},
        "deploy": {"GCP_RELEASE_ACCOUNT"},
    }
    assert re.findall(r"attribute\.workflow/\$ID/(\S+)\"", guide) == ["train.yml"]
    lent = r"binding \$(\w+) --role=roles/iam\.workloadIdentityUser \\\n +--member=\"\S+/\$ID/(\S+)\""
    assert re.findall(lent, deployment) == [("IMAGES", "images.yml"), ("RELEASE", "deploy.yml")]
    # Whoever may push to main can run Images, past those who must approve a deployment.
    rights = re.findall(r"serviceAccount:\$(\w+) --role=(\S+)", deployment.partition("## Take it down")[0])
    assert not [role for account, role in rights if account == "IMAGES"]
    assert "for ACCOUNT in $IMAGES $RELEASE; do\n  gcloud artifacts repositories add-iam-policy" in deployment


def test_the_registry_keeps_what_it_promises_though_attestations_count_as_versions():
    deployment = (ROOT / "docs/deploy.md").read_text()
    rules = json.loads(re.search(r"cleanup\.json << 'END'\n(.*?)\nEND\n", deployment, re.DOTALL)[1])
    kept = [each["mostRecentVersions"] for each in rules if each["action"]["type"] == "Keep"]
    found = {kind: rule["keepCount"] for rule in kept for kind in rule["packageNamePrefixes"]}
    versions = 3  # image, attestation, index
    assert found == {"train": 3 * versions, "serve": 20 * versions, "release": 20 * versions}


def test_a_machine_is_started_only_for_a_result_that_has_somewhere_to_go_and_its_scores_are_kept_in_any_case():
    jobs = yaml.safe_load((ROOT / ".github/workflows/train.yml").read_text())["jobs"]
    runs = [step["run"] for step in jobs["launch"]["steps"] if "run" in step]
    assert runs.index("python -m petals.remote check --address") < runs.index(".github/scripts/launch-machine.sh")
    (keep,) = [step for step in jobs["train"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert keep["if"] == "${{ !cancelled() }}"


def test_nobody_has_to_approve_that_a_machine_is_deleted():
    jobs = yaml.safe_load((ROOT / ".github/workflows/train.yml").read_text())["jobs"]
    assert jobs["launch"]["environment"] == "training"
    assert "environment" not in jobs["stop"]


def test_a_model_is_tried_before_it_gets_traffic_and_only_in_production():
    deploy = yaml.load((ROOT / ".github/workflows/deploy.yml").read_text(), Loader=yaml.BaseLoader)
    assert deploy["on"]["push"] == {"tags": ["flowers#prod#*"]}
    (job,) = deploy["jobs"].values()
    assert job["environment"]["name"] == "production"
    runs = [step["run"].removeprefix(".github/scripts/") for step in job["steps"] if "run" in step]
    assert runs[-3:] == ["deploy.sh", 'smoke.sh "$URL" "$MODEL"', "traffic.sh to next"]
    assert not any("always()" in step.get("if", "") for step in job["steps"])


def test_what_is_pushed_is_attested_by_digest_on_every_plan_that_can():
    for name in ("images", "deploy"):
        workflow = yaml.load((ROOT / f".github/workflows/{name}.yml").read_text(), Loader=yaml.BaseLoader)
        (job,) = workflow["jobs"].values()
        (attest,) = [step for step in job["steps"] if "attest" in step.get("uses", "")]
        assert attest["with"]["subject-digest"].endswith(".outputs.digest }}")
        assert attest["if"] == "${{ !github.event.repository.private || vars.ATTEST_PRIVATE == 'true' }}"
        assert job["permissions"]["attestations"] == "write"
