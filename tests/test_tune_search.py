"""The search and its file, with experiments that end at once: what is proposed, what is kept, what comes of it."""

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from project import environment

from petals.errors import PetalsError
from petals.tune import experiments
from petals.tune import search as searching
from petals.tune.experiments import Experiments, Seen
from petals.tune.results import best, table
from petals.tune.search import Tuner
from petals.tune.space import Search
from petals.tune.study import open_study

SPACE = Search.model_validate(
    {
        "objective": "metrics/evaluate.json:macro_f1",
        "startup": 3,
        "curve": "val/macro_f1",
        "curve_from": 2,
        "space": {
            "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
            "model": {"type": "choice", "values": ["efficientnet_lite0", "tiny_vit_5m"]},
        },
    }
)


class Instant:
    """Stands in for DVC: an experiment has ended when it is first looked at; `score` says with what."""

    def __init__(self, score) -> None:
        self.score, self.values = score, {}

    def names(self) -> set[str]:
        return set()

    def queue(self, name, values) -> None:
        self.values[name] = values

    def start(self, jobs) -> None:
        pass

    def look(self) -> Seen:
        return Seen({}, {}, {name: name for name in self.values})

    def result(self, commit, objective, curve):
        score = self.score(self.values[commit])
        return score, {epoch: score * (epoch + 1) / 4 for epoch in range(4)}


@pytest.fixture
def make(monkeypatch, tmp_path):
    """A function that opens the search in this folder, as after a start of the program."""
    monkeypatch.setattr(searching, "POLL", 0.0)
    monkeypatch.setattr(searching, "Experiments", lambda: Instant(lambda values: 1 - abs(values["lr"] - 0.01)))
    monkeypatch.setattr(searching, "fingerprint", lambda search, values: "same")
    monkeypatch.setattr(searching.params, "check", lambda values, path: None)

    def tuner(name: str = "tune", search: Search = SPACE, **values) -> Tuner:
        study = open_study(tmp_path / f"{name}.journal", "tune", search)
        values = {"lr": 1e-4, "model": "efficientnet_lite0", "seed": 1} | values
        return Tuner(study, search, values, 1, lambda said: None)

    return tuner


def proposed(tuner: Tuner) -> list:
    return [each.user_attrs["settings"] for each in searching.counted(tuner.study)]


def test_a_search_in_parts_makes_the_proposals_of_one_in_a_piece(make):
    whole = make("whole")
    whole.run(12, lambda done: None)
    for trials in (1, 4, 5, 12):
        parts = make("parts")
        parts.run(trials, lambda done: None)
    assert proposed(parts) == proposed(whole) and len(proposed(whole)) == 12
    another = make("another", SPACE.model_copy(update={"sampler_seed": 2}))
    another.run(12, lambda done: None)
    assert proposed(another) != proposed(whole)
    assert proposed(another)[0] == proposed(whole)[0] == {"lr": 1e-4, "model": "efficientnet_lite0"}


def test_a_trial_that_was_lost_is_tried_again_and_changes_nothing_else(make):
    whole, parts = make("whole"), make("parts")
    whole.run(6, lambda done: None)
    parts.run(2, lambda done: None)
    parts.propose()
    parts.lose(parts.running[0])
    parts = make("parts")
    parts.run(6, lambda done: None)
    assert proposed(parts) == proposed(whole)
    assert [each.number for each in searching.counted(parts.study)] == [0, 1, 3, 4, 5, 6]


def test_settings_whose_worker_is_killed_again_and_again_have_failed(make):
    tuner, said = make(), []
    tuner.say = said.append
    tuner.begin()
    for _ in range(searching.LOSSES):
        tuner.propose()
        assert tuner.running[0].settings == {"lr": 1e-4, "model": "efficientnet_lite0"}
        tuner.lose(tuner.running[0])
    assert "its worker is gone; its settings are tried again" in said[1]
    assert said[2].startswith("tune-002: failed: its worker is gone, 3 times (lr 0.0001")
    tuner.propose()
    assert tuner.running[0].settings["lr"] != 1e-4
    assert [each.number for each in searching.counted(tuner.study)] == [2, 3]


def test_workers_that_are_killed_at_other_settings_are_no_mark_against_these(make):
    tuner = make()
    tuner.begin()
    tuner.propose()
    tuner.lose(tuner.running[0])
    tuner.propose()
    tuner.ended(tuner.running[0], tuner.running[0].name)
    for _ in range(searching.LOSSES - 1):
        tuner.propose()
        tuner.lose(tuner.running[0])
    assert [each.state for each in searching.counted(tuner.study)] == [TrialState.COMPLETE]


