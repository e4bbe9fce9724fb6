"""uvicorn's HTTP/1 protocol, with a limit on what a request has beside its body, and no upgrade to another."""

import json
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024  # bytes of request line and headers


def refusal(status: HTTPStatus, detail: str) -> bytes:
    """A response that closes the connection, for requests that do not reach the application."""
    body = json.dumps({"detail": detail})
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode("ascii")


INVALID = refusal(HTTPStatus.BAD_REQUEST, "this is no HTTP request that the service understands")
TOO_LARGE = refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers may have {MAX_HEAD:,} bytes at most")


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection once MAX_HEAD bytes have come in a row with neither the end of the headers nor any of a body.

    Speaks HTTP/1 alone: an Upgrade, be it to HTTP/2 or to WebSocket, is ignored (RFC 9110, 7.8).
    """

    pending = 0  # bytes since the last of these

    def data_received(self, data: bytes) -> None:
        self.pending += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parse(memoryview(data))
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.refuse(INVALID)
        if self.pending > MAX_HEAD:
            self.logger.warning("HTTP request with too large a head received.")
            self.refuse(TOO_LARGE)

    def parse(self, data: memoryview) -> None:
        """Feed the parser; where it stops at a head with an Upgrade, feed that head again without it, then the rest.

        By itself it would leave all that follows to the other protocol, though it may be the request's body. Raises
        HttpParserError.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            if self.parser.get_method() == b"CONNECT":  # asks for a tunnel: what follows is no HTTP
                raise httptools.HttpParserError
            head = self.plain_head()
            self.parser = httptools.HttpRequestParser(self)  # the other has ended where the client wants to close
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(head)

    def plain_head(self) -> bytes:
        """The head of the request that has just been parsed, without its Upgrade."""
        version = self.parser.get_http_version().encode("ascii")
        headers = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([self.parser.get_method() + b" " + self.url + b" HTTP/" + version, *headers, b"", b""])

    def refuse(self, answer: bytes) -> None:
        """Close the connection; say why, unless another response is under way, or due before this one."""
        if self.transport.is_closing():
            return
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not begun and not self.pipeline:
            self.transport.write(answer)
        self.transport.close()

    def on_headers_complete(self) -> None:
        self.pending = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.pending = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()
