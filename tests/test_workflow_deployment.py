"""The scripts that build images and deploy, with stand-ins on PATH for docker and gcloud; Git, GTO and DVC are real."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import REPOSITORY, calls
from project import environment, run
from small_model import write_model

DIGEST = f"sha256:{'d' * 64}"
GITHUB = {"GITHUB_RUN_NUMBER": "7", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_SHA": "a" * 40}
GITHUB |= {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "team/petals"}
CLOUD = {"PROJECT": "p", "REGION": "europe-west1", "SERVICE": "petals"}
IMAGES = "europe-west1-docker.pkg.dev/p/petals"


def bash(script: str, folder: Path = REPOSITORY, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts, with the programs of this environment before those that stand in on PATH."""
    command = ["bash", *f"{REPOSITORY}/.github/scripts/{script}".split()]
    return subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, check=False)


def outputs(path: Path) -> dict[str, str]:
    """What a script has left in $GITHUB_OUTPUT."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


# The tag


@pytest.fixture
def registry(tmp_path) -> Path:
    """A repository with a model that is registered and promoted, and in a DVC remote."""
    folder = tmp_path / "registry"
    (folder / "models").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    model = b"a model"
    md5 = hashlib.md5(model).hexdigest()
    kept = tmp_path / "remote" / "files" / "md5" / md5[:2] / md5[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(model)
    (folder / ".dvc" / "config").write_text(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path}/remote\n")
    out = {"md5": md5, "size": len(model), "hash": "md5", "path": "model.onnx"}
    (folder / "models" / "model.onnx.dvc").write_text(json.dumps({"outs": [out]}))
    artifact = {"path": "models/model.onnx", "type": "model"}
    (folder / "dvc.yaml").write_text(json.dumps({"artifacts": {"flowers": artifact}}))
    run("git init -q -b main && git add -A && git commit -qm model", folder)
    run("git tag -a flowers@v1.0.0 -m registered && git tag -a flowers#prod#1 -m promoted", folder)
    return folder


def test_a_promotion_names_its_version_and_commit(registry, tmp_path):
    output = tmp_path / "output"
    done = bash("promotion.sh", registry, GITHUB_REF_NAME="flowers#prod#1", GITHUB_OUTPUT=str(output))
    assert (done.returncode, done.stderr) == (0, "")
    commit = run("git rev-parse HEAD", registry).stdout.strip()
    assert outputs(output) == {"version": "v1.0.0", "revision": commit}


@pytest.mark.parametrize("tag", ["main", "flowers@v1.0.0", "flowers#dev#1", "flowers#prod!#2", "flowers#prod#1x"])
def test_what_promotes_nothing_is_refused_in_one_line(registry, tmp_path, tag):
    output = tmp_path / "output"
    done = bash("promotion.sh", registry, GITHUB_REF_NAME=tag, GITHUB_OUTPUT=str(output))
    assert done.returncode == 1 and not output.exists()
    assert done.stderr.startswith(f"{tag} promotes nothing") and done.stderr.count("\n") == 1


def test_a_tag_made_by_hand_where_no_version_is_registered_is_refused(registry, tmp_path):
    run("git commit -q --allow-empty -m later && git tag flowers#prod#2", registry)
    output = tmp_path / "output"
    done = bash("promotion.sh", registry, GITHUB_REF_NAME="flowers#prod#2", GITHUB_OUTPUT=str(output))
    assert done.returncode == 1 and not output.exists()
    assert "no version is registered at the commit of flowers#prod#2" in done.stderr.splitlines()[-1]


# Images


def test_an_image_is_named_by_commit_and_its_digest_handed_on(stand_in, tmp_path):
    docker = stand_in("docker", {"imagetools": f"{DIGEST}\n".encode(), "build": b""})
    output = tmp_path / "output"
    done = bash("build-image.sh", TARGET="serve", GITHUB_OUTPUT=str(output), **GITHUB, **CLOUD)
    assert done.returncode == 0
    build, inspect = calls(docker)
    assert {"--push", "--target=serve", f"--tag={IMAGES}/serve:{'a' * 40}", f"--tag={IMAGES}/serve:main"} <= set(build)
    assert f"{IMAGES}/serve:{'a' * 40}" in inspect
    assert outputs(output) == {"name": f"{IMAGES}/serve", "digest": DIGEST}


def test_a_run_that_is_run_again_pushes_nothing(stand_in, tmp_path):
    docker = stand_in("docker")
    output = tmp_path / "output"
    again = GITHUB | {"GITHUB_RUN_ATTEMPT": "2"}
    done = bash("build-image.sh", TARGET="serve", GITHUB_OUTPUT=str(output), **again, **CLOUD)
    assert done.returncode == 1 and not output.exists() and not calls(docker)
    assert "could call an older image main" in done.stderr and done.stderr.count("\n") == 1


def test_an_image_that_cannot_be_built_hands_nothing_on(stand_in, tmp_path):
    stand_in("docker", {"imagetools": DIGEST.encode()})  # the build fails
    output = tmp_path / "output"
    assert bash("build-image.sh", TARGET="serve", GITHUB_OUTPUT=str(output), **GITHUB, **CLOUD).returncode != 0
    assert not output.exists()


def test_an_image_whose_digest_is_not_to_be_had_hands_nothing_on(stand_in, tmp_path):
    stand_in("docker", {" build ": b""})  # the look-up fails
    output = tmp_path / "output"
    assert bash("build-image.sh", TARGET="serve", GITHUB_OUTPUT=str(output), **GITHUB, **CLOUD).returncode != 0
    assert not output.exists()


def test_the_registry_gets_a_token_that_is_on_no_command_line(stand_in):
    stand_in("gcloud", {"auth print-access-token": b"secret"})
    docker = stand_in("docker")
    assert bash("registry-login.sh", **CLOUD).returncode == 0
    (login,) = calls(docker)
    assert login[-2:] == ["--password-stdin", "https://europe-west1-docker.pkg.dev"] and "secret" not in login


def test_a_release_is_the_service_by_digest_and_the_promoted_model(stand_in, registry, tmp_path):
    docker = stand_in("docker", {"imagetools": f"{DIGEST}\n".encode(), "build": b""})
    output = tmp_path / "output"
    gh = stand_in("gh")
    settings = {"VERSION": "v1.0.0", "REVISION": "b" * 40, "GITHUB_OUTPUT": str(output), "TMPDIR": str(tmp_path)}
    done = bash("build-release.sh", registry, ATTESTED="true", **settings, **GITHUB, **CLOUD)
    assert done.returncode == 0, done.stderr
    (verify,) = calls(gh)
    assert verify[:3] == ["attestation", "verify", f"oci://{IMAGES}/serve@{DIGEST}"]
    assert "--signer-workflow=team/petals/.github/workflows/images.yml" in verify
    newest, build, inspect = calls(docker)
    assert f"{IMAGES}/serve:main" in newest
    assert {
        f"--build-arg=SERVE={IMAGES}/serve@{DIGEST}",
        "--label=org.opencontainers.image.version=v1.0.0",
        f"--label=org.opencontainers.image.revision={'b' * 40}",
        f"--tag={IMAGES}/release:v1.0.0-7-1",
    } <= set(build)
    assert f"{IMAGES}/release:v1.0.0-7-1" in inspect
    told = outputs(output)
    assert (told["name"], told["digest"]) == (f"{IMAGES}/release", DIGEST)
    assert Path(told["model"]).read_bytes() == b"a model"
    assert [path.name for path in Path(build[-1]).iterdir()] == ["model.onnx"]  # all that the builder gets


def test_a_model_that_is_not_in_the_remote_is_not_released(stand_in, registry, tmp_path):
    docker = stand_in("docker", {"imagetools": f"{DIGEST}\n".encode(), "build": b""})
    shutil.rmtree(tmp_path / "remote")
    settings = {"VERSION": "v1.0.0", "REVISION": "b" * 40, "GITHUB_OUTPUT": str(tmp_path / "output")}
    assert bash("build-release.sh", registry, ATTESTED="false", **settings, **GITHUB, **CLOUD).returncode != 0
    assert not any("build" in call for call in calls(docker))


def test_an_image_that_our_workflow_has_not_made_is_not_released(stand_in, registry, tmp_path):
    docker = stand_in("docker", {"imagetools": f"{DIGEST}\n".encode(), "build": b""})
    stand_in("gh", {})  # no attestation
    settings = {"VERSION": "v1.0.0", "REVISION": "b" * 40, "GITHUB_OUTPUT": str(tmp_path / "output")}
    assert bash("build-release.sh", registry, ATTESTED="true", **settings, **GITHUB, **CLOUD).returncode != 0
    assert not (tmp_path / "output").exists() and len(calls(docker)) == 1


# Traffic


def traffic(*shares: tuple[str, int | None, str | None]) -> bytes:
    """What `gcloud run services describe` says, as far as it matters: revision, percent, tag."""
    entries = [
        {"revisionName": name}
        | ({"percent": percent} if percent is not None else {})
        | ({"tag": tag, "url": f"https://{tag}---petals-x.a.run.app"} if tag else {})
        for name, percent, tag in shares
    ]
    return json.dumps({"status": {"traffic": entries, "url": "https://petals-x.a.run.app"}}).encode()


TRIED = traffic(("petals-v1", 100, None), ("petals-v2", None, "next"), ("petals-v0", None, "previous"))


def service(name: str, ready: str | None = None) -> dict:
    return {"metadata": {"name": name}, "status": {"latestReadyRevisionName": ready} if ready else {}}


SERVICES = json.dumps([service("petals-staging"), service("petals", "petals-v1")]).encode()


def deploy(stand_in, tmp_path, services: bytes) -> list[str]:
    gcloud = stand_in("gcloud", {"services list": services, "services describe": TRIED, "run deploy": b""})
    release = {"IMAGE": f"{IMAGES}/release@{DIGEST}", "VERSION": "v1.2.0-RC.1", "REVISION": "b" * 40}
    settings = {"SERVING_ACCOUNT": "s@p", "MIN_INSTANCES": "1", "MAX_INSTANCES": "3", "AUDIENCE": "petals"}
    output = tmp_path / "output"
    done = bash("deploy.sh", GITHUB_OUTPUT=str(output), **release, **settings, **GITHUB, **CLOUD)
    assert done.returncode == 0, done.stderr
    assert outputs(output) == {"url": "https://next---petals-x.a.run.app"}
    (call,) = [call for call in calls(gcloud) if call[:2] == ["run", "deploy"]]
    return call


def test_a_new_revision_gets_an_address_and_no_traffic(stand_in, tmp_path):
    call = deploy(stand_in, tmp_path, SERVICES)
    assert {
        "--no-traffic",
        "--tag=next",
        f"--image={IMAGES}/release@{DIGEST}",
        "--revision-suffix=v1-2-0-rc-1-7-1",
        f"--update-env-vars=PETALS_VERSION=v1.2.0-RC.1,PETALS_REVISION={'b' * 40},PETALS_THREADS=1",
        "--service-account=s@p",
        "--min=1",  # the service's; a revision's would hold for those without traffic too
    } <= set(call)
    assert not any(argument.startswith(("--min-instances", "--set-env-vars")) for argument in call)
    assert not any("allow-unauthenticated" in argument for argument in call)  # who may call is the owner's to say


def test_a_revision_whose_address_cannot_be_had_fails(stand_in, tmp_path):
    stand_in("gcloud", {"services list": SERVICES, "run deploy": b""})  # its description fails
    release = {"IMAGE": "i", "VERSION": "v1", "REVISION": "b" * 40}
    settings = {"SERVING_ACCOUNT": "s@p", "MIN_INSTANCES": "1", "MAX_INSTANCES": "3", "AUDIENCE": "petals"}
    done = bash("deploy.sh", GITHUB_OUTPUT=str(tmp_path / "output"), **release, **settings, **GITHUB, **CLOUD)
    assert done.returncode != 0 and not (tmp_path / "output").exists()


@pytest.mark.parametrize("found", [(), (service("petals"),), (service("petals-staging", "petals-staging-v1"),)])
def test_cloud_run_refuses_to_hold_traffic_where_no_revision_is_ready_so_it_is_not_asked_to(stand_in, tmp_path, found):
    """There is no service yet, or one whose first revision did not come up, or another."""
    assert "--no-traffic" not in deploy(stand_in, tmp_path, json.dumps(found).encode())


def test_nothing_is_deployed_where_it_cannot_be_known_whether_a_revision_is_ready(stand_in, tmp_path):
    gcloud = stand_in("gcloud", {"run deploy": b""})  # the list of services fails
    release = {"IMAGE": "i", "VERSION": "v1", "REVISION": "b" * 40}
    settings = {"SERVING_ACCOUNT": "s@p", "MIN_INSTANCES": "1", "MAX_INSTANCES": "3", "AUDIENCE": "petals"}
    done = bash("deploy.sh", GITHUB_OUTPUT=str(tmp_path / "output"), **release, **settings, **GITHUB, **CLOUD)
    assert done.returncode != 0 and [call[:2] for call in calls(gcloud)] == [["run", "services"]]


@pytest.mark.parametrize(
    ("state", "tag", "move"),
    [
        (TRIED, "next", ["--to-revisions=petals-v2=100", "--update-tags=previous=petals-v1"]),
        (TRIED, "previous", ["--to-revisions=petals-v0=100", "--update-tags=previous=petals-v1"]),
        (traffic(("petals-v1", 100, "next")), "next", ["--to-revisions=petals-v1=100"]),  # a service's first
        (
            traffic(("a", 10, None), ("b", 90, None), ("c", None, "next")),
            "next",
            ["--to-revisions=c=100", "--update-tags=previous=b"],
        ),
    ],
)
def test_traffic_moves_to_a_tag_and_who_had_it_is_remembered(stand_in, state, tag, move):
    gcloud = stand_in("gcloud", {"services describe": state, "update-traffic": b""})
    done = bash(f"traffic.sh to {tag}", **CLOUD)
    assert done.returncode == 0, done.stderr
    (call,) = [call for call in calls(gcloud) if "update-traffic" in call]
    assert call == ["run", "services", "update-traffic", "petals", "--quiet", "--region=europe-west1", *move]


def test_make_rollback_goes_back(stand_in):
    gcloud = stand_in("gcloud", {"services describe": TRIED, "update-traffic": b""})
    assert "all traffic goes to petals-v0; before, it went to petals-v1" in run("make rollback", REPOSITORY).stdout
    assert "--to-revisions=petals-v0=100" in calls(gcloud)[-1]


def test_where_there_is_nothing_to_go_back_to_nothing_is_moved(stand_in):
    gcloud = stand_in("gcloud", {"services describe": traffic(("petals-v1", 100, "next"))})
    done = bash("traffic.sh to previous", **CLOUD)
    assert (done.returncode, done.stderr) == (1, "no revision of petals in europe-west1 has the tag previous\n")
    assert len(calls(gcloud)) == 1


# The smoke test; tests/test_docker.py runs it against the service itself


class Pretender(BaseHTTPRequestHandler):
    """A service that says what `said` holds for a path, and keeps what it was asked."""

    said: dict[str, object]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path  # the whole address, where this is a proxy
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((path, self.headers.get("Authorization")))
        body = json.dumps(self.said.get(path, {})).encode()
        self.send_response(200 if path in self.said else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> tuple[Path, dict]:
    """A model, and what the smoke test reads of its check image."""
    model = write_model(tmp_path_factory.mktemp("checked") / "model.onnx")
    done = run(f"python .github/scripts/model_check.py {model}", REPOSITORY)
    return model, json.loads(done.stdout)


@pytest.fixture
def pretender(checked, tmp_path) -> Iterator[tuple[str, type[Pretender]]]:
    """The address of a service that answers as the model at `tmp_path`/model.onnx should."""
    original, check = checked
    model = Path(shutil.copy(original, tmp_path))
    assert base64.b64decode(check["image"]).startswith(b"\x89PNG") and set(check["probabilities"]) > {"tulip"}
    guesses = [{"name": name, "probability": value} for name, value in check["probabilities"].items()]
    card = {"version": "v1", "revision": "r", "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    said = {"/healthz": {}, "/readyz": {}, "/model": card, "/predict": {"images": [{"guesses": guesses}]}}
    handler = type("Handler", (Pretender,), {"said": said, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def smoke(url: str, tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return bash(f"smoke.sh {url} {tmp_path / 'model.onnx'}", tmp_path, VERSION="v1", REVISION="r", **settings)


def wrong_by(said: dict, amount: float) -> None:
    said["/predict"]["images"][0]["guesses"][1]["probability"] += amount


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda said: said.pop("/healthz"), "/healthz does not answer"),
        (lambda said: said.pop("/readyz"), "/readyz does not answer"),
        (lambda said: said.pop("/model"), "/model does not answer"),
        (lambda said: said.pop("/predict"), "/predict does not answer"),
        (lambda said: said["/model"].update(version="v0"), "serves v0 of r, "),
        (lambda said: said["/model"].update(sha256="0"), "serves v1 of r, 0, not v1 of r, "),
        (lambda said: wrong_by(said, 0.06), "answers the check image wrongly: a probability is off by 0.0"),
        (lambda said: said["/predict"].update(images=[]), "answers the check image wrongly: a probability is off by 1"),
        (lambda said: said["/predict"]["images"][0]["guesses"].pop(), "answers the check image wrongly"),
    ],
)
def test_a_service_that_does_not_do_what_it_should_fails_the_smoke_test_in_one_line(pretender, tmp_path, spoil, reason):
    url, handler = pretender
    spoil(handler.said)
    done = smoke(url, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{url}: {reason}")


@pytest.mark.parametrize(("answered", "code"), [(1000, 0), (999, 1)])
def test_of_many_classes_the_likeliest_thousand_are_compared(pretender, stand_in, tmp_path, answered, code):
    url, handler = pretender
    check = {f"kind {number}": 0.5**number for number in range(1486)}
    stand_in("python3", json.dumps({"image": "", "probabilities": check}).encode())
    guesses = [{"name": name, "probability": value} for name, value in list(check.items())[:answered]]
    handler.said["/predict"]["images"][0]["guesses"] = guesses
    assert smoke(url, tmp_path, PATH=os.environ["PATH"]).returncode == code


def test_small_differences_between_processors_pass(pretender, tmp_path):
    url, handler = pretender
    wrong_by(handler.said, 0.04)
    assert smoke(url, tmp_path).returncode == 0


def test_on_cloud_run_it_says_who_it_is_and_leaves_out_what_google_answers_itself(pretender, tmp_path):
    url, handler = pretender
    done = smoke("http://petals.run.app", tmp_path, http_proxy=url, TOKEN="secret")
    assert done.returncode == 0, done.stderr
    assert handler.asked == [("/model", "Bearer secret"), ("/predict", "Bearer secret")]
    assert "secret" not in done.stdout + done.stderr
