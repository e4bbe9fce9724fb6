"""The service as its clients meet it."""

import asyncio
import hashlib
import http.client
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo
from service import PATIENCE, serving
from small_model import CLASSES, pictures, pixels, write_model

from benchmarks.clients import Request
from petals.drift import Reference
from petals.errors import PetalsError
from petals.images import decode, square
from petals.inference import Model
from serving import loading
from serving.__main__ import main
from serving.app import create_app
from serving.loading import LoadedModel, ModelReloader
from serving.metrics import Metrics
from serving.pictures import Large, read
from serving.refusals import Refusal
from serving.settings import Settings
from serving.window import STEP, Window

GOOD, LABELS = pictures(5000, 2)
JPEG = GOOD[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def service(model):
    limits = ("--max-files", 8, "--max-bytes", 300_000, "--max-pixels", 3_000_000, "--window", 150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEB_CONCURRENCY", "2")  # as some platforms do
        with serving(model, "--version", "v1.2.3", "--revision", "abc1234", *limits) as service:
            yield service


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def animation(kind: str) -> bytes:
    frames = [Image.open(io.BytesIO(file)) for file in GOOD[:3]]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header claims this size, with these chunks after it."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def scans(number: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    data = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * number + data[-2:]


def first_scan(data: bytes) -> bytes:
    """A progressive JPEG that ends after its first scan."""
    begin = data.index(b"\xff\xda") + 2
    return data[: min(at for kind in (b"\xff\xc4", b"\xff\xda") if (at := data.find(kind, begin)) > 0)] + data[-2:]


def segments(number: int, length: int, first: bytes = b"", kind: bytes = b"\xff\xe1Exif\0\0") -> bytes:
    """A JPEG with `first` and so many segments more, of so many bytes each, before its pixels."""
    segment = kind[:2] + struct.pack(">H", len(kind) + length) + kind[2:] + bytes(length)
    return JPEG[:2] + first + segment * number + JPEG[2:]


def likeliest(answer: dict) -> list[str]:
    return [image["guesses"][0]["name"] for image in answer["images"]]


def test_several_files_are_answered_in_their_order_as_the_model_alone_answers(service, model):
    answer = service.post(*GOOD).json()
    assert likeliest(answer) == [CLASSES[label] for label in LABELS]
    expected, _ = Model.open(model).run(pixels(GOOD))
    found = [{each["name"]: each["probability"] for each in image["guesses"]} for image in answer["images"]]
    np.testing.assert_allclose([[image[name] for name in CLASSES] for image in found], expected, atol=2e-6)
    for image in answer["images"]:
        shares = [each["probability"] for each in image["guesses"]]
        assert shares == sorted(shares, reverse=True)


def test_top_k_says_how_many_guesses(service):
    for top_k, guesses in ((1, 1), (2, 2), (1000, len(CLASSES))):
        (image,) = service.post(JPEG, address=f"/predict?top_k={top_k}").json()["images"]
        assert len(image["guesses"]) == guesses


def test_the_model_says_which_it_is(service):
    told = service.get("/model").json()
    assert (told["name"], told["version"], told["revision"]) == ("flowers", "v1.2.3", "abc1234")
    assert told["scores"] == {"macro_f1": 0.9} and told["classes"] == CLASSES
    assert service.post(JPEG).json()["sha256"] == told["sha256"]


BOMB = zlib.compress(bytes(50_000_000), 9)
REFUSED = {
    "text": (b"not a picture", 415, "file 1: not a JPEG, PNG or WebP image"),
    "nothing": (b"", 415, "file 1: not a JPEG, PNG or WebP image"),
    "GIF": (animation("GIF"), 415, "not a JPEG, PNG or WebP"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', 415, "not a JPEG, PNG or WebP"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], 422, "damaged or cut short"),
    "cut PNG": (encoded(Image.new("RGB", (99, 99)), "PNG")[:80], 422, "damaged or cut short"),
    "header alone": (JPEG[:20], 422, "damaged or cut short"),
    "many pixels": (png(1733, 1733), 413, "3,000,000 pixels at most"),
    "more pixels than any camera": (png(2**31 - 1, 2**31 - 1), 413, "3,000,000 pixels at most"),
    "deflate bomb, few pixels": (png(8, 8, (b"IDAT", BOMB)), None, ""),  # only 8 × 8 pixels of it are made
    "deflate bomb in a text": (png(8, 8, (b"zTXt", b"a\0\0" + BOMB)), 422, "damaged"),
    "deflate bomb in a profile": (png(8, 8, (b"iCCP", b"a\0\0" + BOMB)), None, ""),
    "endless chunks": (png(8, 8, *[(b"teST", b"")] * 21_000), 422, "damaged"),
    "endless padding": (b"\xff\xd8" + b"\xff" * 250_000, 422, "damaged"),
    "endless scans": (scans(3000), 422, "too many scans"),
    "many scans of many pixels": (scans(60, 1700), 422, "too many scans"),
    "endless segments": (segments(250, 0), 422, "damaged"),
    "many bytes": (bytes(300_001), 413, "300,000 bytes at most"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sound_photograph_is_refused_in_one_line(service, name):
    file, status, says = REFUSED[name]
    answer = service.post(file)
    if status is None:
        assert answer.status_code in (200, 422)
    else:
        assert answer.status_code == status
        assert says in answer.json()["detail"] and "\n" not in answer.json()["detail"]
    assert service.post(JPEG).status_code == 200


def test_scans_are_counted_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr("serving.pictures.decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(Refusal, match="too many scans"):
        read(scans(60, 1700), "file 1", 32, 3_000_000, large=True)


@pytest.mark.parametrize("marker", [b"", b"\xff\xf0\x00\x10", b"\xff\xe0\x00\x00"])
def test_metadata_are_measured_before_they_are_read(monkeypatch, marker):
    monkeypatch.setattr("serving.pictures.Image.open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(Refusal, match="damaged"):
        read(segments(3, 60_000, marker), "file 1", 32, 3_000_000)


RAW = b"Raw profile type exif"
LONG = {
    "Photoshop's": segments(3, 60_000, kind=b"\xff\xedPhotoshop 3.0\0"),
    "several pictures": segments(3, 60_000, kind=b"\xff\xe2MPF\0"),
    "tables": segments(3, 60_000, kind=b"\xff\xdb"),
    "Exif": png(8, 8, (b"eXIf", bytes(140_000))),
    "Exif as a text": png(8, 8, (b"tEXt", b"exif\0" + bytes(270_000))),
    "Exif as digits": png(8, 8, (b"tEXt", RAW + b"\0" + b"0" * 270_000)),
    "packed": png(8, 8, (b"zTXt", RAW + b"\0\0" + zlib.compress(b"0" * 270_000))),
    "international": png(8, 8, (b"iTXt", RAW + b"\0\0\0\0\0" + b"0" * 270_000)),
    "international, packed": png(8, 8, (b"iTXt", RAW + b"\0\1\0\0\0" + zlib.compress(b"0" * 270_000))),
    "profiles": png(8, 8, *[(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 33),
}


@pytest.mark.parametrize("name", LONG)
def test_what_takes_pillow_long_to_read_is_refused_before(monkeypatch, name):
    monkeypatch.setattr("serving.pictures.Image.open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(Refusal, match="damaged"):
        read(LONG[name], "file 1", 32, 3_000_000)


def test_long_exif_of_a_webp_is_refused_before_it_is_gone_through(monkeypatch):
    monkeypatch.setattr("serving.pictures.decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(Refusal, match="damaged"):
        read(encoded(Image.new("RGB", (8, 8)), "WEBP", exif=bytes(140_000)), "file 1", 32, 3_000_000)


def test_the_metadata_that_cameras_write_are_no_obstacle():
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a" * 65_000, 6  # a description, and how to turn it
    lying, digits = Image.new("RGB", (64, 32)), exif.tobytes().hex()
    texts = PngInfo()
    texts.add_text(RAW.decode(), f"\nexif\n{len(digits) // 2}\n{digits}", zip=True)
    texts.add_text("Software", "a darkroom")
    for file in (
        encoded(lying, "JPEG", exif=exif),
        encoded(lying, "PNG", exif=exif, pnginfo=texts),
        encoded(lying, "PNG", pnginfo=texts, icc_profile=bytes(3_000)),
        encoded(lying, "WEBP", exif=exif),
    ):
        assert read(file, "file 1", 32, 3_000_000).shape == (32, 32, 3)


def test_what_follows_the_end_of_a_picture_is_no_part_of_it():
    film = b"\xff\xda" * 5_000
    np.testing.assert_array_equal(read(JPEG + film, "file 1", 32, 3_000_000), read(JPEG, "file 1", 32, 3_000_000))


def test_a_progressive_picture_for_print_is_taken_up_to_the_limit():
    data = encoded(Image.new("CMYK", (1700, 1700)), "JPEG", progressive=True)
    assert read(data, "file 1", 32, 1700**2, large=True).shape == (32, 32, 3)


def test_what_takes_many_pixels_at_a_time_is_large():
    photograph = Image.new("RGB", (2000, 1500))
    data = encoded(photograph, "JPEG")
    assert read(data, "file 1", 32, 3_000_000).shape == (32, 32, 3), "an eighth of it is decoded"
    for size, large in (
        (1024, data),
        (32, encoded(photograph, "JPEG", progressive=True)),
        (32, encoded(photograph.convert("CMYK"), "JPEG")),
        (32, encoded(photograph, "PNG")),
        (32, first_scan(encoded(photograph, "JPEG", progressive=True))),
    ):
        with pytest.raises(Large):
            read(large, "file 1", size, 3_000_000)
        assert read(large, "file 1", size, 3_000_000, large=True).shape == (size, size, 3)


def test_a_picture_whose_first_scan_has_one_colour_is_large():
    data = encoded(Image.new("RGB", (2000, 1500)), "JPEG")
    (at,) = (each.start() for each in re.finditer(b"\xff\xda\x00\x0c\x03", data))
    with pytest.raises(Large):
        read(data[:at] + b"\xff\xda\x00\x08\x01" + data[at + 5 : at + 7] + data[at + 11 :], "file 1", 32, 3_000_000)


def test_an_image_that_memory_does_not_suffice_for_spoils_no_other_of_its_batch(model):
    def greedy(size: int) -> np.ndarray:
        raise MemoryError

    sound = pixels([JPEG])[0]
    first, second, third = LoadedModel(model, 50).run([lambda _: sound, greedy, lambda _: sound])
    assert isinstance(second, MemoryError)
    np.testing.assert_array_equal(first.probabilities, third.probabilities)


def test_photographs_are_read_as_prepare_reads_them():
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    np.testing.assert_array_equal(read(data, "file 1", 32, 10**6), square(decode(data, "here", 32), 32))
    assert (read(data, "file 1", 32, 10**6) != square(decode(data, "here"), 32)).any()


def test_one_bad_file_among_several_is_named(service):
    answer = service.post(JPEG, JPEG, b"?")
    assert answer.status_code == 415 and answer.json()["detail"].startswith("file 3: ")


def test_images_that_are_too_much_together_are_refused_before_any_is_decoded(service):
    plain = Image.new("RGB", (1500, 1500))
    large = encoded(plain, "WEBP", lossless=True)
    before = service.metrics()["petals_batch_images_count"]
    answer = service.post(*[large] * 3)
    assert answer.status_code == 413 and "too many pixels together" in answer.json()["detail"]
    assert service.metrics()["petals_batch_images_count"] == before
    assert service.post(*[encoded(plain, "JPEG")] * 6).status_code == 200


def test_large_images_are_taken_up_to_the_limit(service):
    image = Image.open(io.BytesIO(JPEG)).resize((1700, 1700))  # beyond what is decoded within a batch
    assert likeliest(service.post(encoded(image, "JPEG"), JPEG).json()) == [CLASSES[LABELS[0]]] * 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(service, kind):
    assert likeliest(service.post(animation(kind)).json()) == [CLASSES[LABELS[0]]]


FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("headers", "body", "status", "says"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415, "send images as files of a form"),
        ({"Content-Type": "multipart/form-data"}, b"", 415, "send images as files of a form"),
        ({**FORM, "Content-Encoding": "gzip"}, b"", 415, "without Content-Encoding"),
        (FORM, b"", 400, "breaks off"),
        (FORM, b"what is this", 400, "breaks off, or is not valid"),
        (FORM, PART + JPEG, 400, "breaks off"),
        (FORM, b"--x--\r\n", 400, "has no file"),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--x--\r\n', 400, "send files alone"),
        (FORM, (PART + b"?\r\n") * 9 + b"--x--\r\n", 413, "8 files at most"),
        (FORM, iter([PART, *[bytes(100_000)] * 4]), 413, "300,000 bytes at most"),
        ({"Content-Type": f"multipart/form-data; boundary={'x' * 300}"}, b"", 400, "not valid"),
    ],
)
def test_what_is_no_form_of_files_is_refused_in_one_line(service, headers, body, status, says):
    answer = service.session.post(service.url + "/predict", data=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == status and says in answer.json()["detail"]
    name = answer.headers["X-Request-ID"]
    service.logged(lambda line: line.get("request_id") == name and line["message"] == "request")
    assert len([line for line in service.log if line.get("request_id") == name]) == 1
    assert service.post(JPEG).status_code == 200


@pytest.mark.parametrize("top_k", ["0", "-1", "many", "1e9"])
def test_a_top_k_that_makes_no_sense_is_one_line(service, top_k):
    answer = service.post(JPEG, address=f"/predict?top_k={top_k}")
    assert answer.status_code == 422 and answer.json()["detail"].startswith("top_k: ")


def test_logs_are_json_lines_that_tell_nothing_of_the_pictures(service):
    name = "../../etc/passwd\u2603 my secret.jpg"
    answer = service.post(JPEG, name=name)
    assert answer.status_code == 200
    line = service.logged(lambda line: line.get("request_id") == answer.headers["X-Request-ID"])
    assert set(line) == {
        "time", "severity", "message", "request_id", "method", "route", "status", "seconds", "images",
    }  # fmt: skip
    assert "passwd" not in json.dumps(service.log) and "secret" not in json.dumps(service.log)
    for given, kept in (("abc-1", True), ("a\tb", False), ("x" * 99, False)):
        told = service.session.get(service.url + "/model", headers={"X-Request-ID": given}).headers["X-Request-ID"]
        assert (told == given) is kept


def test_a_client_that_goes_away_harms_nobody(service):
    request = Request.post(JPEG).data
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(request[: len(request) // 2])
    service.logged(lambda line: line.get("status") == 499)
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(request)  # whole, though nobody waits for the answer
    assert service.post(JPEG).status_code == 200


def test_nothing_so_far_was_a_fault_of_the_service(service):
    assert service.get("/healthz").json() == {"status": "ok"} and service.get("/readyz").json() == {"status": "ready"}
    assert not [line for line in service.log if line["severity"] == "ERROR"]


def test_the_interface_is_described_without_another_host(service):
    paths = service.get("/openapi.json").json()["paths"]
    methods = {path: list(operations) for path, operations in paths.items()}
    asked = {path: ["get"] for path in ("/model", "/healthz", "/readyz", "/metrics")}
    assert methods == {"/predict": ["post"], **asked}
    names = [operation["operationId"] for operations in paths.values() for operation in operations.values()]
    assert len(set(names)) == len(names)
    for page in ("/", "/docs"):
        text = service.get(page).text
        assert "//" not in text
        for address in re.findall(r'(?:href|src)="([^"]+)"', text):
            assert service.get(f"/{address}").status_code == 200
    assert "default-src 'none'" in service.get("/").headers["Content-Security-Policy"]


ADDRESSES = (
    "/model",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/",
    "/docs",
    "/page/page.js",
    "/docs/ui/swagger-ui.css",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_where_get_is_answered_head_is_too(service, address):
    told, asked = service.session.head(service.url + address), service.get(address)
    assert told.status_code == asked.status_code == 200 and not told.content
    assert told.headers["Content-Type"] == asked.headers["Content-Type"]
    refused = service.session.put(service.url + address)
    assert refused.status_code == 405 and set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert list(refused.json()) == ["detail"]


def test_metrics_count_what_was_done(service):
    before = service.metrics()
    service.post(JPEG, JPEG)
    service.post(b"?")
    after = service.metrics()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more("petals_requests_total{/predict,200}") == more("petals_requests_total{/predict,415}") == 1
    assert more(f"petals_predictions_total{{{CLASSES[LABELS[0]]}}}") == 2
    assert more("petals_refused_total{type}") == 1 and more("petals_request_seconds_count{/predict}") == 2
    assert more("petals_answer_seconds_count") == 2
    assert after["petals_queue_images"] == 0 and after["petals_queue_limit"] == 128
    assert after[f"petals_model_info{{abc1234,{service.get('/model').json()['sha256'][:12]},v1.2.3}}"] == 1


def test_for_drift_the_first_image_of_each_request_counts_that_is_answered(model):
    with serving(model, "--window", 100) as service:
        for _ in range(50):
            assert service.post(JPEG, b"?").status_code == 415
        assert service.metrics()["petals_drift_images"] == 0
        told = []
        for files in ((JPEG, *GOOD[1:3]), (JPEG,)):
            for _ in range(100):
                assert service.post(*files).status_code == 200
            told.append({name: value for name, value in service.metrics().items() if name.startswith("petals_drift")})
        assert told[0] == told[1] and told[0]["petals_drift_images"] == 100


CHANGES = {
    "photographs like those of validation": lambda image: image,
    "dark": lambda image: image.point(lambda level: level * 0.35),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
    "no flowers": lambda image: Image.effect_noise(image.size, 90).convert("RGB"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_drift_is_seen_where_there_is_some(service, name):
    files = [encoded(CHANGES[name](Image.open(io.BytesIO(file))), "JPEG", quality=90) for file in pictures(7000, 50)[0]]
    for file in files:
        assert service.post(file).status_code == 200
    metrics = service.metrics()
    drifting = [
        key for key in ("psi_classes", "psi_confidence", "ks_distance")
        if metrics[f"petals_drift_{key}"] > metrics[f"petals_drift_{key}_limit"]
    ]  # fmt: skip
    assert metrics["petals_drift_images"] == 150
    assert bool(drifting) is (name != "photographs like those of validation"), metrics


def received(client: socket.socket) -> tuple[int, dict]:
    """The status and the JSON that come back."""
    with http.client.HTTPResponse(client) as response:
        response.begin()
        return response.status, json.loads(response.read())


def test_a_form_that_arrives_too_slowly_is_refused(model):
    with serving(model, "--upload-seconds", 0.2) as service:
        request = Request.post(JPEG).data
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as client:
            client.sendall(request[:-50])
            status, told = received(client)
        assert status == 408 and told["detail"] == "the files did not arrive within 0.2 seconds"
        assert service.metrics()["petals_answer_seconds_count"] == 0  # which is the service's own time


def test_a_body_that_is_not_wanted_is_not_waited_for(service):
    heads = {
        b"POST /nowhere HTTP/1.1\r\n": b"404",
        b"PUT /predict HTTP/1.1\r\n": b"405",
        b"POST /predict HTTP/1.1\r\nContent-Type: text/plain\r\n": b"415",
        b"POST /predict HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\n": b"413",
    }
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port), PATIENCE)) for _ in heads]
        for client, head in zip(clients, heads, strict=True):  # all wait for their end at once
            client.sendall(head + b"Host: localhost\r\nContent-Length: 1000000\r\n\r\n?")
        for client, status in zip(clients, heads.values(), strict=True):
            answer = b"".join(iter(lambda client=client: client.recv(10_000), b""))  # to the end of the connection
            assert answer.split()[1] == status and b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("start", [b"GET /model?", b"GET /model HTTP/1.1\r\nX-Long: "])
def test_headers_without_end_end_the_connection(service, start):
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as client:
        client.sendall(start + b"a" * 66_000)
        answer = b"".join(iter(lambda: client.recv(10_000), b""))
    assert answer.startswith(b"HTTP/1.1 431 ")
    service.logged(lambda line: line["message"] == "HTTP request with too large a head received.")
    assert service.get("/healthz").status_code == 200


def test_a_long_body_does_not_count_as_headers(service):
    request = Request.post(JPEG + bytes(200_000)).data
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as client:
        client.sendall(request + request)
        assert received(client)[0] == 200


def test_odd_requests_are_answered_and_worth_no_warning(service):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    assert service.session.get(service.url + "/model", headers=upgrade).status_code == 200
    assert service.session.get(service.url + "/model/", allow_redirects=False).status_code == 404
    assert not [line for line in service.log if "upgrade" in line["message"].lower()]


def test_sigterm_tells_a_client_that_is_too_slow_to_come_again(model):
    with serving(model, "--drain-seconds", 0) as service:
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as client:
            client.sendall(Request.post(JPEG).data[:-50])
            assert service.get("/readyz").status_code == 200
            service.process.terminate()
            status, told = received(client)
        assert status == 503 and told["detail"].endswith("try again in a second")
        line = service.logged(lambda line: line.get("route") == "/predict")
        assert service.process.wait(PATIENCE) == 0
        assert line["status"] == 503 and not [line for line in service.log if "traceback" in line]


def test_sigterm_answers_what_has_begun(model):
    with serving(model, "--drain-seconds", PATIENCE) as service:
        request = Request.post(JPEG).data
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as client:
            client.sendall(request[:-50])
            assert service.get("/readyz").status_code == 200
            service.process.terminate()
            service.logged(lambda line: line["message"] == "Shutting down")
            client.sendall(request[-50:])
            assert received(client)[0] == 200
        assert service.process.wait(PATIENCE) == 0


def test_another_model_is_loaded_while_requests_go_on(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes())
    another, spoilt = write_model(tmp_path / "another.onnx", 2), write_model(tmp_path / "spoilt.onnx", 3, spoilt=True)
    with serving(path, "--version", "v1") as service:
        first = service.get("/model").json()["sha256"]
        statuses, versions, stop = set(), [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = service.post(JPEG)
                statuses.add(answer.status_code)
                versions.append(answer.json()["sha256"])

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            another.replace(path)
            service.logged(lambda line: line["message"] == "model loaded")
            path.write_bytes(b"not a model")
            service.logged(lambda line: "former one serves on" in line["message"])
            spoilt.replace(path)
            service.process.send_signal(signal.SIGHUP)
            service.logged(lambda line: "does not answer its own check" in line["message"])
        finally:
            stop.set()
            asking.join(PATIENCE)
        told = service.get("/model").json()
        assert statuses == {200}
        assert set(versions) == {first, told["sha256"]} and versions == sorted(versions, key=lambda each: each != first)
        assert told["version"] is None and told["sha256"] != first
        metrics = service.metrics()
        assert metrics["petals_model_loads_total{loaded}"] == 1
        assert metrics["petals_model_loads_total{refused}"] >= 2


def test_a_file_that_is_replaced_while_it_is_loaded_is_loaded_next(model, tmp_path, monkeypatch):
    path, another = tmp_path / "model.onnx", tmp_path / "another.onnx"
    path.write_bytes(model.read_bytes())
    write_model(another, 2)
    expected = hashlib.sha256(another.read_bytes()).hexdigest()
    opened = Model.open

    def replaced(path, **options):
        if another.exists():
            another.replace(path)
        return opened(path, **options)

    monkeypatch.setattr("serving.loading.Model.open", replaced)
    monkeypatch.setattr("serving.loading.POLL", 0.01)

    async def main() -> None:
        done = asyncio.Event()
        reloader = ModelReloader(path, 50, lambda loaded: done.set())
        watching = asyncio.create_task(reloader.watch())
        await asyncio.wait_for(done.wait(), PATIENCE)
        watching.cancel()
        assert reloader.current.sha256 == expected

    asyncio.run(main())


def test_a_reference_of_other_classes_is_refused(model, tmp_path):
    graph, path = onnx.load(model), tmp_path / "model.onnx"
    (held,) = [each for each in graph.metadata_props if each.key == "reference"]
    held.value = Reference.of(np.full((60, 2), 0.5), np.random.default_rng(0).normal(size=(60, 3))).to_json()
    onnx.save(graph, path)
    with pytest.raises(PetalsError, match="reference for drift has other classes"):
        LoadedModel(path, 50)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("reference", lambda told: {**told, "mean": told["mean"][1:], "std": told["std"][1:]}),
        ("reference", lambda told: {**told, "distance_quantiles": ["far"]}),
        ("scores", lambda told: {"macro_f1": "good"}),
        ("check", lambda told: []),
    ],
)
def test_a_model_is_not_loaded_where_its_requests_would_fail(model, tmp_path, text, change):
    graph, path = onnx.load(model), tmp_path / "model.onnx"
    (held,) = [each for each in graph.metadata_props if each.key == text]
    held.value = json.dumps(change(json.loads(held.value)))
    onnx.save(graph, path)
    with pytest.raises(PetalsError, match="run dvc repro") as refused:
        LoadedModel(path, 50)
    assert "\n" not in str(refused.value)


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving", "--port", "0", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)


def test_a_model_that_cannot_serve_is_one_line(tmp_path):
    spoilt = write_model(tmp_path / "spoilt.onnx", spoilt=True)
    for path, says in ((tmp_path / "none.onnx", "not found"), (spoilt, "does not answer its own check")):
        done = start("--model", path)
        assert done.returncode and says in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_setting_that_cannot_be_is_one_line():
    for option, value in (
        ("--wait-ms", "nan"), ("--answer-seconds", "inf"), ("--max-pixels", 10**9), ("--window", 10**9),
        ("--threads", 10**6),
    ):  # fmt: skip
        done = CliRunner().invoke(main, [option, str(value)])
        assert done.exit_code == 2 and option in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_machine_of_many_processors_is_no_mistake():
    code = "import os; os.sched_getaffinity = lambda pid: range(384); from serving.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--model", "none.onnx"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "none.onnx: not found" in done.stderr


def test_an_address_that_cannot_be_listened_at_is_one_line(model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start("--model", model, "--port", port)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"Error: 127.0.0.1, port {port}: nothing can listen there (Address already in use); ")
    done = start("--model", model, "--host", "256.0.0.1")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "256.0.0.1" in done.stderr


def test_a_sighup_that_comes_before_the_service_runs_does_not_end_it(model):
    code = (
        "import os, signal, serving.__main__ as main; load = main.create_app;"
        "main.create_app = lambda settings: os.kill(os.getpid(), signal.SIGHUP) or load(settings);"
        "main.uvicorn.run = lambda *_, **__: print('runs');"
        f"main.main(['--port', '0', '--model', {str(model)!r}], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "runs\n"), done.stderr


END = "os.kill(os.getpid(), signal.SIGTERM)"


@pytest.mark.parametrize(
    "moment",
    [
        f"sys.meta_path.insert(0, types.SimpleNamespace(find_spec=lambda name, *_: name == 'click' and {END} or None))",
        f"import serving.app; serving.app.create_app = lambda settings: {END}",
    ],
    ids=["the first package is imported", "the model is loaded"],
)
def test_a_sigterm_that_comes_before_the_service_runs_ends_it(moment):
    code = f"import os, runpy, signal, sys, types; {moment}; runpy.run_module('serving', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_serving_needs_neither_torch_nor_more_of_petals_than_this():
    code = (
        "import serving.__main__, sys; print(*sorted(n for n in sys.modules if n.split('.')[0] in ('petals', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names = ("drift", "errors", "images", "inference", "parallel")
    assert done.stdout.split() == ["petals", *(f"petals.{name}" for name in names)]


def test_the_image_without_torch_has_the_versions_that_were_tested():
    def pins(name: str) -> set[str]:
        lines = (REPOSITORY / name).read_text().splitlines()
        return {line.split("#")[0].split(";")[0].strip().lower() for line in lines if "==" in line}

    needed = pins("serving/requirements.txt")
    assert needed <= pins("requirements.txt")
    assert {each.replace("_", "-") for each in needed} <= {each.replace("_", "-") for each in pins("constraints.txt")}
    assert not [each for each in needed if each.startswith("torch")]


def watched(reloader: ModelReloader, looks: int, monkeypatch) -> None:
    """Let `reloader` look at its file that many times."""
    monkeypatch.setattr(loading, "POLL", 0.001)

    async def main() -> None:
        done, left, stamp = asyncio.Event(), iter(range(looks, 0, -1)), loading.stamp

        def counted(path: Path) -> object:
            if next(left, 0) <= 1:
                done.set()
            return stamp(path)

        monkeypatch.setattr(loading, "stamp", counted)
        watching = asyncio.create_task(reloader.watch())
        await asyncio.wait_for(done.wait(), PATIENCE)
        watching.cancel()

    asyncio.run(main())


@pytest.fixture
def reloader(model, tmp_path) -> tuple[ModelReloader, list[bool]]:
    """A reloader whose file may change, and what has become of its attempts to load another."""
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    attempts: list[bool] = []
    return ModelReloader(tmp_path / "model.onnx", 50, attempts.append), attempts


def test_a_file_that_cannot_serve_is_looked_at_once(reloader, monkeypatch):
    reloader, attempts = reloader
    reloader.path.write_bytes(b"not a model")
    watched(reloader, 8, monkeypatch)
    assert attempts == [False]


def test_a_sighup_for_the_same_file_changes_nothing(reloader, monkeypatch):
    reloader, attempts = reloader
    current = reloader.current
    reloader.reload_requested.set()
    watched(reloader, 4, monkeypatch)
    assert attempts == [] and not reloader.replaced and reloader.current is current


def test_a_file_is_not_read_while_it_is_written(reloader, monkeypatch):
    reloader, _ = reloader
    stamps, reloads = iter(range(6)), []

    async def reload() -> None:
        reloads.append(next(stamps, "settled"))

    monkeypatch.setattr(loading, "stamp", lambda path: next(stamps, 5))
    reloader.reload = reload
    watched(reloader, 9, monkeypatch)
    assert reloads == ["settled"]


def test_the_model_that_serves_is_in_the_metrics_once_it_is_loaded(model, tmp_path):
    path, another = tmp_path / "model.onnx", write_model(tmp_path / "another.onnx", 2)
    path.write_bytes(model.read_bytes())
    with serving(path, "--version", "v1", "--revision", "abc") as service:
        another.replace(path)
        service.logged(lambda line: line["message"] == "model loaded")
        told = service.get("/model").json()
        assert told["version"] is None and told["revision"] is None
        info = [name for name in service.metrics() if name.startswith("petals_model_info")]
        assert info == [f"petals_model_info{{unknown,{told['sha256'][:12]},unknown}}"]


def test_a_field_after_a_file_is_no_file(service):
    field = b"--x\r\nContent-Type: text/plain\r\n\r\n3\r\n--x--\r\n"
    form = PART + JPEG + b"\r\n" + field
    answer = service.session.post(service.url + "/predict", data=form, headers=FORM, timeout=PATIENCE)
    assert answer.status_code == 400 and "send files alone" in answer.json()["detail"]


def test_a_file_whose_name_is_encoded_is_a_file(service):
    part = b"--x\r\nContent-Disposition: form-data; name=files; filename*=UTF-8''%E2%98%83.jpg\r\n\r\n"
    form = part + JPEG + b"\r\n--x--\r\n"
    assert service.session.post(service.url + "/predict", data=form, headers=FORM, timeout=PATIENCE).status_code == 200


def test_the_last_images_are_compared_a_multiple_of_fifty():
    random = np.random.default_rng(0)
    shares, features = random.random(300, np.float32), random.normal(size=(300, 3)).astype(np.float32)
    probabilities = np.stack([shares, 1 - shares], 1)
    reference = Reference.of(probabilities, features)
    window = Window(reference, 120)
    for start, end in ((0, 70), (70, 190), (190, 200)):
        window.add(list(zip(probabilities[start:end], features[start:end], strict=True)))
        count = min(end, 120) // STEP * STEP
        distances = reference.distances(features[end - count : end])
        assert window.compare() == reference.compare(probabilities[end - count : end], distances)


def test_one_comparison_is_made_at_a_time():
    """A limit of a number of images that is new takes much memory to find, and all who ask at once would find it."""
    at_work = threading.Lock()

    class Busy:
        classes = (1, 1)

        def distances(self, features: np.ndarray) -> np.ndarray:
            return features[:, 0]

        def compare(self, *_: np.ndarray) -> dict[str, float]:
            assert at_work.acquire(blocking=False)
            window.add([(np.zeros(2), np.zeros(1))])  # which need not wait
            time.sleep(0)
            at_work.release()
            return {}

    window = Window(Busy(), 100)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: window.compare(), range(200))) == [{}] * 200


def test_settings_reach_those_whom_they_concern(model):
    service = create_app(Settings(model=model, wait_ms=3)).state.service
    assert service.batcher.wait == 0.003 and not service.batcher.arriving()
    service.uploads.arriving.append(None)
    assert service.batcher.arriving()


def test_counters_begin_at_zero_so_that_an_increase_is_seen():
    value = Metrics().registry.get_sample_value
    for name, label, names in (
        ("petals_refused_total", "reason", ("busy", "late")),
        ("petals_model_loads_total", "outcome", ("loaded", "refused")),
    ):
        assert [value(name, {label: each}) for each in names] == [0, 0]


def test_a_queue_that_does_not_hold_a_request_is_one_line():
    done = CliRunner().invoke(main, ["--queue", "3", "--max-files", "4"])
    assert done.exit_code == 2 and "--queue" in done.stderr and "a request may have 4 files" in done.stderr
