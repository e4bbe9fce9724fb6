"""Download and submission against a stand-in for Kaggle on this machine, spoken to by Kaggle's own client."""

import base64
import hashlib
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import kagglesdk.kaggle_env as kaggle_env
import numpy as np
import pytest
from click.testing import CliRunner

from petals import kaggle
from petals.errors import PetalsError
from petals.rawdata import open_dataset
from petals.tfrecord import encode_example, write_records

COUNTS = {"train": 5, "val": 2, "test": 3}
SIZES = (192, 224)
IDS = ["t0", "t1", "t2"]


def record_files(folder: Path) -> dict[str, bytes]:
    """The competition in small: two files a split, and Kaggle's example of a submission."""
    files = {"sample_submission.csv": b"id,label\nt0,0\nt1,0\nt2,0\n"}
    for size in SIZES:
        for split, count in COUNTS.items():
            for number, share in enumerate((1, count - 1)):
                name = f"tfrecords-jpeg-{size}x{size}/{split}/{number:02d}-{size}x{size}-{share}.tfrec"
                image = {"image": bytes([number]) * 50_000, "class": 0, "id": b"x"}
                write_records(folder / "one", [encode_example(image)] * share)
                files[name] = (folder / "one").read_bytes()
    return files


class Kaggle(http.server.ThreadingHTTPServer):
    """What Kaggle's client asks for: a list of files, a file (through a redirect), an upload, a submission."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = files
        self.refusal: int | None = None  # answer everything with this
        self.cut: str | None = None  # break off in the middle of this file
        self.storage = 200  # what the storage of submissions answers
        self.given: list[str] = []
        self.uploaded = b""
        self.submission: dict[str, object] = {}

    def handle_error(self, request: object, address: object) -> None:
        pass  # connections are cut on purpose


class Handler(http.server.BaseHTTPRequestHandler):
    server: Kaggle

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def json(self, value: dict[str, object], status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        basic = "Basic " + base64.b64encode(b"gardener:right").decode()
        if self.headers.get("Authorization") not in (basic, "Bearer right"):
            return self.json({"code": 401, "message": "Unauthenticated"}, 401)
        if self.server.refusal:
            return self.json({"code": self.server.refusal, "message": "No"}, self.server.refusal)
        assert asked["competitionName"] == "tpu-getting-started"
        match self.path.removeprefix("/api/v1/competitions.CompetitionApiService/"):
            case "ListDataFiles":
                names = list(self.server.files)
                start = int(asked.get("pageToken", 0))
                page = {"files": [{"name": name} for name in names[start : start + 5]]}
                self.json(page | ({"nextPageToken": str(start + 5)} if start + 5 < len(names) else {}))
            case "DownloadDataFile":
                self.answer(302, b"", Location=f"{self.server.url}/storage/{asked['fileName']}")
            case "StartSubmissionUpload":
                assert asked["contentLength"] == len("id,label\n") + 5 * len(IDS)
                self.json({"token": "blob", "createUrl": f"{self.server.url}/upload"})
            case "CreateSubmission":
                self.server.submission = asked
                self.json({"message": "Successfully submitted to Petals to the Metal"})

    def do_GET(self) -> None:
        name = self.path.removeprefix("/storage/")
        data = self.server.files[name]
        self.server.given.append(name)
        if name == self.server.cut:
            self.server.cut = None
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        self.answer(200, data, Accept_Ranges="bytes", X_Goog_Hash=f"md5={digest}")

    def do_PUT(self) -> None:
        self.server.uploaded = self.body()
        self.answer(self.server.storage, b"")


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Kaggle]:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_USERNAME", "gardener")
    monkeypatch.setenv("KAGGLE_KEY", "right")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setattr("kagglehub.config.DEFAULT_KAGGLE_CREDENTIALS_FOLDER", str(tmp_path / "home" / ".kaggle"))
    # To say in its user agent whose call it is, kagglehub walks all frames and modules, for each file anew.
    monkeypatch.setattr("kagglehub.clients.get_user_agent", lambda: "kagglehub")
    monkeypatch.chdir(tmp_path)
    with Kaggle(record_files(tmp_path)) as server:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, server.url)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines of the command, without the bars that show the progress."""
    result = CliRunner().invoke(kaggle.main, arguments)
    return result.exit_code, [line for line in result.output.splitlines() if "B/s]" not in line and line.strip()]


