"""Work on all cores: in order, ended by the first error, and by the death of the parent."""

import contextlib
import math
import operator
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from petals.parallel import cores, in_order, in_threads, pool

SCRIPT = """
import os, sys, threading
from petals.parallel import in_order

def work(fifo):
    if fifo:
        os.write(1, b"at work\\n")
        open(fifo).close()  # until the test opens the other end

if __name__ == "__main__":
    try:
        for _ in in_order(work, ["", sys.argv[1]], workers=2):
            os.write(1, b"one done\\n")
    except KeyboardInterrupt:
        os.write(1, b"stopped\\n")
        sys.exit(130)
"""


def test_cores_are_those_this_process_may_use():
    assert 1 <= cores() <= os.cpu_count()


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_come_in_the_order_of_the_tasks(workers: int | None):
    tasks = [5000, 1, 2, 3000, 3]  # the first takes longest
    assert list(in_order(math.factorial, iter(tasks), workers)) == [math.factorial(task) for task in tasks]


def test_one_worker_or_one_task_stays_in_this_process():
    done = []
    results = in_order(done.append, [1, 2, 3], workers=1)
    assert next(results) is None and done == [1]
    assert list(results) == [None, None] and done == [1, 2, 3]
    assert list(in_order(done.append, [4], workers=7)) == [None] and done[-1] == 4
    assert list(in_order(done.append, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_ends_the_work(workers: int):
    results = in_order(int, ["1", "2", "x", "y", "5"], workers)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="'x'"):
        next(results)
    assert list(results) == []


def process_of(_: int) -> int:
    return os.getpid()


def test_a_pool_keeps_its_workers_from_one_call_to_the_next():
    with pool(2) as work:
        calls = [set(work(process_of, range(20))) for _ in range(4)]  # each has one worker at least
    assert len(set.union(*calls)) <= 2 and os.getpid() not in set.union(*calls)
    with pool(1) as work:
        assert list(work(process_of, [0])) == [os.getpid()]


def test_workers_do_not_import_the_program_that_starts_them(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import math\nfrom petals.parallel import in_order\nprint(list(in_order(math.sqrt, [4, 9], 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=Path(__file__).parents[1],
                          env=os.environ | {"PYTHONPATH": "."})  # fmt: skip
    assert (done.stdout, done.stderr) == ("[2.0, 3.0]\n", "")  # with no guard, each worker would start others


def test_a_consumer_may_stop_early():
    results = in_order(operator.neg, range(100), workers=2)
    assert next(results) == 0
    results.close()
    assert list(results) == []


def test_threads_keep_the_order_too():
    second_done = threading.Event()

    def work(task: int) -> int:
        if task == 0:
            assert second_done.wait(60)
        if task == 1:
            second_done.set()
        return task * task

    assert list(in_threads(work, range(7), workers=2)) == [task * task for task in range(7)]


def test_threads_take_no_more_tasks_than_two_a_worker_ahead():
    taken = []
    results = in_threads(operator.neg, (taken.append(n) or n for n in range(1000)), workers=3)
    assert taken == []
    for fetched in range(1, 20):
        next(results)
        assert len(taken) <= 6 + fetched
    results.close()


def test_an_error_in_a_thread_ends_the_work():
    taken = []
    results = in_threads(int, (taken.append(text) or text for text in ["1", "x", *"2" * 100]), workers=1)
    assert next(results) == 1
    with pytest.raises(ValueError, match="'x'"):
        next(results)
    assert len(taken) < 10


@pytest.fixture
def at_work(tmp_path: Path):
    """A process with a worker that has nothing left to do and one that waits for the fifo `go`."""
    script, go = tmp_path / "script.py", tmp_path / "go"
    script.write_text(SCRIPT)
    os.mkfifo(go)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, script, go],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert {process.stdout.readline() for _ in range(2)} == {b"at work\n", b"one done\n"}
    yield process, go
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_workers_die_when_their_parent_is_killed(at_work):
    process, _ = at_work
    process.kill()
    process.wait()
    # The workers hold the other end of the pipe: it ends when the last of them does.
    readable, _, _ = select.select([process.stdout], [], [], 60)
    assert readable and process.stdout.read() == b""


def test_ctrl_c_is_for_the_parent_alone(at_work):
    process, go = at_work
    os.killpg(process.pid, signal.SIGINT)
    end = os.open(go, os.O_RDWR)  # lets the busy one end
    out, err = process.communicate(timeout=60)
    os.close(end)
    assert (out, err, process.returncode) == (b"stopped\n", b"", 130)
