"""Files out of a multipart body, read within limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serving.refusals import Refusal, busy

HELD = 8  # requests of the largest size that may be in memory at once, until they are answered


@dataclass(eq=False)
class Upload:
    """A request that is being read."""

    deadline: asyncio.Timeout
    size: int = 0  # bytes so far
    given_up: bool = False


class Uploads:
    """Reads what clients send, and bounds what all of them together have in memory.

    Where there is too much, the oldest request that is still arriving makes room: it may have stalled. Nothing is
    written to disk, and the names that files were given are not looked at.
    """

    def __init__(self, max_bytes: int, max_files: int, seconds: float) -> None:
        self.max_bytes, self.max_files, self.seconds = max_bytes, max_files, seconds
        self.held = 0  # bytes
        self.arriving: list[Upload] = []  # the oldest first

    @asynccontextmanager
    async def files(self, request: Request) -> AsyncIterator[list[bytes]]:
        """Give the files of a multipart request in their order; they count as held until the block ends.

        Raises Refusal, and Starlette's ClientDisconnect.
        """
        form = Form(boundary(request), self.max_files)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise self.too_large()
        upload = Upload(asyncio.timeout(self.seconds))
        try:
            self.arriving.append(upload)
            try:
                async with upload.deadline:
                    async for chunk in request.stream():
                        if upload.given_up:
                            raise busy()
                        self.make_room(upload, len(chunk))
                        upload.size += len(chunk)
                        self.held += len(chunk)
                        if upload.size > self.max_bytes:
                            raise self.too_large()
                        form.write(chunk)
            except TimeoutError:
                if upload.given_up:
                    raise busy() from None
                raise Refusal(408, "slow", f"the files did not arrive within {self.seconds:g} seconds") from None
            finally:
                if not upload.given_up:
                    self.arriving.remove(upload)
            if upload.given_up:  # in the moment in which its last bytes came
                raise busy()
            yield form.finished()
        finally:
            self.held -= upload.size
            form.files.clear()  # form and parser hold each other until they are collected

    def make_room(self, upload: Upload, size: int) -> None:
        """Give up the oldest until `size` bytes more of this upload have room; raises Refusal if it is the oldest."""
        while self.held + size > HELD * self.max_bytes:
            oldest = next((each for each in self.arriving if not each.deadline.expired()), upload)
            if oldest is upload:
                raise busy()
            self.arriving.remove(oldest)
            self.held -= oldest.size
            oldest.size, oldest.given_up = 0, True
            oldest.deadline.reschedule(0)  # long past: it ends at once

    def too_large(self) -> Refusal:
        return Refusal(
            413, "bytes", f"a request may have {self.max_bytes:,} bytes at most; send smaller images, or fewer"
        )


def boundary(request: Request) -> bytes:
    """The boundary between the parts of a request's form; raises Refusal where it has no form."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(415, "type", "send images as files of a form (multipart/form-data)")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "type", "send the form as it is, without Content-Encoding")
    return options[b"boundary"]


class Form:
    """A form while it arrives: its files in memory, and nothing else allowed in it.

    The methods on_… are what python_multipart calls.
    """

    def __init__(self, boundary: bytes, max_files: int) -> None:
        self.max_files = max_files
        self.files: list[bytearray] = []
        self.header, self.value, self.named = b"", b"", False
        self.whole = False
        callbacks = {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}
        try:
            self.parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise unreadable() from None

    def write(self, chunk: bytes) -> None:
        """Take in the next bytes; raises Refusal."""
        try:
            self.parser.write(chunk)
        except FormParserError:
            raise unreadable() from None

    def finished(self) -> list[bytes]:
        """Give the files; raises Refusal where there are none, or the form breaks off."""
        if not self.whole:
            raise unreadable()
        if not self.files:
            raise Refusal(400, "form", "the form has no file")
        files, self.files = self.files[::-1], []
        return [bytes(files.pop()) for _ in range(len(files))]  # each is there twice only while it is copied

    def on_part_begin(self) -> None:
        self.named = False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.named = b"filename" in parse_options_header(self.value)[1] or b"filename*=" in self.value
        self.header = self.value = b""

    def on_headers_finished(self) -> None:
        if not self.named:
            raise Refusal(400, "form", "send files alone; top_k belongs into the address: /predict?top_k=5")
        if len(self.files) == self.max_files:
            raise Refusal(413, "files", f"a request may have {self.max_files} files at most")
        self.files.append(bytearray())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1] += data[start:end]

    def on_end(self) -> None:
        self.whole = True


def unreadable() -> Refusal:
    return Refusal(400, "form", "the form cannot be read: it breaks off, or is not valid multipart/form-data")