def test_a_line_that_a_kill_cut_short_is_forgotten(make, tmp_path):
    make().run(2, lambda done: None)
    journal = tmp_path / "tune.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"work')
    again = make()
    again.run(4, lambda done: None)
    assert len(proposed(make())) == 4


@pytest.mark.parametrize("made", [0, 1])
def test_a_proposal_half_made_is_made_anew(make, made):
    whole, parts = make("whole"), make("parts")
    whole.run(made + 1, lambda done: None)
    parts.begin()
    if made:
        parts.run(made, lambda done: None)
    parts.study.sampler = parts.sampler(made)
    trial = parts.study.ask()
    SPACE.space["lr"].suggest(trial, "lr")  # and the process is killed
    parts = make("parts")
    parts.run(made + 1, lambda done: None)
    assert proposed(parts) == proposed(whole)


def test_settings_to_start_from_outside_the_space_are_not_tried(make):
    tuner, said = make(lr=1.0), []
    tuner.say = said.append
    tuner.run(1, lambda done: None)
    assert said[0] == "the settings to start from are outside the space (lr 1.0), so they are not tried"


def test_a_hopeless_trial_that_ended_before_it_could_be_stopped_is_given_up_all_the_same(make):
    scores = iter([0.5, 0.6, 0.7, 0.1, 0.65, 0.9])
    tuner = make()
    tuner.experiments.score = lambda values, known={}: (
        known.setdefault(values["lr"], None) or known.update({values["lr"]: next(scores)}) or known[values["lr"]]
    )
    tuner.run(6, lambda done: None)
    states = [each.state for each in searching.counted(tuner.study)]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED] + [TrialState.COMPLETE] * 2
    assert "dvc exp apply tune-005" in best(tuner.study, SPACE)
    rows = [line.split("|")[1:3] for line in table(tuner.study, SPACE).splitlines()[2:]]
    assert [score.strip() for _, score in rows][:3] == ["0.9000", "0.7000", "0.6500"]
    assert rows[-1][1].strip() == "given up after epoch 2"


def test_a_curve_that_is_not_there_is_told_once(make):
    tuner, said = make(), []
    tuner.say = said.append
    tuner.experiments.result = lambda commit, objective, curve: (0.5, {})
    tuner.run(3, lambda done: None)
    told = "there is no curve val/macro_f1 in plots/train, so no trial is given up before its end"
    assert [each for each in said if "curve" in each] == [told]


def test_a_score_that_is_no_number_is_a_failure_and_three_of_them_end_a_search(make):
    tuner = make()
    tuner.experiments.score = lambda values: float("nan")
    with pytest.raises(PetalsError, match=r"^no trial of 3 came to a score, the last of them: .*macro_f1 is nan$"):
        tuner.run(10, lambda done: None)


def test_failures_that_are_mended_do_not_end_a_search_that_goes_on(make):
    broken = make()
    broken.experiments.score = lambda values: float("inf")
    with pytest.raises(PetalsError, match="no trial of 3 came to a score"):
        broken.run(9, lambda done: None)
    mended = make()
    mended.run(4, lambda done: None)
    assert [each.number for each in searching.complete(mended.study)] == [3]


def test_data_that_no_trial_would_have_are_told_before_the_first(repository):
    (repository / "photos/rose").mkdir(parents=True)
    (repository / "photos/rose/a.jpg").touch()
    look = Experiments()
    with pytest.raises(PetalsError, match=r"^data: photos/rose is neither in git nor in DVC, .*; dvc add photos/rose,"):
        look.check_data("photos/rose")
    (repository / "photos.dvc").touch()
    subprocess.run(["git", "add", "photos.dvc"], check=True)
    look.check_data("photos/rose")


def test_the_lowest_is_best_where_it_is_minimized(make):
    search = SPACE.model_copy(update={"direction": "minimize", "curve": None})
    tuner = make(search=search)
    tuner.experiments.score = lambda values: values["lr"]
    tuner.run(5, lambda done: None)
    lowest = min(proposed(tuner), key=lambda each: each["lr"])["lr"]
    assert f"macro_f1 {lowest:.4f}\n" in best(tuner.study, search)
    first = table(tuner.study, search).splitlines()[2]
    assert first.split("|")[3].strip() == str(lowest)


def test_code_that_is_edited_while_a_search_runs_ends_it(make, monkeypatch):
    tuner = make()
    tuner.run(1, lambda done: None)
    monkeypatch.setattr(searching, "fingerprint", lambda search, values: "edited")
    with pytest.raises(PetalsError, match="the code or the data changed while the search ran"):
        tuner.propose()
    with pytest.raises(PetalsError, match="choose another --name"):
        make().run(2, lambda done: None)


