"""Trials as experiments of DVC: put into its queue, watched, told to stop. DVC's own workers run them.

A worker is a process of its own, so that a search which is killed leaves its trials running, to be taken up.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.executor.base import ExecutorInfo
from dvc.utils.serialize import ParseError

from petals.errors import PetalsError
from petals.files import STATE
from petals.git import git
from petals.inputs import dvc_files
from petals.params import read_mapping
from petals.stopping import stop_stage
from petals.tune.space import CURVES, Settings, Value, metric, same

LIVE = STATE / "live" / "plots" / "metrics"  # where DVCLive writes while train runs
# As DVC, libgit2, git and dulwich say that another has a lock for a moment, or is just writing a file.
BUSY = re.compile(
    r"Unable to acquire lock|is busy, it is being blocked by|the index is locked|failed to lock file"
    r"|\.lock'.*File exists|JSON file structure is corrupted"
)
UNSETTLED = (OSError, ValueError, ParseError)  # what a file of DVC's gives while it is written or removed
Curve = dict[int, float]


@dataclass
class Seen:
    """Where experiments stand: those that wait or run, by name, with DVC's revision; those done, with their commit."""

    waiting: dict[str, str]
    active: dict[str, str]
    done: dict[str, str]


class Experiments:
    """The experiments of the repository in the working folder."""

    PATIENCE = 60.0  # s that DVC has for collecting an experiment whose process has ended

    def __init__(self) -> None:
        try:
            self.repo = Repo(".")
            self.tasks = self.repo.experiments.celery_queue
            if Path(self.repo.root_dir) != Path.cwd():
                raise PetalsError(f"{self.repo.root_dir} is the top folder of the repository; run from there")
            git("rev-parse", "--verify", "HEAD")
        except DvcException as error:
            raise PetalsError(f"DVC finds no repository with git here: {error}") from None
        # The workers find the same Python and DVC.
        bin_folder = str(Path(sys.executable).parent)
        self.environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}"}
        self.ended: dict[str, float] = {}

    def check_data(self, path: str) -> None:
        """Raise PetalsError where `path` is neither in git nor in DVC: a trial finds nothing else in its folder."""
        data = PurePosixPath(path)
        made = any(data.is_relative_to(out.def_path) for out in self.repo.index.outs)
        if made or data.is_absolute() or ".." in data.parts:
            return
        if not git("ls-files", "--", path, *map(str, dvc_files(data))):
            raise PetalsError(
                f"data: {path} is neither in git nor in DVC, so no trial has it; dvc add {path}, and commit"
            )

    def queue(self, name: str, values: Settings) -> None:
        """Queue the experiment `name`: the working tree with `values` in params.yaml, where they are others there."""
        present = read_mapping("params.yaml")
        settings = {knob: value for knob, value in values.items() if not same(value, present.get(knob))}
        overrides = [
            part for knob, value in settings.items() for part in ("-S", f"params.yaml:{override(knob, value)}")
        ]
        self.dvc("exp", "run", "--queue", "--name", name, *overrides, unless=lambda: self.has(name))

    def has(self, name: str) -> bool:
        """Whether there is an experiment of this name already: a search was killed while queueing it, maybe."""
        seen = self.look()
        return name in {*seen.waiting, *seen.active, *seen.done}

    def start(self, jobs: int) -> None:
        """Let `jobs` workers of DVC be there; each ends by itself when the queue has been empty for a while."""
        self.dvc("queue", "start", "--jobs", str(jobs))

    def dvc(self, *arguments: str, unless: Callable[[], bool] = lambda: False) -> None:
        """Run DVC, again and again while it is busy and `unless` does not hold; PetalsError where it fails."""
        command = [sys.executable, "-m", "dvc", *arguments]
        for attempt in range(20):
            # A session of its own, and waited for without an end: DVC stashes the working tree for a moment, which no
            # Ctrl-C may cut short, and subprocess.run would kill it upon one. And a file, not a pipe: a pipe stays open
            # for as long as the workers live that have inherited it.
            with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
                options = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "start_new_session": True}
                code = subprocess.Popen(command, env=self.environment, **options).wait()
                said.seek(0)
                output = said.read()
            if code == 0:
                return
            if not BUSY.search(output):
                break
            time.sleep(min(attempt + 1, 5))
            if unless():
                return
        raise PetalsError(f"dvc {' '.join(arguments[:2])}: {last_error(output)}")

    def look(self) -> Seen:
        """Where every experiment stands; PetalsError where DVC's queue stays unreadable."""
        for _ in range(100):
            try:
                return self.seen()
            except UNSETTLED as error:
                said = error
                time.sleep(0.1)
        folder = os.path.relpath(self.tasks.wdir)
        raise PetalsError(f"{folder}, where DVC keeps its queue, cannot be read: {said}")

    def seen(self) -> Seen:
        # In the order in which an experiment passes through them, so that none slips by.
        waiting = {str(entry.name): entry.stash_rev for entry in self.tasks.iter_queued()}
        active = {str(entry.name): entry.stash_rev for entry in self.tasks.iter_active()}
        refs = git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
        done = {ref.split("/")[4]: commit for commit, ref in map(str.split, refs) if ref.count("/") == 4}
        return Seen(waiting, active, done)

    def names(self) -> set[str]:
        """Every experiment that DVC has a record of."""
        seen = self.look()
        return {*seen.waiting, *seen.active, *seen.done, *self.records()}

    def records(self) -> dict[str, Path]:
        """The folder of each experiment that a worker has begun, by name."""
        found = []
        for path in Path(self.tasks.pid_dir).glob("*/*.run"):
            with contextlib.suppress(*UNSETTLED):
                found.append((path.stat().st_mtime, str(ExecutorInfo.load_json(str(path)).name), path.parent))
        return {name: folder for _, name, folder in sorted(found)}  # the latest of a name

    def running(self, rev: str) -> bool:
        """Whether the process of an active experiment lives, or has a worker that will start or collect it."""
        info = self.tasks.proc.get(rev)
        if info and alive(info.pid, "exec-run"):
            self.ended.pop(rev, None)
            return True
        if not any(self.workers()):
            return False
        return not info or time.monotonic() - self.ended.setdefault(rev, time.monotonic()) < self.PATIENCE

    def workers(self) -> Iterator[psutil.Process]:
        """The workers of this repository's queue that live.

        DVC's own note of one, dvc-exp-worker-1.pid, may be of one that was started beside it and has ended since.
        """
        name = f"dvc-exp-{hashlib.sha256(self.tasks.wdir.encode()).hexdigest()[:6]}-"
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "queue-worker" in words and any(word.startswith(name) for word in words):
                yield process

    def stop(self, rev: str) -> None:
        """Tell the stage that runs in an experiment to end (SIGTERM); DVC then keeps the experiment as failed."""
        info = self.tasks.proc.get(rev)
        if info and alive(info.pid, "exec-run"):
            stop_stage(info.pid)

    def give_up(self, name: str, rev: str, waiting: bool) -> None:
        """Take an experiment that waits out of the queue, or have DVC note that one which ran is no more."""
        info = self.tasks.proc.get(rev)
        if info and info.returncode is None and not alive(info.pid, "exec-run"):
            info.returncode = -1  # its number may be another program's by now, which DVC would interrupt
            self.tasks.proc[rev] = info
        with contextlib.suppress(PetalsError):  # it has just gone the other way
            self.dvc("queue", "remove" if waiting else "kill", name)

    def curve(self, rev: str, name: str) -> Curve:
        """The curve `name` of an active experiment so far: value by step."""
        try:
            info = ExecutorInfo.load_json(self.tasks.get_infofile_path(rev))
            return read_curve((Path(info.root_dir) / LIVE / f"{name}.tsv").read_text(encoding="utf-8"))
        except UNSETTLED:
            return {}  # not there yet

    def result(self, commit: str, objective: str, curve: str | None) -> tuple[float, Curve]:
        """The metric FILE:KEY and the curve that an experiment ended with; PetalsError where it has no such metric."""
        file = objective.partition(":")[0]
        try:
            text = git("show", f"{commit}:{file}")
        except PetalsError:
            raise PetalsError(f"the pipeline writes no {file}, or not into git") from None
        score = metric(text, objective)
        try:
            return score, read_curve(git("show", f"{commit}:{CURVES}/{curve}.tsv")) if curve else {}
        except PetalsError:
            return score, {}

    def error(self, name: str) -> str:
        """Why the experiment `name` failed: the line with which its stage ended."""
        try:
            folder = self.records()[name]
            return last_error((folder / f"{folder.name}.out").read_text(encoding="utf-8", errors="replace"))
        except (KeyError, OSError):
            return f"it ended before a stage had begun; dvc queue logs {name} may know more"