def test_every_size_is_brought_in_kaggles_layout(server):
    lines = []
    assert kaggle.download("data/petals", say=lines.append, counts=COUNTS) == list(SIZES)
    assert contents(Path("data/petals")) == server.files
    assert lines[0] == "1 of 12: tfrecords-jpeg-192x192/test/00-192x192-1.tfrec"
    assert [path.name for path in Path("data").iterdir()] == ["petals"]
    assert {split: sum(s.count for s in sources) for split, sources in dataset().items()} == COUNTS


def dataset() -> dict[str, list]:
    return open_dataset("data/petals", 192).splits


def test_one_size_is_brought_beside_another(server):
    assert kaggle.download("data/petals", 224, counts=COUNTS) == [224]
    assert not any("192x192" in name for name in server.given)
    kaggle.download("data/petals", 192, counts=COUNTS)
    assert contents(Path("data/petals")) == server.files


def test_a_list_without_the_sample_submission_is_no_hindrance(server):
    del server.files["sample_submission.csv"]
    assert kaggle.download("data/petals", 192, counts=COUNTS) == [192]


@pytest.mark.parametrize("split", COUNTS)
def test_the_images_of_each_split_are_counted(server, split):
    with pytest.raises(PetalsError, match=f"Kaggle lists {COUNTS[split]} {split} images of 192 px, not the 99 of"):
        kaggle.download("data/petals", 192, counts=COUNTS | {split: 99})
    assert server.given == []


def test_the_command_says_what_follows(server, monkeypatch):
    monkeypatch.setattr(kaggle, "download", lambda out, size, say: [size])
    assert run("download", "--size", "224") == (
        0,
        [
            "data/petals has 12,753 train, 3,712 val, 7,382 test images at 224 px. Next:",
            "  dvc add data/petals",
            "  set data: data/petals in params.yaml",
            "  make repro record",
            "  git add --all && git commit",
        ],
    )


def test_a_token_is_as_good_as_a_user_name_with_key(server, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "right")
    assert kaggle.download("data/petals", 192, counts=COUNTS) == [192]


def test_a_token_that_is_two_lines_is_not_shown(server, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "right\nright")
    code, (line,) = run("download")
    assert code == 1 and "right" not in line and "the token holds a line break" in line


def test_a_file_in_the_place_of_the_folder_is_told_before_the_download(server, tmp_path):
    Path("mine").touch()
    code, (line,) = run("download", "--out", "mine")
    assert (code, line, server.given) == (1, "Error: mine: not a folder; name another by --out", [])


