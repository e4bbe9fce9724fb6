"""python -m serving: serve an exported model."""

import os
import signal

if __name__ == "__main__":  # before what takes long: a container's first process is deaf to what it does not handle
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import gc
import math
import socket
import sys
from pathlib import Path
from typing import Any

import click
import uvicorn

from petals.errors import PetalsError
from petals.images import MAX_PIXELS
from serving import logs
from serving.app import create_app
from serving.protocol import BoundedHttpProtocol
from serving.settings import MOST_THREADS, Settings

DEFAULTS = Settings()
KEEP_ALIVE = 75  # s that an idle connection is kept: longer than proxies keep theirs, so they reuse none that closes


class FiniteFloatRange(click.FloatRange):
    """A range of finite floats: click lets nan through any bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is no number", param, ctx)


def option(name: str, text: str, kind: Any = None) -> Any:
    """An option that is also read from the environment: --max-bytes from PETALS_MAX_BYTES."""
    field = name.removeprefix("--").replace("-", "_")
    return click.option(
        name, envvar=f"PETALS_{field.upper()}", show_envvar=True, default=getattr(DEFAULTS, field), type=kind,
        show_default=True, help=text,
    )  # fmt: skip


@click.command()
@option("--model", "file that export has written", click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at; 0.0.0.0 for all")
@click.option(
    "--port",
    default=8000,
    type=click.IntRange(0, 65535),
    envvar="PORT",
    show_envvar=True,
    show_default=True,
    help="0 takes a free one",
)
@option("--name", "name of the model")
@option("--version", "version of the model", str)
@option("--revision", "git commit of the model", str)
@option("--threads", "images decoded, and batches run, at a time", click.IntRange(1, MOST_THREADS))
@option("--max-bytes", "largest request, in bytes", click.IntRange(1))
@option("--max-pixels", "largest image, in pixels", click.IntRange(1, MAX_PIXELS))
@option("--max-files", "most files in a request", click.IntRange(1))
@option("--upload-seconds", "time in which a request must arrive", FiniteFloatRange(0, 3600, min_open=True))
@option("--answer-seconds", "time in which it must then be answered", FiniteFloatRange(0, 3600, min_open=True))
@option("--queue", "images admitted at a time; more are refused with 503", click.IntRange(1))
@option("--batch", "most images in a batch", click.IntRange(1))
@option("--wait-ms", "longest that a batch waits for images on their way", FiniteFloatRange(0, 1000))
@option("--window", "last images that are compared with validation for drift", click.IntRange(100, 5_000))
@option("--drain-seconds", "time for requests under way at SIGTERM", click.IntRange(0))
def main(host: str, port: int, **values: Any) -> None:
    """Serve a model over HTTP: / is a page, /docs describes the rest, docs/serving.md says more.

    When the model file is replaced, or on SIGHUP, it is loaded anew. SIGTERM finishes the requests under way and ends.
    """
    if values["queue"] < values["max_files"]:
        raise click.BadParameter(f"a request may have {values['max_files']} files", param_hint="--queue")
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the service runs and handles it
    check_address(host, port)
    logs.set_up()
    try:
        app = create_app(Settings(**values))
    except PetalsError as error:
        raise click.ClickException(str(error)) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # uvicorn raises them again once it has drained
    gc.collect()
    gc.freeze()  # what is there by now stays: the collector need not go through it again at each thousandth request
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        http=BoundedHttpProtocol,
        ws="none",
        server_header=False,
        workers=1,  # whatever WEB_CONCURRENCY says
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=values["drain_seconds"],
    )


def check_address(host: str, port: int) -> None:
    """Raises ClickException where nothing can listen there, before the model is loaded."""
    if not host:  # all addresses that there are
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as trial:
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no such host"
        reason = f"{host}, port {port}: nothing can listen there ({why}); see --host and --port"
        raise click.ClickException(reason) from None


if __name__ == "__main__":
    main(prog_name="python -m serving")
