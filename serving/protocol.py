"""uvicorn's HTTP protocol, with a bound on what a request holds beside its body."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 64 * 1024  # bytes of request line and headers
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Bounded(HttpToolsProtocol):
    """Ends a connection once HEAD bytes more have come, and neither the end of the headers nor any of a body."""

    loose = 0  # bytes since then

    def data_received(self, data: bytes) -> None:
        self.loose += len(data)
        super().data_received(data)
        if self.loose > HEAD and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self.loose = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.loose = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.loose = 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for a WebSocket is answered as over HTTP; that is worth no line of the log."""