@pytest.mark.parametrize("command", ["download", "submit"])
@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            "no key",
            "Kaggle needs credentials: make a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN",
        ),
        ("wrong key", "Kaggle does not know these credentials; make a token at https://www.kaggle.com/settings"),
        ("broken file", "Invalid Kaggle credentials file at "),
        (
            403,
            "Kaggle refuses: accept the competition's rules with this account at https://www.kaggle.com/competitions/",
        ),
        (429, "Kaggle limits requests for now; run the same command again later: it goes on where it stopped"),
        (500, "Kaggle answers HTTP 500; try again later"),
        ("gone", "the connection to Kaggle broke (ConnectionError); try again: it goes on from there"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(server, monkeypatch, tmp_path, command, refusal, message):
    answers()
    monkeypatch.setattr(kaggle, "wanted_ids", lambda data, prepared: IDS)
    if refusal == "no key":
        monkeypatch.delenv("KAGGLE_KEY")
    elif refusal == "wrong key":
        monkeypatch.setenv("KAGGLE_KEY", "wrong")
    elif refusal == "broken file":
        monkeypatch.delenv("KAGGLE_KEY")
        (tmp_path / "home" / ".kaggle").mkdir(parents=True)
        (tmp_path / "home" / ".kaggle" / "kaggle.json").write_text("gardener")
    elif refusal == "gone":
        server.shutdown()
        server.server_close()
    else:
        server.refusal = refusal
    code, (line,) = run(command)
    assert code == 1
    assert line.startswith(f"Error: {message}")
    assert sorted(path.name for path in Path("data").iterdir()) == ["submission.csv"]
    assert server.submission == {}


def test_rules_that_are_not_accepted_show_at_the_first_file(server, monkeypatch):
    """The list of files is open to all who have an account."""
    monkeypatch.setattr(kaggle, "_listed", lambda: list(server.files))
    server.refusal = 403
    with pytest.raises(PetalsError, match=r"accept the competition's rules with this account"):
        kaggle.download("data/petals", counts=COUNTS)
    assert not Path("data/petals").exists()


def test_a_cut_connection_leaves_nothing_and_the_next_call_goes_on(server):
    Path("data/petals").mkdir(parents=True)
    server.cut = "tfrecords-jpeg-192x192/train/01-192x192-4.tfrec"
    with pytest.raises(PetalsError, match=r"the connection to Kaggle broke \(.*\); try again: it goes on from there"):
        kaggle.download("data/petals", 192, counts=COUNTS)
    assert list(Path("data/petals").iterdir()) == []
    before = server.given.copy()
    kaggle.download("data/petals", 192, counts=COUNTS)
    assert contents(Path("data/petals")) == {name: data for name, data in server.files.items() if "224" not in name}
    again = [name for name in server.given[len(before) :] if name in before]
    assert again == ["tfrecords-jpeg-192x192/train/01-192x192-4.tfrec"]
    assert [path.name for path in Path("data").iterdir()] == ["petals"]


def test_files_wait_on_the_disk_that_a_link_leads_to(server, tmp_path):
    """A move from one disk to another is a copy, which can fail when the former files are gone."""
    Path("data").mkdir()
    (tmp_path / "disk/photographs").mkdir(parents=True)
    Path("data/petals").symlink_to(tmp_path / "disk/photographs")
    server.cut = "tfrecords-jpeg-192x192/train/01-192x192-4.tfrec"
    with pytest.raises(PetalsError, match="the connection to Kaggle broke"):
        kaggle.download("data/petals", 192, counts=COUNTS)
    assert [path.name for path in Path("data").iterdir()] == ["petals"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [".photographs.partial", "photographs"]
    kaggle.download("data/petals", 192, counts=COUNTS)
    assert Path("data/petals").is_symlink()
    assert contents(Path("data/petals")) == {name: data for name, data in server.files.items() if "224" not in name}
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["photographs"]


def test_files_wait_in_a_folder_that_is_a_disk_of_its_own(server, monkeypatch):
    Path("data/petals").mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "petals")
    server.cut = "tfrecords-jpeg-192x192/train/01-192x192-4.tfrec"
    with pytest.raises(PetalsError, match="the connection to Kaggle broke"):
        kaggle.download("data/petals", 192, counts=COUNTS)
    assert [path.name for path in Path("data/petals").iterdir()] == [".petals.partial"]
    kaggle.download("data/petals", 192, counts=COUNTS)
    assert contents(Path("data/petals")) == {name: data for name, data in server.files.items() if "224" not in name}
    assert not Path("data/petals/.petals.partial").exists()
    assert [path.name for path in Path("data").iterdir()] == ["petals"]


def test_what_was_brought_of_another_size_waits_and_replaces_nothing(server):
    kaggle.download("data/petals", 192, counts=COUNTS)
    whole = contents(Path("data/petals"))
    server.cut = "tfrecords-jpeg-192x192/train/01-192x192-4.tfrec"
    with pytest.raises(PetalsError, match="the connection to Kaggle broke"):
        kaggle.download("data/petals", 192, counts=COUNTS)
    kaggle.download("data/petals", 224, counts=COUNTS)
    assert contents(Path("data/petals")) == server.files and whole.items() <= server.files.items()
    before = server.given.copy()
    kaggle.download("data/petals", 192, counts=COUNTS)
    assert len(server.given) - len(before) < len(whole), "it goes on from there"
    assert [path.name for path in Path("data").iterdir()] == ["petals"]


def test_a_file_that_is_not_what_its_name_says_is_never_in_the_data(server):
    name = "tfrecords-jpeg-192x192/val/01-192x192-1.tfrec"
    right = server.files[name]
    for wrong in (right + right, right[:1000] + b"!" + right[1001:], b""):
        server.files[name] = wrong
        with pytest.raises(PetalsError, match=re.escape(f"{name}: came damaged, or with more or fewer images")):
            kaggle.download("data/petals", 192, counts=COUNTS)
        assert not Path("data/petals").exists()
    server.files[name] = right
    assert kaggle.download("data/petals", 192, counts=COUNTS) == [192]


def test_wrong_counts_are_seen_before_anything_is_brought(server):
    with pytest.raises(PetalsError, match="Kaggle lists 5 train images of 192 px, not the 12753 of the competition"):
        kaggle.download("data/petals", 192)
    with pytest.raises(PetalsError, match=r"no images of 256 px \(it has 192, 224\)"):
        kaggle.download("data/petals", 256, counts=COUNTS)
    server.files.clear()
    with pytest.raises(PetalsError, match=r"no images of any px \(it has none\)"):
        kaggle.download("data/petals", counts=COUNTS)
    assert server.given == []


def answers(text: str = "id,label\nt2,3\nt0,0\nt1,7\n") -> Path:
    path = Path("data/submission.csv")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_checked_submission_is_sent(server, monkeypatch):
    path = answers()
    asked = []
    monkeypatch.setattr(kaggle, "wanted_ids", lambda data, prepared: asked.append(str(data)) or IDS)
    code, lines = run("submit", "--message", "warmer colours", "--data", "elsewhere")
    assert (code, lines[0]) == (0, "Successfully submitted to Petals to the Metal")
    assert asked == ["elsewhere"]
    assert server.uploaded == path.read_bytes()
    assert server.submission["blobFileTokens"] == "blob"
    assert server.submission["submissionDescription"] == "warmer colours"


def test_storage_that_refuses_is_not_taken_for_rules_that_were_not_accepted(server, monkeypatch):
    answers()
    server.storage = 403
    monkeypatch.setattr(kaggle, "wanted_ids", lambda data, prepared: IDS)
    code, lines = run("submit", "--message", "x")
    assert (code, lines) == (1, ["Error: Kaggle's storage refuses the file (HTTP 403); run submit again"])
    assert server.submission == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must be id,label"),
        ("id,class\nt0,0\n", "line 1 must be id,label"),
        ("id,label\nt0,0\nt1\n", "line 3: 1 values; it must be an id and a label"),
        ("id,label\nt0,0\nt0,0\n", "line 3: the id 't0' occurs twice"),
        ("id,label\nt9,0\n", "line 2: the id 't9' is no test image of the competition"),
        ("id,label\nt0,104\n", "line 2: the label '104' is no number of 0 … 103"),
        ("id,label\nt0,rose\n", "line 2: the label 'rose' is no number of 0 … 103"),
        ("id,label\nt0,-1\n", "line 2: the label '-1' is no number of 0 … 103"),
        ("id,label\nt2,103\n", "no answer for 2 test images, 't0' first"),
    ],
)
def test_a_wrong_submission_is_not_sent(server, monkeypatch, text, message):
    answers(text)
    monkeypatch.setattr(kaggle, "wanted_ids", lambda data, prepared: IDS)
    code, (line,) = run("submit")
    assert code == 1
    assert message in line
    assert server.uploaded == b""