def test_the_table_ends_with_why_trials_failed(make):
    tuner = make()
    scores = {1e-4: 0.5}
    tuner.experiments.score = lambda values: scores.get(values["lr"], float("inf"))
    tuner.run(2, lambda done: None)
    assert table(tuner.study, SPACE).splitlines()[-2:] == ["", "tune-001 failed: metrics/evaluate.json:macro_f1 is inf"]


def test_a_trial_that_was_told_to_stop_is_still_hopeless_after_a_kill(make):
    tuner = make()
    tuner.run(3, lambda done: None)
    tuner.propose()
    tuner.report(tuner.running[0], {0: 0.001, 1: 0.001})
    again = make()
    again.begin()
    assert tuner.running[0].hopeless and again.running[0].hopeless


def test_a_trial_whose_last_score_was_the_last_thing_before_a_kill_is_settled(make):
    whole, parts = make("whole"), make("parts")
    whole.run(3, lambda done: None)
    parts.run(1, lambda done: None)
    parts.propose()
    parts.settle = lambda run: None  # killed just there
    parts.ended(parts.running[0], parts.running[0].name)
    parts = make("parts")
    parts.run(3, lambda done: None)
    assert proposed(parts) == proposed(whole)
    assert [each.value for each in searching.complete(parts.study)] == [
        each.value for each in searching.complete(whole.study)
    ]


def test_the_best_so_far_goes_on_with_its_other_seeds_whatever_its_curve(make):
    search = SPACE.model_copy(update={"seeds": [1, 2], "startup": 1})
    tuner = make(search=search)
    tuner.run(1, lambda done: None)
    tuner.experiments.result = lambda commit, objective, curve: (2.0, {0: 0.0, 1: 0.0, 2: 0.0, 3: 2.0})
    tuner.propose()
    tuner.ended(tuner.running[0], tuner.running[0].name)
    assert tuner.running[0].name == "tune-001-seed2" and not tuner.running[0].hopeless
    again = make(search=search)
    again.begin()
    assert again.running[0].name == "tune-001-seed2" and not again.running[0].hopeless


def test_a_search_that_is_stopped_keeps_the_seeds_that_were_done(make):
    search = SPACE.model_copy(update={"seeds": [1, 2]})
    tuner = make(search=search)
    tuner.begin()
    tuner.propose()
    tuner.requested = signal.SIGTERM
    tuner.ended(tuner.running[0], tuner.running[0].name)
    assert not tuner.running and list(tuner.experiments.values) == ["tune-000-seed1"]
    again = make(search=search)
    again.run(1, lambda done: None)
    assert list(again.experiments.values) == ["tune-000-seed2"]
    assert [each.number for each in searching.complete(again.study)] == [0]


def test_an_experiment_that_was_stopped_runs_again_under_its_name(make):
    tuner = make()
    tuner.experiments.start = lambda jobs: tuner.request(signal.SIGTERM, None)
    tuner.experiments.look = lambda: Seen({}, {}, {})
    with pytest.raises(searching.Stopped):
        tuner.run(1, lambda done: None)
    again = make()
    again.experiments.names = lambda: {"tune-000"}  # DVC has a record of it
    again.run(1, lambda done: None)
    assert list(again.experiments.values) == ["tune-000"]
    assert [each.number for each in searching.complete(again.study)] == [0]


def test_the_best_so_far_is_the_lowest_where_it_is_minimized(make):
    tuner = make(search=SPACE.model_copy(update={"direction": "minimize", "seeds": [1, 2], "startup": 1}))
    tuner.run(1, lambda done: None)
    tuner.propose()
    tuner.experiments.result = lambda commit, objective, curve: (0.1, {0: 5.0, 1: 5.0, 2: 5.0, 3: 0.1})
    tuner.ended(tuner.running[0], tuner.running[0].name)
    assert [run.name for run in tuner.running] == ["tune-001-seed2"]


@pytest.mark.parametrize("found", [Seen({"tune-000": "r"}, {}, {}), Seen({}, {"tune-000": "r"}, {})])
def test_an_experiment_may_slip_by_once_between_two_looks_that_find_it(make, found):
    tuner = make()
    tuner.begin()
    tuner.propose()
    looks = iter([Seen({}, {}, {}), found, Seen({}, {}, {}), Seen({}, {}, {"tune-000": "tune-000"})])
    tuner.experiments.look = lambda: next(looks)
    tuner.experiments.running, tuner.experiments.curve = lambda rev: True, lambda rev, name: {}
    for _ in range(4):
        tuner.watch()
    assert [each.state for each in searching.counted(tuner.study)] == [TrialState.COMPLETE]


