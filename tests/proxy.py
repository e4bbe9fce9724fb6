"""A door in front of a server that ends it, in the middle of a chosen request."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable


class Proxy:
    """Passes connections on to `target`; when `doom` was called, it ends the server at a request of that kind.

    Requests are counted by their first line, so the moment is the same in each run, whatever the speed.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.pattern: re.Pattern[bytes] | None = None
        self.doomed: socket.socket | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def doom(self, pattern: bytes, number: int, end: Callable[[], None]) -> None:
        """At request `number` that matches `pattern`, call `end`: half through a GET's answer, or another's request."""
        self.left, self.end, self.pattern = number, end, re.compile(pattern)

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            for source, sink, to_server in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, to_server), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if to_server and self._is_the_one(chunk):
                    self.doomed = sink if chunk.startswith(b"GET") else source
                if source is self.doomed:
                    sink.sendall(chunk[: len(chunk) // 2])
                    self.end()
                    break
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _is_the_one(self, chunk: bytes) -> bool:
        with self.lock:
            if self.pattern is None or not self.pattern.match(chunk):
                return False
            self.left -= 1
            return self.left == 0
