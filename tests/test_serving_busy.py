"""What the service says when it has too much to do. The application is called as a server calls it."""

import asyncio
import gc
import io
import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_model import pictures, write_model

from benchmarks.clients import BOUNDARY, Request
from serving import middleware
from serving.app import create_app
from serving.logs import JsonLines
from serving.settings import Settings
from serving.uploads import HELD, Upload, Uploads

BODY = Request.post(pictures(5000, 1)[0][0]).data.split(b"\r\n\r\n", 1)[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def app(model):
    app = create_app(Settings(model=model, threads=1))
    yield app
    app.state.service.batcher.close()


async def call(
    app,
    method: str,
    path: str,
    body: bytes = b"",
    gone: asyncio.Event | None = None,
    more: bool = False,
    length: int = 0,
) -> tuple:
    """Status, headers and JSON of a request; the client goes away at `gone`, or has `more` to send and does not."""
    kind = f"multipart/form-data; boundary={BOUNDARY}".encode()
    headers = [(b"content-type", kind), *([(b"content-length", b"%d" % length)] if length else [])]
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": headers, "scheme": "http", "root_path": "",
        "server": ("localhost", 80), "client": ("localhost", 1),
    }  # fmt: skip
    messages, parts = [], iter([{"type": "http.request", "body": body, "more_body": more}])

    async def receive() -> dict:
        for part in parts:
            return part
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        messages.append(message)

    await app(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in messages[1:])
    return messages[0]["status"], dict(messages[0]["headers"]), json.loads(text) if text else None


def test_a_full_queue_is_said_so_and_the_service_is_not_ready(app):
    service = app.state.service
    with service.batcher.admit(service.settings.queue):
        status, headers, told = asyncio.run(call(app, "POST", "/predict", BODY))
        assert status == 503 and headers[b"retry-after"] == b"1" and "try again in a second" in told["detail"]
        assert asyncio.run(call(app, "GET", "/readyz"))[0] == 503
        turned_away = service.metrics.registry.get_sample_value("petals_refused_total", {"reason": "busy"})
        assert turned_away == 1  # the question after readiness was not
        assert asyncio.run(call(app, "GET", "/healthz"))[0] == 200
    assert asyncio.run(call(app, "GET", "/readyz"))[0] == 200
    assert asyncio.run(call(app, "POST", "/predict", BODY))[0] == 200


def test_a_fault_of_the_service_is_answered_and_can_be_found_in_the_log(app, caplog, monkeypatch):
    caplog.handler.setFormatter(JsonLines())
    monkeypatch.setattr(app.state.service.model.model, "run", lambda _: 1 / 0)
    status, headers, told = asyncio.run(call(app, "POST", "/predict", BODY))
    assert status == 500 and "its log says why" in told["detail"]
    assert headers[b"x-content-type-options"] == b"nosniff"
    failure, request = map(json.loads, caplog.text.splitlines())
    assert "ZeroDivisionError" in failure["traceback"] and request["status"] == 500
    assert failure["request_id"] == request["request_id"] == headers[b"x-request-id"].decode()


def test_what_all_clients_send_together_is_bounded(app):
    uploads = app.state.service.uploads
    uploads.held = HELD * uploads.max_bytes
    assert asyncio.run(call(app, "POST", "/predict", BODY))[0] == 503
    assert uploads.held == HELD * uploads.max_bytes and not uploads.arriving
    uploads.held = 0
    assert asyncio.run(call(app, "POST", "/predict", BODY))[0] == 200
    assert uploads.held == 0


def test_a_form_that_has_stalled_makes_room_for_another(app):
    uploads = app.state.service.uploads
    uploads.max_bytes = len(BODY)
    stalled = [BODY[:-1]] * HELD

    async def main() -> list[tuple]:
        asked = [asyncio.create_task(call(app, "POST", "/predict", part, more=True)) for part in stalled]
        while uploads.held < HELD * len(BODY[:-1]):
            await asyncio.sleep(0)
        answered = await call(app, "POST", "/predict", BODY)
        first, *others = asked
        given_up = await first
        assert not any(task.done() for task in others)
        for task in others:
            task.cancel()
        return [answered, given_up, *await asyncio.gather(*others)]

    answered, given_up, *ended = asyncio.run(main())
    assert answered[0] == 200 and given_up[0] == 503 and given_up[1][b"retry-after"] == b"1"
    assert {status for status, _, _ in ended} == {503} and all("ends here" in told["detail"] for _, _, told in ended)
    assert uploads.held == 0 and not uploads.arriving


def test_a_body_that_is_drained_after_an_answer_is_not_counted_as_its_time(app, monkeypatch):
    clock = 0.0

    async def drained(_) -> None:
        nonlocal clock
        clock += 2

    monkeypatch.setattr("serving.middleware.perf_counter", lambda: clock)
    monkeypatch.setattr("serving.middleware.drain_body", drained)
    assert asyncio.run(call(app, "POST", "/predict", more=True, length=10**9))[0] == 413
    assert clock == 2
    value = app.state.service.metrics.registry.get_sample_value
    assert value("petals_request_seconds_count", {"route": "/predict"}) == 1
    assert value("petals_request_seconds_sum", {"route": "/predict"}) == 0


def while_the_model_is_at_work(app, client_goes: bool) -> tuple:
    """What a request gets when the model does not answer before it is given up, or before its client goes away."""
    service = app.state.service

    async def main() -> tuple:
        loop, gone, go, run = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), service.model.run

        def slow(decoders: list) -> list:
            assert service.uploads.held == len(BODY)  # until it is answered
            if client_goes:
                loop.call_soon_threadsafe(gone.set)
            assert go.wait(60)
            return run(decoders)

        service.model.run = slow
        try:
            return await call(app, "POST", "/predict", BODY, gone)
        finally:
            go.set()
            await asyncio.to_thread(service.batcher.close)

    return asyncio.run(main())


