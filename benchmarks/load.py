"""How much the service bears on this machine: python -m benchmarks.load, or make load."""

import multiprocessing
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import psutil

from benchmarks.clients import Request, Sent, send
from petals.commands import Command
from petals.images import decode, square
from petals.inference import Model
from petals.rawdata import open_dataset
from serving.settings import Settings

LEVELS = (1, 8, 64)
BATCHES, SECONDS = (1, 8, 32), 0.4  # of the limit: the sizes tried, and the time given to each
SERVICE = Settings()


@click.command(cls=Command)
@click.option("--model", default=SERVICE.model, show_default=True, type=click.Path(path_type=Path))
@click.option("--data", default=Path("data/sample"), show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--requests", default=2000, show_default=True, type=click.IntRange(10), help="Number of requests in each row."
)
@click.option(
    "--soak",
    default=5000,
    show_default=True,
    type=click.IntRange(10),
    help="Number of requests between two readings of memory.",
)
def main(model: Path, data: Path, requests: int, soak: int) -> None:
    """Load a server of MODEL on 127.0.0.1 with the validation images of DATA, and print a table.

    The limit is ONNX Runtime alone as it comes: one process, one session with as many threads as the service has, fed
    with the same images, decoded and made square before, in batches of the size that is fastest. `side by side` is
    the most that can be had of it: each thread with runs of its own, as in the service. Neither has decoding, HTTP or
    clients in it, and the service has all three, on the same processors. Both are measured before and after each row,
    because the speed of a machine changes; a row is compared with the mean of the two.
    """
    Model.open(model)
    sources = open_dataset(data, 1).splits["val"]
    pictures = [record.data for source in sources for record in source.records()]
    if len(pictures) < max(BATCHES):
        raise click.ClickException(f"{data}: {len(pictures)} validation images; at least {max(BATCHES)} are needed")
    good = [Request.post(picture) for picture in pictures]
    mixed = one_in_ten_malformed(good, pictures)
    click.echo(f"{len(pictures)} images of {np.mean([*map(len, pictures)]):,.0f} bytes, {SERVICE.threads} threads\n")
    columns = (
        "clients",
        "requests/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "errors",
        "limit",
        "of it",
        "side by side",
        "of it",
    )
    click.echo("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    with apart(load, model, pictures) as alone, apart(int) as clients, serving(model) as (port, server):
        at_start = resident(server)
        clients(send, port, good, 8, 100)
        before, costs = alone(measure), []
        for number, sort in [*((level, good) for level in LEVELS), (LEVELS[-1], mixed)]:
            cpu = cpu_seconds(server)
            sent = clients(send, port, sort, number, requests)
            cpu = cpu_seconds(server) - cpu
            after = alone(measure)
            named = f"{number}, one request in ten malformed" if sort is mixed else str(number)
            click.echo(row(named, sent, (before + after) / 2))
            costs.append((1000 * cpu / requests, 1000 * sent.cpu / requests))
            before = after
        warm = resident(server)
        errors = clients(send, port, good, 8, soak).errors
        server_cost, client_cost = np.mean(costs, 0)
        click.echo(
            f"\nprocessor time a request: service {server_cost:.2f} ms, client {client_cost:.2f} ms\n"
            f"resident memory: {at_start:.0f} MB at the start, {warm:.0f} MB after the table,"
            f" {resident(server):.0f} MB after {soak:,} more requests ({errors} errors)"
        )


def row(name: str, sent: Sent, limits: np.ndarray) -> str:
    rate = len(sent.seconds) / sent.wall
    p50, p95, p99 = (f"{1000 * value:.1f}" for value in np.quantile(sent.seconds, (0.5, 0.95, 0.99)))
    compared = [text for limit in limits for text in (f"{limit:.0f}", f"{rate / limit:.2f}")]
    return "| " + " | ".join((name, f"{rate:.0f}", p50, p95, p99, str(sent.errors), *compared)) + " |"


def one_in_ten_malformed(good: Sequence[Request], pictures: Sequence[bytes]) -> list[Request]:
    """Replace each tenth request: in turn a cut image, a text, a form without a file, a PNG that claims too much."""
    bad = [
        Request.post(pictures[0][: len(pictures[0]) // 2], 422),
        Request.post(b"not a picture", 415),
        Request.post(b"5", 400, 'name="top_k"'),
        Request.post(huge_png(60_000), 413),
    ]
    mixed = list(good[: len(good) // 10 * 10])
    for turn, place in enumerate(range(9, len(mixed), 10)):
        mixed[place] = bad[turn % len(bad)]
    return mixed


def huge_png(side: int) -> bytes:
    """A PNG of a hundred bytes whose header claims `side` × `side` pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# ONNX Runtime alone, in a process of its own.


def load(path: Path, pictures: Sequence[bytes]) -> None:
    global one, many, images
    one, many = Model.open(path, threads=SERVICE.threads), Model.open(path, threads=1)
    images = np.stack([square(decode(each, "image", one.image_size), one.image_size) for each in pictures])


def measure() -> np.ndarray:
    """Images a second: of one session with several threads, and of several threads that each run the model."""
    return np.array(
        [max(speed(one, 1, batch) for batch in BATCHES), max(speed(many, SERVICE.threads, batch) for batch in BATCHES)]
    )


def speed(model: Model, callers: int, batch: int) -> float:
    end = time.perf_counter() + SECONDS

    def work(start: int) -> int:
        done = 0
        while time.perf_counter() < end:
            at = (start + done) % (len(images) - batch + 1)
            model.run(images[at : at + batch])
            done += batch
        return done

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        done = sum(threads.map(work, range(callers)))
    return done / (time.perf_counter() - started)


@contextmanager
def apart(prepare: Callable, *arguments: object) -> Iterator[Callable]:
    """A process in which to call functions, after `prepare`."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare, arguments) as pool:
        yield lambda function, *values: pool.submit(function, *values).result()


@contextmanager
def serving(model: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The real service, on a free port of this machine alone; its log goes nowhere."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serving", "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not answers(port):
            if process.poll() is not None:
                raise click.ClickException("the service did not start")
            time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


def resident(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def cpu_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.load")
