"""The scripts of the workflows, with stand-ins on PATH for gh, CML, gcloud, npm, dvc and python."""

import http.server
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from conftest import calls, with_line
from test_report import Repository, report, run_files

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / ".github" / "scripts"
CHART = """```mermaid
%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#0969da"}}}}%%
xychart-beta
    title "Loss"
    x-axis "epoch" 0 --> 1
    y-axis 0 --> 1.5
    line "head" [1.5, 0]
```"""
REPORT = "## macro F1 up\n\n| `rose` | 1 |\n\n<details>\n<summary>More</summary>\n\n#0969da --> 1\n\n</details>\n"
harmless = runpy.run_path(str(SCRIPTS / "fetch_report.py"))["harmless"]


def bash(script: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", *script.split()]
    command[1] = str(SCRIPTS / command[1])
    environment = os.environ | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


# Training


def test_training_hands_each_setting_over_as_one_argument(stand_in, tmp_path):
    stand_in("git")
    python, dvc = stand_in("python"), stand_in("dvc")
    assert bash("train.sh", tmp_path, OVERRIDES="lr=1e-4 epochs=3").returncode == 0
    run = ["exp", "run", "--pull", "--set-param", "lr=1e-4", "--set-param", "epochs=3"]
    assert calls(dvc) == [run]
    assert [call[1:] for call in calls(python)[1:]] == [
        ["petals.machine"],
        ["petals.remote", "check"],
        ["petals.machine", "--record"],
        ["petals.remote", "push"],
        ["petals.summary"],
    ]
    assert bash("train.sh", tmp_path, OVERRIDES="").returncode == 0
    assert calls(dvc)[1:] == [["exp", "run", "--pull"]]


def test_a_result_that_cannot_be_had_is_not_pushed(stand_in, tmp_path):
    stand_in("git")
    python, dvc = stand_in("python"), stand_in("dvc", {})  # DVC fails
    assert bash("train.sh", tmp_path, OVERRIDES="").returncode != 0
    assert calls(dvc) == [["exp", "run", "--pull"]]
    assert not any("push" in call for call in calls(python))


def test_nothing_is_trained_without_access_to_the_bucket(stand_in, tmp_path):
    stand_in("git")
    dvc = stand_in("dvc")
    stand_in("python", {"pip": b"", "petals.remote push": b"", "petals.summary": b""})
    assert bash("train.sh", tmp_path, OVERRIDES="").returncode != 0
    assert calls(dvc) == []


def test_nothing_is_trained_on_a_machine_whose_gpu_cannot_be_used(stand_in, tmp_path):
    stand_in("git")
    dvc = stand_in("dvc")
    stand_in("python", {"pip": b"", "petals.remote": b"", "petals.machine": b"  gpu                  none\n"})
    done = bash("train.sh", tmp_path, OVERRIDES="")
    assert done.returncode == 1 and done.stderr.startswith("Error: PyTorch finds no GPU on this machine")
    assert calls(dvc) == []


def test_a_result_that_is_not_in_the_bucket_fails_the_training(stand_in, tmp_path):
    stand_in("git")
    dvc = stand_in("dvc")
    python = stand_in("python", {"pip": b"", "petals.remote check": b"", "petals.machine": b"", "petals.summary": b""})
    assert bash("train.sh", tmp_path, OVERRIDES="").returncode != 0
    assert len(calls(dvc)) == 1
    assert [call[1:] for call in calls(python)[-2:]] == [["petals.remote", "push"]] * 2  # an answer may have been lost


# The machine


def test_the_account_of_the_machine_reaches_buckets_alone_and_it_takes_one_job(stand_in):
    cml = stand_in("cml")
    account = "training@project.iam.gserviceaccount.com"
    settings = {"GPU": "nvidia-l4", "IMAGE": "a/b", "MACHINE": "petals-7-1", "MACHINE_TYPE": "g2-standard-8"}
    assert bash("launch-machine.sh", ZONE="europe-west1-b", TRAINING_ACCOUNT=account, **settings).returncode == 0
    (call,) = calls(cml)
    assert {"--single", "--name=petals-7-1", f"--cloud-permission-set={account},scopes=storage-rw"} <= set(call)


def test_what_is_left_of_the_machine_is_deleted(stand_in):
    answers = {
        "instances list": b"petals-7-1\teurope-west1-d\n",
        "rules list": b"petals-7-1-ingress\npetals-7-1-egress\n",
        "delete": b"",
    }
    gcloud = stand_in("gcloud", answers)
    assert bash("stop-machine.sh", GITHUB_RUN_ID="7").returncode == 0
    lists = [call for call in calls(gcloud) if "list" in call]
    assert '--filter=name~"^petals-7-[0-9]+$"' in lists[0], "of every attempt, and of no other run"
    assert '--filter=name~"^petals-7-[0-9]+-(in|e)gress$"' in lists[1], "parentheses have a meaning outside quotes"
    assert [call[1:4] for call in calls(gcloud) if "delete" in call] == [
        ["instances", "delete", "petals-7-1"],
        ["firewall-rules", "delete", "petals-7-1-ingress"],
        ["firewall-rules", "delete", "petals-7-1-egress"],
    ]


@pytest.mark.parametrize("failing", ["instances list", "petals-7-1 ", "rules list", "petals-7-1-ingress"])
def test_what_cannot_be_deleted_keeps_nothing_else_from_being_deleted(stand_in, failing):
    names = ["petals-7-1", "petals-7-2", "petals-7-1-ingress", "petals-7-1-egress"]
    answers = {
        "instances list": b"petals-7-1\tzone\npetals-7-2\tzone\n",
        "rules list": b"petals-7-1-ingress\npetals-7-1-egress\n",
        **{f"delete {name} ": b"" for name in names},
    }
    answers.pop(failing, None) or answers.pop(f"delete {failing.strip()} ")
    gcloud = stand_in("gcloud", answers)
    assert bash("stop-machine.sh", GITHUB_RUN_ID="7").returncode == 1
    tried = [call[3] for call in calls(gcloud) if "delete" in call]
    assert tried == {"instances list": names[2:], "rules list": names[:2]}.get(failing, names)


def test_a_machine_that_is_gone_already_is_no_error(stand_in):
    gcloud = stand_in("gcloud", {"list": b""})
    assert bash("stop-machine.sh", GITHUB_RUN_ID="7").returncode == 0
    assert not any("delete" in call for call in calls(gcloud))


METADATA = {
    "instance/name": b"petals-1",
    "attributes/image": b"europe-docker.pkg.dev/p/petals/train@sha256:1",
    "attributes/machines": b"2",
    "attributes/settings": b"data=data/petals batch_size=256",
}


def start_up(stand_in) -> tuple[int, list[list[str]]]:
    """Run cloud/startup.sh; its exit code, and how docker was called to run the image."""
    stand_in("docker-credential-gcr")
    docker = stand_in("docker")
    done = subprocess.run(["bash", ROOT / "cloud" / "startup.sh"], capture_output=True, check=False)
    return done.returncode, [call for call in calls(docker) if call[0] == "run"]


def test_a_machine_of_a_group_takes_its_rank_from_its_name_and_the_settings_of_the_group(stand_in):
    stand_in("curl", METADATA)
    code, (call,) = start_up(stand_in)
    assert code == 0 and {"PET_NNODES=2", "PET_NODE_RANK=1", "PET_MASTER_ADDR=petals-0"} <= set(call)
    settings = ["--set-param", "data=data/petals", "--set-param", "batch_size=256"]
    start = call.index("europe-docker.pkg.dev/p/petals/train@sha256:1")
    run = ["python", "-m", "petals.cluster", "--push", "--set-param", "launch=torchrun -m"]
    assert call[start + 1 :] == run + settings


@pytest.mark.parametrize("missing", METADATA)
def test_a_machine_that_cannot_be_told_what_to_do_does_nothing(stand_in, missing):
    stand_in("curl", {name: answer for name, answer in METADATA.items() if name != missing})
    code, ran = start_up(stand_in)
    assert code != 0 and not ran


# Which pull request


def pull(number: int, sha: str = "a" * 40, repository: str | None = "fork/petals") -> dict:
    return {"number": number, "head": {"sha": sha, "repo": repository and {"full_name": repository}}}


@pytest.mark.parametrize(
    ("pulls", "expected"),
    [
        ([pull(7)], "number=7\n"),
        ([pull(7), pull(8, sha="b" * 40), pull(9, repository="other/petals")], "number=7\n"),
        ([pull(7, sha="b" * 40)], ""),  # it has moved on
        ([pull(7, repository=None)], ""),  # the fork is gone
        ([pull(7), pull(8)], ""),  # two at once: which one is a guess
        ([], ""),
    ],
)
def test_the_pull_request_is_the_one_whose_head_github_ran(stand_in, pulls, expected):
    gh = stand_in("gh", json.dumps(pulls).encode())
    branch = "feature/$(id);&x=1"
    environment = {
        "GITHUB_REPOSITORY": "team/petals",
        "HEAD_REPOSITORY": "fork/petals",
        "HEAD_BRANCH": branch,
        "HEAD_SHA": "a" * 40,
    }
    command = [sys.executable, SCRIPTS / "pull_request.py"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stdout == expected
    (call,) = calls(gh)
    assert call[:4] == ["api", "--method", "GET", "repos/team/petals/pulls"]
    assert f"head=fork:{branch}" in call


# The report of a pull request, which anybody may have written


def zipped(content: bytes, name: str = "report.md") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # of no particular time
    return file.getvalue()


def fetch(
    stand_in, folder: Path, archive: bytes, size: int | None = None, count: int = 3
) -> subprocess.CompletedProcess:
    size = len(archive) if size is None else size
    artifacts = [{"id": number, "size_in_bytes": size} for number in (4, 5, 3)[:count]]
    answers = {
        "repos/team/petals/actions/runs/12/artifacts": json.dumps({"artifacts": artifacts}).encode(),
        "repos/team/petals/actions/artifacts/5/zip": archive,
    }
    stand_in("gh", answers)
    environment = os.environ | {"GITHUB_REPOSITORY": "team/petals", "RUN_ID": "12"}
    command = [sys.executable, SCRIPTS / "fetch_report.py", folder / "report.md"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_honest_report_arrives_as_it_was_written_the_newest_of_a_run(stand_in, tmp_path):
    done = fetch(stand_in, tmp_path, zipped(REPORT.encode()))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report.md").read_text() == REPORT


@pytest.mark.parametrize(
    ("archive", "arguments", "reason"),
    [
        (zipped(b"x"), {"size": 10**9}, "the artifact has more than 250,000 bytes"),
        (zipped(os.urandom(300_000)), {"size": 5}, "GitHub sent more than 250,000 bytes"),
        (zipped(b" " * 20_000_000), {}, "the report has more than 250,000 bytes"),  # a bomb of 20 kB
        (zipped(b"x" * 60_001), {}, "the report has more than 60,000 characters"),
        (zipped(b"\xff\xfe"), {}, "not UTF-8"),
        (zipped(b"x", "../report.md"), {}, "should hold report.md and nothing else"),
        (b"no archive", {}, "cannot be read"),
        (zipped(b"x" * 5000)[:-40], {}, "cannot be read"),
        (zipped(b"x"), {"count": 0}, "has no artifact"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(stand_in, tmp_path, archive, arguments, reason):
    done = fetch(stand_in, tmp_path, archive, **arguments)
    assert done.returncode == 1
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("@team, look", "@team"),
        ("&#64;team", "&#64;"),
        ("fixes #12 and GH-3", "#12"),
        ("fixes GH-3", "GH-3"),
        ("_GH\\-3_", "GH\\-"),
        ("CVE-2021-44228", "CVE-"),
        ("see ghsa-jfh8-c2jp-5v3q", "ghsa-"),
        ("in a1b2c3d, that is", "a1b2c3d"),
        ("_" + "0123456789" * 4 + "_", "6789012"),
        ("$x$ and $`x`$", "$"),
        ("_www.a.example_", "www."),
        ("```geojson\n{}\n```", "geojson"),
        ("> - ~~~ topojson\n{}", "topojson"),
        ("1. ````stl", "stl"),
        ("x ```math\n```", "```math"),
        ("```mermaid\nflowchart LR\n  click A href\n```", "mermaid"),
        (CHART.replace("x-axis", "click A href\n    x-axis"), "mermaid"),
        (CHART.replace("Loss", 'Loss" click "A'), "mermaid"),
        (f"> {CHART}", "mermaid"),
        (f"<details>\n{CHART}", "mermaid"),  # HTML, where the chart's title is text like any other
        ("\\`@team`", "@team"),  # no code, as GitHub reads it, here and below
        ("``@team`", "@team"),
        ("| `a | @team` |", "@team"),
        ("<details>\n`@team`", "@team"),
        ("<details>\n\N{NO-BREAK SPACE}\n`@team`", "@team"),  # a blank line to Python, none to GitHub
        ("[^`a]: @team`", "@team"),
        ("![x](/etc/passwd)", "]("),
        ("[x][y]\n\n[y]: //a.example", "]["),
        ("[y]: //a.example", "]:"),
        ("https://a.example", "://"),
        ("WWW.a.example", "WWW.a"),
        ("<img src=x>", "<"),
        ("<details open ontoggle=x>", "<"),
        ("<!-- hidden", "<"),
        ("abc\u202edef", "\u202e"),
        ("a\x1b[31mb", "\x1b"),
        ("a\rb", "\r"),
    ],
)
def test_nothing_in_a_comment_pings_links_loads_or_hides(text, gone):
    assert gone in text
    assert gone not in harmless(text)


def test_names_in_code_and_charts_stay_as_they_are():
    text = f"In `@team <b> #1 $x$ a1b2c3d [x](y)` and `\\`, 1234567890 images\n\n{CHART}\n\nand {CHART[:3]}\n"
    kept = text.replace("1234567890", "123456\u200b7890").replace(f"and {CHART[:3]}", "and ˋˋˋ")
    assert harmless(text) == kept
    assert harmless("`a\n`@team`") == "ˋa\n`@team`"  # a span across two lines would have ended before @team


@pytest.mark.parametrize("names", [["@team", "<img src=x>", "#1"], ["GH-1 & $x$", "[a](//b.example)", "\\"]])
def test_an_ordinary_report_of_two_sides_stays_as_it_is(tmp_path, monkeypatch, names):
    folder = tmp_path / "two"
    folder.mkdir()
    for command in (["init", "--quiet"], ["config", "user.name", "a"], ["config", "user.email", "a@example.com"]):
        git(folder, *command)
    sides = Repository(folder)
    losses = {"before": {"val/a1b2c3d": [3, 2, 1]}, "after": {"val/a1b2c3d": [3, 1e-5, 1, 2], "train/x@y": [1, 2]}}
    for position, branch in enumerate(losses):
        predicted = names * 4 if position else names[1:] + names * 3 + names[:1]
        sides.commit(run_files(names * 4, predicted, curves=losses[branch], lr=0.1 + position), branch)
    monkeypatch.chdir(folder)
    page = report("before", "after")
    assert "```mermaid" in page and f"`{names[0]}`" in page and "newly right" in page and "`lr`" in page
    assert harmless(page) == page


def test_the_report_of_this_repository_stays_as_it_is():
    command = [sys.executable, "-m", "petals.report", "HEAD", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert harmless(done.stdout) == done.stdout


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two commits on main, and one on a branch that left after the first."""
    folder = tmp_path / "repository"
    (folder / "metrics").mkdir(parents=True)
    (folder / "plots").mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in ("dvc.lock", "machine.json", "params.yaml", "metrics/train.json", "plots/old.tsv"):
        (folder / name).write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    git(folder, "branch", "idea")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=second")
    return folder


def test_the_report_is_of_what_the_branch_did_since_it_left(stand_in, repository):
    python = stand_in("python", b"the report\n")
    idea, main = git(repository, "rev-parse", "idea"), git(repository, "rev-parse", "main")
    assert bash("report.sh report.md", repository, BASE=main, HEAD=idea).returncode == 0
    assert calls(python) == [["-m", "petals.report", idea, idea]]
    assert (repository / "report.md").read_text() == "the report\n"


def test_a_result_is_committed_whole_and_proposed(stand_in, repository):
    cml = stand_in("cml")
    result = repository.parent / "result"
    shutil.copytree(repository, result, ignore=shutil.ignore_patterns(".git", "old.tsv"))
    (result / "plots" / "new.tsv").write_text("2\n")
    (result / "machine.json").write_text("2\n")
    (result / "install-cml.sh").write_text("exit 1")  # of which nobody asked
    (repository / "gha-creds-1.json").write_text("{}")
    environment = {
        "GITHUB_RUN_ID": "12",
        "GITHUB_RUN_ATTEMPT": "2",
        "GITHUB_RUN_NUMBER": "3",
        "GITHUB_SERVER_URL": "https://github.com",
    }
    settings = " ".join(["lr=1e-4", *(f"epochs={number}" for number in range(30))])
    environment |= {"GITHUB_REPOSITORY": "team/petals", "OVERRIDES": settings}
    assert bash(f"open-pull-request.sh {result}", repository, **environment).returncode == 0
    (call,) = calls(cml)
    title = f"Experiment {settings[:200]} (run 3)"  # GitHub takes 256 characters
    assert {"--branch=experiment-12-2", f"--title={title}"} <= set(call)
    assert any(word.startswith(f"--body=Settings: {settings}\n") for word in call)
    assert git(repository, "log", "-1", "--format=%s") == title
    changed = git(repository, "show", "--name-status", "--no-renames", "--format=")
    assert changed.splitlines() == ["M\tmachine.json", "A\tplots/new.tsv", "D\tplots/old.tsv"]
    assert bash(f"open-pull-request.sh {result}", repository, **environment).stdout.startswith("The result is the one")
    assert len(calls(cml)) == 1


def test_cml_is_installed_in_one_version_and_runs_no_install_script(stand_in):
    npm = stand_in("npm")
    assert bash("install-cml.sh").returncode == 0
    (call,) = calls(npm)
    assert re.fullmatch(r"@dvcorg/cml@\d+\.\d+\.\d+", call[-1])
    assert "--ignore-scripts" in call


def test_actionlint_is_left_out_aloud_where_it_cannot_be_had(tmp_path):
    (tmp_path / "bash").symlink_to("/bin/bash")
    (tmp_path / "curl").write_text("#!/bin/bash\nexit 6\n")
    (tmp_path / "curl").chmod(0o755)
    done = bash("actionlint.sh", PATH=str(tmp_path))
    assert done.returncode == 0
    assert "left out" in done.stderr
    (tmp_path / "actionlint").write_text("#!/bin/bash\nexit 3\n")
    (tmp_path / "actionlint").chmod(0o755)
    assert bash("actionlint.sh", PATH=str(tmp_path)).returncode == 3


# The data, and actionlint


class Bucket(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments: object) -> None:
        pass


def data_at_hand(stand_in, folder: Path, status: int = 200, pulls: bool = True, url: str = "gs://petals/dvc") -> tuple:
    """The script's exit code, its outputs and what it said, where data/petals is in no git; and the calls of dvc."""
    stand_in("make")
    dvc = stand_in("dvc", b"" if pulls else {})
    git(folder, "init", "--quiet")
    (folder / ".dvc").mkdir()
    (folder / "params.yaml").write_text(with_line("data", "data/petals"))
    with http.server.HTTPServer(("127.0.0.1", 0), type("Fixed", (Bucket,), {"status": status})) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = f"    endpointurl = http://127.0.0.1:{server.server_port}\n    allow_anonymous_login = true\n"
        (folder / ".dvc" / "config").write_text(
            f"[core]\n    remote = gcs\n['remote \"gcs\"']\n    url = {url}\n{endpoint if url[:3] == 'gs:' else ''}"
        )
        more = {"PYTHONPATH": str(ROOT), "GITHUB_OUTPUT": str(folder / "output"), "DVC_NO_ANALYTICS": "1"}
        done = bash("data-at-hand.sh", folder, **more)
        server.shutdown()
    output = (folder / "output").read_text() if (folder / "output").exists() else ""
    return done.returncode, output, done.stdout + done.stderr, calls(dvc)


@pytest.mark.parametrize("bucket", [{"status": 401}, {"status": 403}, {"url": "gs://petals.example/dvc"}])
def test_what_needs_data_that_nobody_gives_is_skipped_with_a_notice(stand_in, tmp_path, bucket):
    code, output, said, asked = data_at_hand(stand_in, tmp_path, **bucket)
    assert (code, output, asked) == (0, "here=false\n", [])
    assert said.startswith("::notice title=Skipped::data/petals is neither in git") and said.count("\n") == 1


def test_what_needs_data_that_a_bucket_gives_everybody_runs(stand_in, tmp_path):
    pull = ["pull", "data/petals"]
    assert data_at_hand(stand_in, tmp_path) == (0, "here=true\n", "", [pull])


@pytest.mark.parametrize("bucket", [{"pulls": False}, {"status": 404}, {"status": 500}])
def test_a_bucket_that_is_open_and_does_not_give_the_data_is_a_fault(stand_in, tmp_path, bucket):
    code, output, said, asked = data_at_hand(stand_in, tmp_path, **bucket)
    assert code == 1 and output == "" and len(asked) == ("pulls" in bucket)
    assert said.count("\n") == 1 and ("gs://petals: " in said or "::error::data/petals cannot be pulled" in said)


def test_what_needs_data_of_a_folder_that_no_runner_has_is_skipped(stand_in, tmp_path):
    code, output, said, asked = data_at_hand(stand_in, tmp_path, pulls=False, url=f"{tmp_path}/shared")
    assert (code, output, len(asked)) == (0, "here=false\n", 1)
    assert said.startswith("::notice title=Skipped::data/petals is neither in git")


def test_data_in_git_are_not_asked_for(stand_in, tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "data" / "petals").mkdir(parents=True)
    (tmp_path / "data" / "petals" / "a").touch()
    git(tmp_path, "add", "data")
    assert data_at_hand(stand_in, tmp_path, status=500) == (0, "here=true\n", "", [])


@pytest.mark.parametrize(("on_github", "code"), [("true", 1), ("", 0)])
def test_actionlint_is_left_out_with_a_message_but_never_on_github(tmp_path, on_github, code):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "bash").symlink_to("/bin/bash")
    (folder / "curl").write_text("#!/bin/bash\nexit 6\n")
    (folder / "curl").chmod(0o755)
    done = bash("actionlint.sh", tmp_path, PATH=str(folder), GITHUB_ACTIONS=on_github)
    assert done.returncode == code
    assert "it is left out" in done.stderr
