"""What the service makes of bytes: the protocol alone, without a network, so that they can be cut anywhere."""

import asyncio
import json

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from serving.protocol import INVALID, MAX_HEAD, TOO_LARGE, BoundedHttpProtocol

BODY = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
TURNS = 100  # of the event loop, in which all is done: nothing here waits for anything outside


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closing = b"", False

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def asked(*parts: bytes) -> tuple[list[tuple[str, str, bytes]], Wire]:
    """Method, path and body of each request that the application has whole once these parts have come, and the wire."""
    requests: list[tuple[str, str, bytes]] = []

    async def app(scope: dict, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        requests.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def main() -> Wire:
        config = Config(app, log_config=None, access_log=False, ws="none", lifespan="off")
        protocol, wire = BoundedHttpProtocol(config, ServerState(), {}), Wire()
        protocol.connection_made(wire)
        for part in parts:
            if not wire.closing:
                protocol.data_received(part)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        protocol.connection_lost(ConnectionResetError())  # without one it would close the wire itself
        return wire

    return requests, asyncio.run(main())


def request(*headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    lines = [b"POST /predict?top_k=3 HTTP/" + version, b"Host: x", *headers]
    return b"\r\n".join([*lines, b"", body])


LENGTH = b"Content-Length: %d" % len(BODY)
UPGRADES = {
    "HTTP/2": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    "WebSocket": (b"Connection: Upgrade", b"upgrade: websocket", b"Sec-WebSocket-Version: 13"),
}


@pytest.mark.parametrize("name", UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upgrade_is_ignored_and_the_body_is_a_body_wherever_it_is_cut(name, chunked):
    framing, body = (
        (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)) if chunked else (LENGTH, BODY)
    )
    sent = request(*UPGRADES[name], framing, body=body) + NEXT
    expected = [("POST", "/predict", BODY), ("GET", "/next", b"")]
    for at in range(len(sent)):
        requests, wire = asked(sent[:at], sent[at:])
        assert requests == expected, f"cut at {at}"
        assert wire.written.count(b"HTTP/1.1 200 OK") == 2 and not wire.closing


def test_several_upgrades_in_a_packet_are_each_answered():
    sent = request(*UPGRADES["HTTP/2"], LENGTH, body=BODY) + request(*UPGRADES["WebSocket"])
    requests, _ = asked(sent * 3)
    assert [body for _, _, body in requests] == [BODY, b""] * 3


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_an_upgrade_of_a_client_that_goes_after_its_answer_is_answered(version):
    sent = request(b"Connection: close, Upgrade", b"Upgrade: h2c", LENGTH, body=BODY, version=version)
    for parts in ([sent], [sent[: -len(BODY)], BODY]):
        requests, wire = asked(*parts)
        assert requests == [("POST", "/predict", BODY)] and wire.closing


def test_a_client_that_asks_for_a_tunnel_is_refused_and_nothing_more_of_it_is_read():
    for parts in ([b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT], [b"CONNECT /next HTTP/1.1\r\n\r\n", NEXT]):
        requests, wire = asked(*parts)
        assert (requests, wire.written, wire.closing) == ([], INVALID, True)


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ([b"what is this\r\n\r\n"], INVALID),
        ([request(b"Transfer-Encoding: chunked", body=b"no length\r\n")], INVALID),
        ([NEXT[:-2], b"X: " + b"x" * MAX_HEAD], TOO_LARGE),
        ([request(*UPGRADES["HTTP/2"], b"Transfer-Encoding: chunked"), b"1;" + b"x" * MAX_HEAD], TOO_LARGE),
    ],
)
def test_what_is_no_request_is_refused_in_one_line_of_json(parts, answer):
    requests, wire = asked(*parts)
    assert (requests, wire.written, wire.closing) == ([], answer, True)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert list(json.loads(body)) == ["detail"] and b"\r\ncontent-length: %d" % len(body) in head


def test_a_refusal_does_not_fall_into_another_answer():
    _, wire = asked(request(LENGTH, body=BODY[:-1]), BODY[-1:] + NEXT + b"what is this\r\n\r\n")
    assert INVALID not in wire.written and wire.closing
