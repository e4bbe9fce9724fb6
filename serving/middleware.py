"""What surrounds each request: an id, a log line, metrics, and security headers for browsers."""

import asyncio
import logging
import random
import re
from contextlib import suppress
from time import perf_counter

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.logs import request_id
from serving.metrics import Metrics

QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds, and logged only where they fail
SENSIBLE_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"cache-control", b"no-cache"),  # kept by the browser, though asked for anew each time
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
]
MAX_DRAINED, DRAIN_TIMEOUT = 64 * 2**20, 2.0  # bytes, seconds: of an unwanted body, before its connection is closed
log = logging.getLogger("serving")


class ObservabilityMiddleware:
    """Logs and measures each request, gives it an id, adds the headers, and answers where the application fails.

    A client's `X-Request-ID` is kept if it is a plain word; else one is made.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if SENSIBLE_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        token = request_id.set(name)
        status, begun, ended = 500, False, None
        unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

        async def receive_wrapper() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def send_wrapper(message: Message) -> None:
            nonlocal status, begun, ended
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                sent = message["headers"] = [*message["headers"], (b"x-request-id", name.encode()), *HEADERS]
                if not any(key == b"content-security-policy" for key, _ in sent):
                    sent.append((b"content-security-policy", POLICY.encode()))
                if unread:
                    sent.append((b"connection", b"close"))  # or the server would take in the rest, however long it is
            elif unread and not message.get("more_body", False):
                # To close now could reset the connection before the client has seen the answer.
                await send(message | {"more_body": True})
                ended = perf_counter()  # to the client, that is
                await drain_body(receive)
                message = {"type": "http.response.body"}
            await send(message)

        try:
            await self.app(scope, receive_wrapper, send_wrapper)
        except asyncio.CancelledError:  # by the server, which has waited --drain-seconds after SIGTERM
            if begun:
                raise
            unread = False  # and not waited for any longer
            ending = {"detail": "the service ends here; try again in a second"}
            await JSONResponse(ending, 503, {"Retry-After": "1", "Connection": "close"})(scope, receive, send_wrapper)
        except Exception:
            log.exception("the service failed at this request")
            if begun:
                raise
            told = JSONResponse({"detail": "the service failed at this request; its log says why"}, 500)
            await told(scope, receive, send_wrapper)
        finally:
            self.record(scope, status, (perf_counter() if ended is None else ended) - started)
            request_id.reset(token)

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"  # as declared, so that labels stay few
        self.metrics.requests.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if route in QUIET and status < 400:
            return
        fields = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 4)}
        fields |= scope.get("state", {}).get("log_fields", {})
        level = logging.ERROR if status >= 500 and status != 503 else logging.WARNING if status == 503 else logging.INFO
        log.log(level, "request", extra={"fields": fields})


async def drain_body(receive: Receive) -> None:
    """Read and discard the rest of a body, up to MAX_DRAINED bytes and for DRAIN_TIMEOUT seconds at most."""
    drained = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT):
            while drained < MAX_DRAINED and (message := await receive()).get("more_body", False):
                drained += len(message["body"])
