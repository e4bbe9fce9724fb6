"""The two images: no Docker engine runs here, but all that the Dockerfile runs is in scripts, which run here too."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from project import copy_project, environment, run, tiny_records
from small_model import write_model

DOCKER = REPOSITORY / "docker"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
SMOKE = REPOSITORY / ".github" / "scripts" / "smoke.sh"
# A machine of its own kind: nothing can be written to but /tmp and $WRITABLE, and the user is not root. $IMAGE is seen
# at /mnt/image. Python may lie in root's home, so that is opened to read it.
SEALED = """
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/image /mnt/workspace /mnt/python
mount --bind "$IMAGE" /mnt/image
[ -z "$WRITABLE" ] || mount --bind "$WRITABLE" /mnt/workspace
case $PYTHON in /root/*)
  mount --bind "$PYTHON" /mnt/python
  mount -t tmpfs -o mode=755 tmpfs /root
  mkdir -p "$PYTHON"
  mount --bind /mnt/python "$PYTHON"
esac
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,bind,ro /
mount -o remount,bind,ro /mnt/image
cd /mnt/image
for place in /var/tmp /mnt/image; do
  if touch $place/x 2> /dev/null; then echo "$place can be written to"; exit 1; fi
done
exec setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs "$@"
"""


def sealed(image: Path, writable: Path | None, *command: str) -> list[str]:
    """The command line that runs `command` on such a machine; the test is skipped where there can be none."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    variables = [f"IMAGE={image}", f"WRITABLE={writable or ''}", f"PYTHON={sys.base_prefix}"]
    return ["env", *variables, "unshare", "--mount", "sh", "-c", SEALED, "sh", *command]


def stages() -> dict[str, list[list[str]]]:
    """The instructions of each stage of the Dockerfile, as words, continued lines joined."""
    found: dict[str, list[list[str]]] = {}
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines():
        if words := line.split():
            if words[0] == "FROM":
                found[words[3]] = []
            found[list(found)[-1]].append(words)
    return found


def test_there_is_one_base_image_named_by_digest_which_dependabot_moves():
    bases = {instructions[0][1] for instructions in stages().values()} - set(stages())
    (base,) = bases
    assert re.fullmatch(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base)
    assert "package-ecosystem: docker" in (REPOSITORY / ".github" / "dependabot.yml").read_text()


@pytest.mark.parametrize(
    ("target", "health"), [("serve", '--start-period=30s --retries=3 CMD ["python", "health.py"]'), ("train", "NONE")]
)
def test_an_image_does_not_run_as_root_and_says_how_it_is_watched(target, health):
    last = {words[0]: " ".join(words[1:]) for words in stages()[target]}
    assert last["USER"] == "10001:10001"
    assert last["HEALTHCHECK"].endswith(health)
    order = [words[0] for words in stages()[target]]
    assert "RUN" not in order[order.index("USER") :]


def test_what_is_run_is_in_scripts_but_for_debian_s_packages_and_the_user():
    for instructions in stages().values():
        for words in instructions:
            if words[0] == "RUN":
                commands = re.split(r"\s*&&\s*", " ".join(word for word in words[1:] if not word.startswith("--mount")))
                allowed = r"(/build/(docker/)?\w+\.sh|apt-get (update|install)|rm -rf /var/lib/apt|useradd|install) ?.*"
                assert all(re.fullmatch(allowed, command) for command in commands)


def test_the_builder_gets_what_is_copied_and_nothing_else():
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = {
        source.split("/")[0]
        for instructions in stages().values()
        for words in instructions
        if words[0] == "COPY" and not words[1].startswith("--from")
        for source in words[1:-1]
        if not source.startswith("--")
    }
    assert copied | {".git"} == let_in
    assert all((REPOSITORY / name).exists() for name in let_in)


def test_all_may_read_what_the_service_runs_and_training_may_compile():
    assert ["COPY", "--chmod=0644", "docker/health.py", "/app/health.py"] in stages()["serve"]
    train = stages()["train"]
    assert any(word.startswith('"g++=') for words in train for word in words if words[1] == "apt-get")
    settings = dict(word.split("=", 1) for words in train if words[0] == "ENV" for word in words[1:])
    # In a tmpfs, as deploy.md has /tmp, Docker lets nothing be executed.
    assert Path(settings["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(settings["PETALS_WORKSPACE"])


def test_a_release_puts_the_model_where_the_service_looks_for_it():
    release = (DOCKER / "release.Dockerfile").read_text()
    assert re.search(r"PETALS_MODEL=(\S+)", DOCKERFILE)[1] == re.search(r"^COPY model.onnx (\S+)$", release, re.M)[1]


# serve


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """What the image `serve` holds: its environment, its code, a model."""
    folder = tmp_path_factory.mktemp("image")
    path = f"{folder}/venv/bin:{environment()['PATH']}"  # as in the Dockerfile
    install = f"{DOCKER}/install.sh {folder}/venv serving/requirements.txt constraints.txt"
    run(install, REPOSITORY, PATH=path, PIP_RETRIES="12")
    closed = "cp -R petals serving $0 && chmod -R go= $0/petals $0/serving"  # as a clone made under umask 077
    run(f"mkdir {folder}/build && sh -c '{closed}' {folder}/build", REPOSITORY)
    run(f"{DOCKER}/serve.sh {folder}/build {folder}/venv {folder}/app", REPOSITORY)
    shutil.copy(DOCKER / "health.py", folder / "app")
    write_model(folder / "model.onnx")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def service(image) -> Iterator[str]:
    """The address of the service, which runs as it would in the container."""
    variables = [words[1:] for stage in ("base", "serve") for words in stages()[stage] if words[0] == "ENV"]
    settings = dict(word.split("=", 1) for words in variables for word in words)
    assert {"HOME", "PETALS_MODEL", "PORT"} <= set(settings)
    settings |= {"PETALS_MODEL": "/mnt/image/model.onnx", "PORT": "0", "PATH": "/mnt/image/venv/bin:/usr/bin:/bin"}
    settings |= {"PETALS_VERSION": "v1.2.3", "PETALS_REVISION": "a" * 40, "PETALS_THREADS": "1"}
    entry = ["env", "--chdir=/mnt/image/app", "-i", *(f"{name}={value}" for name, value in settings.items())]
    command = sealed(image, None, *entry, "python", "-m", "serving", "--host", "0.0.0.0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if started := re.search(r"Uvicorn running on http://0\.0\.0\.0:(\d+)", line):
                yield f"http://127.0.0.1:{started[1]}"
                break
        process.terminate()
        said.append(process.communicate(timeout=60)[0])
    assert process.returncode == 0, "".join(said)  # SIGTERM is the way that containers end


@pytest.mark.slow
def test_the_environment_of_the_service_has_no_pytorch_and_no_pip(image):
    listed = subprocess.run(
        [image / "venv/bin/python", "-c", "import importlib.metadata as m; print([d.name for d in m.distributions()])"],
        capture_output=True, text=True, check=True, cwd="/",
    ).stdout  # fmt: skip
    assert "onnxruntime" in listed
    assert not {"torch", "kornia", "pip", "setuptools"} & set(json.loads(listed.replace("'", '"')))


@pytest.mark.slow
def test_a_service_that_brings_pytorch_is_not_put_together(image, tmp_path):
    (tmp_path / "torch.py").touch()
    command = f"{DOCKER}/serve.sh {REPOSITORY} {image}/venv {tmp_path}/app"
    done = run(command, tmp_path, check=False, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "PyTorch is installed" in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.slow
def test_the_service_is_healthy_with_nothing_to_write_to_and_no_rights(service, image):
    port = service.rsplit(":", 1)[1]
    check = [image / "venv/bin/python", image / "app/health.py"]
    for proxy in ({}, {"http_proxy": "http://127.0.0.1:1"}):  # that is for what is outside the container
        assert subprocess.run(check, env={"PORT": port, **proxy}, capture_output=True).returncode == 0
    assert subprocess.run(check, env={"PORT": "1"}, capture_output=True).returncode == 1


@pytest.mark.slow
def test_the_smoke_test_passes_the_service_that_has_the_model(service, image):
    done = smoke(service, image / "model.onnx")
    assert done.returncode == 0, done.stdout
    assert f"{service} serves v1.2.3 of {'a' * 40}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"VERSION": "v9.9.9"}, "serves v1.2.3 of"),
        ({"REVISION": "b" * 40}, "serves v1.2.3 of"),
    ],
)
def test_the_smoke_test_fails_a_service_that_was_told_something_else(service, image, changed, reason):
    done = smoke(service, image / "model.onnx", **changed)
    assert done.returncode == 1 and reason in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.slow
def test_the_smoke_test_fails_a_service_that_has_another_model(service, tmp_path):
    done = smoke(service, write_model(tmp_path / "other.onnx", seed=1))
    assert done.returncode == 1 and f"{service}: serves v1.2.3 of" in done.stdout


def smoke(url: str, model: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    told = {"VERSION": "v1.2.3", "REVISION": "a" * 40} | changed
    return run(f"{SMOKE} {url} {model}", REPOSITORY, check=False, **told)


# train


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    tiny_records(folder / "data" / "tiny", train=2, val=1, test=2)
    copy_project(folder)
    run("git add -f data/tiny && git commit -qm data", folder)
    (folder / "later").write_text("not committed")
    run("git remote add origin https://name:secret@git.example/petals", folder)
    run("git tag v1", folder)
    return folder


@pytest.fixture(scope="module")
def checkout(project, tmp_path_factory) -> Path:
    """What the image `train` holds at /opt/petals, in a folder that all may read."""
    folder = tmp_path_factory.mktemp("checkout")
    run(f"{DOCKER}/checkout.sh {project} {folder}/petals", project)
    folder.chmod(0o755)
    return folder


def test_the_image_holds_the_commit_and_nothing_else_of_the_clone(project, checkout):
    git = checkout / "petals"
    assert run("git rev-parse HEAD", git).stdout == run("git rev-parse HEAD", project).stdout
    assert run("git rev-list --count HEAD && git status --short && git remote && git tag", git).stdout == "1\n"
    kept = b"".join(path.read_bytes() for path in (git / ".git").rglob("*") if path.is_file())
    assert b"secret" not in kept and str(project).encode() not in kept


def test_a_folder_that_is_no_clone_is_one_line(tmp_path):
    done = run(f"{DOCKER}/checkout.sh {tmp_path} {tmp_path}/petals", tmp_path, check=False)
    assert done.returncode == 1 and "is no clone with a commit" in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.slow
def test_dvc_repro_runs_where_only_the_workspace_can_be_written_to_and_goes_on_there(checkout, tmp_path_factory):
    workspace = tmp_path_factory.mktemp("workspace")
    workspace.chmod(0o777)
    variables = [words[1:] for stage in ("base", "train") for words in stages()[stage] if words[0] == "ENV"]
    settings = dict(word.split("=", 1) for words in variables for word in words)
    assert {"PETALS_REPOSITORY", "PETALS_WORKSPACE", "DVC_SITE_CACHE_DIR"} <= set(settings)
    settings |= {"PETALS_REPOSITORY": "/mnt/image/petals", "PETALS_WORKSPACE": "/mnt/workspace"}
    settings["PATH"] = environment()["PATH"]
    entry = ["env", "-i", *(f"{name}={value}" for name, value in settings.items()), "/mnt/image/petals/docker/train.sh"]

    def train(*command: str, code: int = 0) -> str:
        done = subprocess.run(
            sealed(checkout, workspace, *entry, *command), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    assert "Running stage 'prepare'" in train("dvc", "repro", "prepare")
    assert (workspace / "petals" / "metrics" / "prepare.json").is_file()
    (workspace / "petals" / ".git" / "index.lock").touch()  # of a git that was killed with the container
    assert "Stage 'prepare' didn't change" in train("dvc", "repro", "prepare")
    train("git", "commit", "--quiet", "--allow-empty", "--message", "An idea")
    assert "Stage 'prepare' didn't change" in train("dvc", "repro", "prepare")
    run("git commit --quiet --allow-empty --message later", checkout / "petals")
    assert "was made from another commit than this image" in train("dvc", "repro", code=1)