DAMAGED = [
    (b"id,label\nt0,0\nt\xff,0\n", "line 3: not UTF-8"),
    (b"id,label\nt0,0\n" + b"t" * 131_073 + b",0\n", "line 3: damaged (field larger than field limit (131072))"),
    (b'id,label\n"t0\nt1",0\n\xff', "line 4: not UTF-8"),
]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *DAMAGED,
        (b"id,label\nt0," + b"9" * 5000 + b"\n", f"line 2: the label '{'9' * 39}…' is no number of 0 … 103"),
        (b"id,label\n" + b"t" * 5000 + b",0\n", f"line 2: the id '{'t' * 39}…' is no test image of the competition"),
    ],
)
def test_a_damaged_submission_is_one_line(tmp_path, data, message):
    path = tmp_path / "submission.csv"
    path.write_bytes(data)
    with pytest.raises(PetalsError, match=re.escape(f"{path}: {message}")) as error:
        kaggle.check_submission(path, IDS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(("data", "message"), [*DAMAGED, (b"name,label\nt0,0\n", "line 1 must be id,label")])
def test_damaged_ids_are_one_line(tmp_path, data, message):
    sample = tmp_path / "sample_submission.csv"
    sample.write_bytes(data)
    with pytest.raises(PetalsError, match=re.escape(f"{sample}: {message}")) as error:
        kaggle.wanted_ids(tmp_path, tmp_path, 3)
    assert "\n" not in str(error.value)


def test_a_submission_that_was_never_written_is_one_line(tmp_path):
    with pytest.raises(PetalsError, match="not found; dvc repro evaluate writes it"):
        kaggle.check_submission(tmp_path / "submission.csv", IDS)


def test_the_ids_are_kaggles_own_where_they_are_at_hand(tmp_path, make_split):
    data, prepared = tmp_path / "petals", tmp_path / "test"
    with pytest.raises(PetalsError, match=r"ids\.json: not found; run dvc exp run -S data="):
        kaggle.wanted_ids(data, prepared, 3)
    make_split(prepared, np.zeros((3, 2, 2, 3), np.uint8), [-1] * 3)
    assert kaggle.wanted_ids(data, prepared, 3) == ["test-0", "test-1", "test-2"]
    with pytest.raises(PetalsError, match=r"3 test images, the competition has 7382; run dvc exp run"):
        kaggle.wanted_ids(data, prepared)
    data.mkdir()
    (data / "sample_submission.csv").write_text("id,label\nt0,0\nt1,0\nt2,0\n")
    assert kaggle.wanted_ids(data, prepared, 3) == IDS