def test_an_answer_that_takes_too_long_is_given_up(model):
    app = create_app(Settings(model=model, threads=1, answer_seconds=0.1))
    status, headers, told = while_the_model_is_at_work(app, client_goes=False)
    assert status == 503 and b"retry-after" not in headers and "no answer within 0.1 seconds" in told["detail"]
    assert app.state.service.batcher.admitted == app.state.service.uploads.held == 0
    assert app.state.service.metrics.registry.get_sample_value("petals_answer_seconds_sum") >= 0.1


def test_a_client_that_goes_away_leaves_room(model):
    app = create_app(Settings(model=model, threads=1))
    assert while_the_model_is_at_work(app, client_goes=True)[0] == 499
    assert app.state.service.metrics.registry.get_sample_value("petals_answer_seconds_count") == 1  # with its wait
    assert app.state.service.batcher.admitted == 0


NOISE = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)


def encoded(side: int) -> bytes:
    """A PNG that is as long as its pixels."""
    out = io.BytesIO()
    Image.fromarray(NOISE[:side, :side]).save(out, "PNG", compress_level=0)
    return out.getvalue()


def form(*files: bytes) -> bytes:
    parts = [Request.post(file).data.split(b"\r\n\r\n", 1)[1] for file in files]
    end = f"--{BOUNDARY}--\r\n".encode()
    return b"".join(part.removesuffix(end) for part in parts) + end


SMALL, LARGE = encoded(300), encoded(1500)
SENT = {
    "a photograph": (form(SMALL), 200),
    "a large one": (form(LARGE), 200),
    "several": (form(SMALL, LARGE), 200),
    "a damaged one": (form(SMALL[:-1000]), 422),
    "a large one that is damaged": (form(LARGE[:-1000]), 422),
    "several, one damaged": (form(SMALL, SMALL[:-1000]), 422),
    "no photograph": (form(bytes(300_000)), 415),
    "a form that breaks off": (form(SMALL)[:-10], 400),
    "a form without end": (form(*[LARGE] * 3), 413),
}


def kept() -> int:
    """The bytes of forms that are in memory."""
    taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/serving/uploads.py")])
    return sum(trace.size for trace in taken.traces)


@pytest.fixture
def traced(app):
    """Nothing is collected here: what is in a cycle may stay long in a service, too."""
    gc.disable()
    tracemalloc.start()
    yield app
    tracemalloc.stop()
    gc.enable()


@pytest.mark.parametrize("name", SENT)
def test_of_a_request_that_is_over_nothing_is_kept(traced, name):
    body, status = SENT[name]
    assert asyncio.run(call(traced, "POST", "/predict", body))[0] == status
    traced.state.service.batcher.close()  # threads may not have let go of it yet
    traced.state.service.large.shutdown()
    assert kept() < 100_000


@pytest.mark.parametrize("turn", ["of the model", "of large ones", "of several"])
def test_of_a_client_that_goes_away_nothing_waits_for_its_turn(traced, turn):
    service, begun, go = traced.state.service, threading.Event(), threading.Event()
    body = form({"of the model": SMALL, "of large ones": LARGE}[turn]) if turn != "of several" else form(SMALL, SMALL)

    def hold(size: int = 0) -> np.ndarray:
        begun.set()
        assert go.wait(60)
        return np.zeros((size, size, 3), np.uint8)

    async def main() -> None:
        gone, executor = asyncio.Event(), ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(executor)
        if turn == "of the model":
            held = asyncio.create_task(service.batcher.submit(service.model, hold))
            waits = service.batcher.queue.__len__
        else:
            executor = service.large if turn == "of large ones" else executor
            held, waits = asyncio.wrap_future(executor.submit(hold)), executor._work_queue.qsize
        await asyncio.sleep(0)
        assert begun.wait(60)
        asked = asyncio.create_task(call(traced, "POST", "/predict", body, gone))
        while not waits():
            await asyncio.sleep(0)
        gone.set()
        assert (await asked)[0] == 499
        try:
            assert kept() < 100_000
        finally:
            go.set()
            await held

    asyncio.run(main())


def test_a_service_that_is_not_ready_says_so_in_its_log(app, caplog):
    caplog.set_level("INFO")
    with app.state.service.batcher.admit(app.state.service.settings.queue):
        asyncio.run(call(app, "GET", "/readyz"))
    asyncio.run(call(app, "GET", "/readyz"))
    assert [each.fields["status"] for each in caplog.records if each.message == "request"] == [503]


def test_no_more_of_an_unwanted_body_is_taken_in_than_is_said():
    taken = []

    async def receive() -> dict[str, object]:
        taken.append(2**20)
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    asyncio.run(middleware.drain_body(receive))
    assert sum(taken) == middleware.MAX_DRAINED


def test_room_is_made_by_the_oldest_that_is_not_over_already():
    def arriving(size: int, over: bool) -> Upload:
        def reschedule(when: float) -> None:
            assert not over, "asyncio.Timeout would raise"

        return Upload(SimpleNamespace(expired=lambda: over, reschedule=reschedule), size)

    uploads = Uploads(10, 1, 1.0)
    over, stalled, fresh = uploads.arriving = [arriving(40, True), arriving(40, False), arriving(0, False)]
    uploads.held = 80
    uploads.make_room(fresh, 5)
    assert (over.given_up, stalled.given_up, uploads.held) == (False, True, 40)
