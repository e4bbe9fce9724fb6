"""Which stage the first machine of a cluster runs: told to the others through the store that its torchrun opens.

DVC skips a stage that is done, so what the first machine runs next cannot be known before.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import psutil
from torch.distributed import TCPStore

from petals.errors import PetalsError

KEY = "petals/stage"
LOOK = 0.5  # s between two looks
PATIENCE = 1800.0  # s that a machine waits for the first one's next stage
FAREWELL = 60.0  # s that the first one waits at the end until the others know


def address() -> tuple[str, int]:
    try:
        return os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"])
    except (KeyError, ValueError):
        raise PetalsError("PET_MASTER_ADDR and PET_MASTER_PORT should say where the first machine is") from None


def connect() -> TCPStore | None:
    """The store at the first machine, None while there is none."""
    try:
        socket.create_connection(address(), timeout=2).close()  # where this fails, the store would write pages about it
        return TCPStore(*address(), is_master=False, timeout=timedelta(seconds=5))
    except (OSError, RuntimeError):
        return None


def running(stages: list[str]) -> tuple[str, int, float] | None:
    """Which of `stages` (such as stages.train) runs beneath this process; which start of it, its first process says.

    That is its number and when it began: in a container that was started again the numbers are those of before.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            began = process.create_time()
            found += [(stage, process.pid, began) for stage in stages if stage in process.cmdline()]
    return min(found, key=lambda each: each[2], default=None)


@contextmanager
def announcing(stages: list[str]) -> Iterator[None]:
    """Tell the others, while this lasts, which of `stages` runs here; and that there is no more, if all went well."""
    ended = threading.Event()

    def watch() -> None:
        told = None
        while not ended.wait(LOOK):
            now = running(stages)
            if now and now != told and (store := connect()):
                try:
                    store.set(KEY, json.dumps(now))
                    told = now
                except RuntimeError:
                    pass  # the stage has just ended

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    with suppress(RuntimeError):  # the port is taken; the run was good, and the others end once they have waited
        store = TCPStore(*address(), is_master=True, wait_for_workers=False)
        store.set(KEY, json.dumps(None))
        others, until = int(os.environ["PET_NNODES"]) - 1, time.monotonic() + FAREWELL
        while store.add("petals/told", 0) < others and time.monotonic() < until:
            time.sleep(LOOK)


def announced() -> Iterator[str]:
    """Every stage that the first machine begins, until it says that there is no more.

    Raises PetalsError where it says nothing for half an hour.
    """
    last, until = None, time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            if (store := connect()) and store.check([KEY]):
                told = json.loads(store.get(KEY))
                if told is None:
                    store.add("petals/told", 1)
                    return
                if told != last:
                    last = told
                    del store
                    yield told[0]
                    until = time.monotonic() + PATIENCE
        except RuntimeError:
            pass  # the stage has just ended there
        time.sleep(LOOK)
    host, port = address()
    raise PetalsError(f"the first machine, at {host}:{port}, has begun no stage for {PATIENCE / 60:.0f} minutes")