def test_a_queue_that_stands_still_gets_its_workers_again(make):
    tuner, started = make(), []
    tuner.begin()
    tuner.propose()
    tuner.experiments.start, tuner.experiments.look = started.append, lambda: Seen({"tune-000": "r"}, {}, {})
    tuner.watch()
    assert started == []
    tuner.started -= searching.REMIND + 1
    tuner.watch()
    tuner.watch()
    assert started == [1]


def test_a_hopeless_trial_that_has_gone_was_given_up_and_did_not_fail(make):
    tuner = make()
    tuner.run(3, lambda done: None)
    tuner.propose()
    tuner.report(tuner.running[0], {0: 0.001, 1: 0.001})
    tuner.experiments.look = lambda: Seen({}, {}, {})
    tuner.experiments.error = lambda name: "exited with 143"
    tuner.watch()
    tuner.watch()
    assert searching.counted(tuner.study)[-1].state == TrialState.PRUNED


def test_an_experiment_may_slip_by_once_with_each_seed(make):
    tuner = make(search=SPACE.model_copy(update={"seeds": [1, 2]}))
    tuner.begin()
    tuner.propose()
    looks = iter([Seen({}, {}, {}), Seen({}, {}, {"tune-000-seed1": "a"}), Seen({}, {}, {})])
    tuner.experiments.look = lambda: next(looks)
    tuner.experiments.result = lambda commit, objective, curve: (0.5, {})
    for _ in range(3):
        tuner.watch()
    assert [run.name for run in tuner.running] == ["tune-000-seed2"]


def test_settings_to_start_from_are_tried_to_the_last_digit(make):
    tuner = make(lr=6.125e-4)
    tuner.run(2, lambda done: None)
    first, second = (each["lr"] for each in proposed(tuner))
    assert first == 6.125e-4 and second == float(f"{second:.3g}")


