"""The same work on all cores: worker processes that die with their parent."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from types import ModuleType
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Callable[[Task], Result], Iterable[Task]], Iterator[Result]]


def cores() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int | None = None) -> Iterator[Result]:
    """Yield `function(task)` for each task, in the order of the tasks; the first error ends the work.

    With one worker, or one task, all happens in this process.
    """
    tasks = list(tasks)
    with pool(max(1, min(workers or cores(), len(tasks)))) as work:
        yield from work(function, tasks)


@contextmanager
def pool(workers: int | None = None) -> Iterator[Work]:
    """Give a function that works as `in_order` does, but keeps its workers from one call to the next.

    To import torch takes a worker longer than a file of photographs. The workers start as there are tasks for them, at
    the call; with one, all happens in this process, as results are asked for. Do not mix functions of `__main__` with
    others in one pool: workers that were started for the others have not imported it.
    """
    workers = workers or cores()
    if workers <= 1:
        yield map
        return
    # spawn, not fork: it is safe beside threads and the same on every system.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)

    def work(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        # The workers inherit this: Ctrl-C reaches all processes of a terminal, but is for the parent to handle.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        program = sys.modules["__main__"]
        if getattr(function, "__module__", None) != "__main__":  # then they need not import this program as well
            sys.modules["__main__"] = ModuleType("__main__")
        try:
            return executor.map(function, tasks)
        finally:
            sys.modules["__main__"] = program
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    try:
        yield work
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown(wait=False)  # half a second, in which the caller may go on


def in_threads(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int | None = None
) -> Iterator[Result]:
    """As `in_order`, in threads of this process: for work that leaves Python's lock alone, such as torch's.

    At most two results a worker wait to be fetched.
    """
    tasks = iter(tasks)
    workers = workers or cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(function, task) for task in islice(tasks, 2 * workers))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, task) for task in islice(tasks, 1))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def start_worker() -> None:
    """Let this worker compute with one thread, as each core has one, and end when its parent is killed.

    Without that it would wait for work for ever; with threads of torch's for each, all take a third longer.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