def override(knob: str, value: Value) -> str:
    """`knob`=`value` in the grammar of Hydra, which DVC reads."""
    if isinstance(value, str):
        escaped = value.replace("'", r"\'")
        return f"{knob}='{escaped}'"
    return f"{knob}={json.dumps(value)}"


def read_curve(text: str) -> Curve:
    """What DVCLive has written of a curve; a line that is not yet whole is left for the next look."""
    rows = (line.split("\t") for line in text.rpartition("\n")[0].split("\n")[1:])
    return {int(step): float(value) for step, value in rows}


def last_error(text: str) -> str:
    """The one line that says what went wrong, of all that a command printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    failed = [
        match for line in lines if (match := re.search(r"failed to reproduce '(.+?)': .*exited with (-?\d+)", line))
    ]
    if told:
        return told[-1]
    if failed:
        return f"{failed[-1][1]} exited with {failed[-1][2]}"
    if errors := [line for line in lines if line.startswith(("ERROR: ", "fatal: "))]:
        return errors[-1].removeprefix("ERROR: ").removeprefix("fatal: ")
    telling = [line for line in lines if re.search("failed|corrupted|invalid", line)]  # what follows shows where
    plain = [line for line in text.splitlines() if line.strip() and not line[0].isspace()]
    return (telling[:1] or plain[-1:] or lines or ["it gave no reason"])[0]


def alive(pid: int, command: str) -> bool:
    """Whether `pid` is still DVC at `command`, and not another process that was given the number since."""
    try:
        return command in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