@pytest.mark.parametrize("line", [b"garbage", b"\xff\xfe", b"[]", b"{}", b"3", b'{"op_code": 99, "worker_id": "x"}'])
def test_a_damaged_study_is_one_line_with_its_name(tmp_path, line):
    path = tmp_path / "study.journal"
    open_study(path, "tune", SPACE)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(PetalsError) as caught:
        open_study(path, "tune", SPACE)
    assert str(caught.value) == f"{path}: damaged, so this search cannot go on; begin another with --name"


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository of git and DVC with one stage, the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    subprocess.run(["git", "init", "-q", "."], check=True)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    Path("dvc.yaml").write_text("stages:\n  train:\n    cmd: 'true'\n    params: [lr]\n    outs: [model]\n")
    Path("params.yaml").write_text("lr: 1\n")
    subprocess.run("git add -A && git commit -qm project", shell=True, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("schema: '2.0'\nstages: [\n", "'./dvc.lock' is invalid."),
        ("schema: '2.0'\nstages:\n  train: 3\n", "'./dvc.lock' validation failed."),
    ],
)
def test_a_broken_lock_file_is_told_at_once(repository, monkeypatch, lock, said):
    """DVC's message has `lock` in it, but waiting for another process mends nothing."""
    Path("dvc.lock").write_text(lock)
    monkeypatch.setattr(experiments.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(PetalsError) as caught:
        Experiments().queue("tune-000", {"lr": 2})
    assert str(caught.value) == f"dvc exp run: {said}"


@pytest.mark.parametrize("text", ["", '{"git_url": "fi'])
def test_a_record_that_dvc_is_just_writing_is_left_for_the_next_look(repository, text):
    found = Experiments()
    record = Path(found.tasks.get_infofile_path("abc"))
    record.parent.mkdir(parents=True)
    record.write_text(text)
    assert found.names() == set()
    assert found.curve("abc", "macro_f1") == {}


def test_a_worker_that_lives_is_seen_whatever_dvc_has_noted(repository):
    found = Experiments()
    Path(found.tasks.wdir).mkdir(parents=True)
    (Path(found.tasks.wdir) / "dvc-exp-worker-1.pid").write_text("1")
    assert not found.running("abc")
    number = hashlib.sha256(found.tasks.wdir.encode()).hexdigest()[:6]
    for name, lives in ((f"dvc-exp-{number}-1@localhost", True), ("dvc-exp-abcdef-1@localhost", False)):
        command = [sys.executable, "-c", "input()", "exp", "queue-worker", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
            assert found.running("abc") is lives
            worker.kill()


def test_a_queue_that_dvc_is_just_writing_is_read_again(repository, monkeypatch):
    found = Experiments()
    found.queue("tune-000", {"lr": 2})
    (message,) = Path(found.tasks.wdir).glob("broker/in/*")
    text, waits = message.read_text(), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            message.write_text(text)

    monkeypatch.setattr(experiments.time, "sleep", sleep)
    message.write_text(text[:40])
    assert list(found.look().waiting) == ["tune-000"]
    assert len(waits) == 3
    message.write_text(text[:40])
    with pytest.raises(PetalsError, match=r"^\.dvc/tmp/exps/celery, where DVC keeps its queue, cannot be read: "):
        found.look()


def test_scores_count_after_as_many_trials_as_startup_says(make, monkeypatch):
    found = []
    for sign in (1, -1):
        monkeypatch.setattr(searching, "Experiments", lambda sign=sign: Instant(lambda values: sign * values["lr"]))
        tuner = make(f"tune{sign}")
        tuner.run(6, lambda done: None)
        found.append(proposed(tuner))
    assert [one == other for one, other in zip(*found, strict=True)] == [True] * 3 + [False] * 3


class Lossy(Instant):
    """One that outlives the search; the workers of `lost` are killed before their experiments end."""

    def __init__(self, *lost: str) -> None:
        super().__init__(lambda values: 1 - abs(values["lr"] - 0.01))
        self.lost, self.queued = {*lost}, []

    def names(self) -> set[str]:
        return {*self.values}

    def queue(self, name, values) -> None:
        super().queue(name, values)
        self.queued.append(name)

    def running(self, rev: str) -> bool:
        return False

    def give_up(self, name: str, rev: str, waiting: bool) -> None:
        self.lost.remove(name)

    def error(self, name: str) -> str:
        return "gone"

    def look(self) -> Seen:
        active = {name: name for name in self.lost & self.values.keys()}
        return Seen({}, active, {name: name for name in self.values if name not in active})


def test_a_search_that_is_killed_before_any_line_of_its_journal_ends_as_one_that_is_not(make, monkeypatch):
    class Killed(BaseException):
        pass

    writes, append = count(), JournalFileBackend.append_logs

    def patched(backend, logs) -> None:
        if next(writes) == fatal:
            raise Killed
        append(backend, logs)

    def run(name: str) -> tuple[list, list]:
        tuner = make(name)
        tuner.run(5, lambda done: None)
        return [(each.state, each.user_attrs["settings"]) for each in searching.counted(tuner.study)], dvc.queued

    monkeypatch.setattr(JournalFileBackend, "append_logs", patched)
    monkeypatch.setattr(searching, "Experiments", lambda: dvc)
    fatal, dvc = -1, Lossy("tune-000", "tune-002")
    whole, _ = run("whole")
    total = next(writes)
    assert total > 50
    for at in range(total):
        fatal, writes, dvc = at, count(), Lossy("tune-000", "tune-002")
        with suppress(Killed):
            run(f"killed-{at}")
        fatal = -1
        trials, queued = run(f"killed-{at}")
        assert trials == whole and len(queued) == len(set(queued)), f"killed before line {at}"


# What is asked of DVC


def test_a_process_number_that_is_another_programs_now_is_sent_no_signal(monkeypatch):
    dvc, told = object.__new__(Experiments), []
    info = SimpleNamespace(pid=os.getpid(), returncode=None)  # as after a restart of the machine
    dvc.tasks = SimpleNamespace(proc={"rev": info})
    dvc.dvc = lambda *arguments: told.append((arguments, info.returncode))
    monkeypatch.setattr(experiments, "stop_stage", lambda pid: pytest.fail("a stranger was told to stop"))
    dvc.stop("rev")
    dvc.give_up("tune-000", "rev", waiting=False)
    assert told == [(("queue", "kill", "tune-000"), -1)], "so DVC takes it for ended, and interrupts nothing"


def test_what_a_killed_search_was_just_queueing_is_not_queued_again(monkeypatch):
    calls = []

    def busy(command, stdout, **options):
        calls.append(command)
        stdout.write("ERROR: '.' is busy, it is being blocked by: dvc exp run --queue")
        return SimpleNamespace(wait=lambda: 1)

    dvc = object.__new__(Experiments)
    dvc.environment, dvc.has = {}, lambda name: name == "tune-003"
    monkeypatch.setattr(experiments.subprocess, "Popen", busy)
    monkeypatch.setattr(experiments.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(experiments, "read_mapping", lambda path: {"lr": 0.1})
    dvc.queue("tune-003", {"lr": 0.1})
    assert len(calls) == 1
    with pytest.raises(PetalsError, match=r"^dvc exp run: "):
        dvc.queue("tune-004", {"lr": 0.1})
