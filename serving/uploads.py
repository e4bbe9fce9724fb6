"""Files out of a multipart body, read within limits."""

import asyncio
import sys
from collections.abc import AsyncIterator

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.refusals import Refusal, busy

HELD = 8  # requests of the largest size that may be in memory at once


class Uploads:
    """Reads what clients send, and bounds what all of them together have in memory.

    Nothing is written to disk, and the names that files were given are not looked at.
    """

    def __init__(self, max_bytes: int, max_files: int, seconds: float) -> None:
        self.max_bytes, self.max_files, self.seconds = max_bytes, max_files, seconds
        self.held = 0

    async def read(self, request: Request) -> list[bytes]:
        """Give the files of a multipart request in their order; raises Refusal, and Starlette's ClientDisconnect."""
        headers = request.headers
        if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise Refusal(415, "type", "send images as files of a form (multipart/form-data)")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "type", "send the form as it is, without Content-Encoding")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise self.too_large()
        body = Body(self, request)
        parser = InMemory(headers, body.chunks(), max_files=self.max_files, max_fields=0)
        try:
            async with asyncio.timeout(self.seconds):
                form = await parser.parse()
        except TimeoutError:
            raise Refusal(408, "slow", f"the files did not arrive within {self.seconds:g} seconds") from None
        except MultiPartException as error:
            raise self.malformed(error.message) from None
        finally:
            self.held -= body.size
        files = [await file.read() for _, file in form.multi_items()]
        if not files:
            raise Refusal(400, "form", "the form has no file, or breaks off before its end")
        return files

    def too_large(self) -> Refusal:
        return Refusal(
            413, "bytes", f"a request may have {self.max_bytes:,} bytes at most; send smaller or fewer images"
        )

    def malformed(self, message: str) -> Refusal:
        if message.startswith("Too many files"):
            return Refusal(413, "files", f"a request may have {self.max_files} files at most")
        if message.startswith("Too many fields"):
            return Refusal(400, "form", "send files alone; top_k belongs into the address: /predict?top_k=5")
        return Refusal(400, "form", "the form cannot be read: it is not valid multipart/form-data")


class Body:
    """The body of one request, counted while it arrives."""

    def __init__(self, uploads: Uploads, request: Request) -> None:
        self.uploads, self.request, self.size = uploads, request, 0

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self.request.stream():
            self.size += len(chunk)
            self.uploads.held += len(chunk)
            if self.size > self.uploads.max_bytes:
                raise self.uploads.too_large()
            if self.uploads.held > HELD * self.uploads.max_bytes:
                raise busy()
            yield chunk


class InMemory(MultiPartParser):
    """Starlette's parser, which never turns to the disk: the bytes are bounded already."""

    spool_max_size = sys.maxsize
