"""Clients that send prepared requests over connections they keep: as little work as a client can have.

Client and server share the processor in `make load`, so what a client costs is taken from the server. These write
bytes that were made before, and read a status and a length.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop

BOUNDARY = "petals"


@dataclass(frozen=True)
class Request:
    """Bytes to send, and the status that they should get."""

    data: bytes
    status: int = 200

    @classmethod
    def post(
        cls, picture: bytes, status: int = 200, disposition: str = 'name="files"; filename="picture"'
    ) -> "Request":
        """A POST of one file to /predict."""
        head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
        body = head + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
        start = (
            "POST /predict HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return cls(start.encode() + body, status)


@dataclass
class Sent:
    """What came of it: the seconds of each request, how many had another status, and what the clients cost."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    wall: float = 0.0
    cpu: float = 0.0


def send(port: int, requests: Sequence[Request], clients: int, number: int) -> Sent:
    """Send `number` of the `requests`, in turn, from so many clients at once; each waits for its answer."""
    sent = Sent()
    turns = iter(range(number))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in turns:
            request = requests[turn % len(requests)]
            started = time.perf_counter()
            writer.write(request.data)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            sent.seconds.append(time.perf_counter() - started)
            sent.errors += int(head[9:12]) != request.status
        writer.close()
        await writer.wait_closed()

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    wall, cpu = time.perf_counter(), time.process_time()
    uvloop.run(all_clients())
    sent.wall, sent.cpu = time.perf_counter() - wall, time.process_time() - cpu
    return sent
