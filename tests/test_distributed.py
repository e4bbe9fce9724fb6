"""Two processes do what one does: the same batches, the same chances, one that writes, and an end when one dies."""

import csv
import json
import multiprocessing
import shutil
import signal
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from processes import EVALUATE, TRAIN, call, first_line_alone, knobs, prepare_data, said, start, torchrun
from torch import nn

from benchmarks.overhead import end
from petals import distributed
from petals.distributed import Group, patience
from petals.drift import Reference
from petals.errors import PetalsError
from stages import cli, evaluate, prepare, train

RECIPE = {"batch_size": 7, "epochs": 3, "mixup": 0.4, "cutmix": 0.3, "erasing": 0.3}  # 7: processes take 3 and 4
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings():
    """What stages set for their whole process is put back for the tests that follow."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which prepare and augment, and then train and evaluate in one process, have run."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        knobs(**RECIPE)
        prepare_data()
        call(train.main, *TRAIN)
        call(evaluate.main, *EVALUATE)
        (folder / "one").mkdir()
        for each in ("models", "metrics", "plots"):
            shutil.copytree(each, folder / "one" / each)
        shutil.rmtree("models")
    return folder


def curve(folder: Path, name: str) -> list[float]:
    return [float(line.split()[1]) for line in (folder / "plots/train" / name).read_text().splitlines()[1:]]


def answers(folder: Path) -> list[tuple[str, str]]:
    with (folder / "plots/predictions.csv").open(newline="") as file:
        return [(row["id"], row["predicted"]) for row in csv.DictReader(file)]


def scores(folder: Path, name: str) -> dict:
    return json.loads((folder / "metrics" / f"{name}.json").read_text())


@pytest.mark.parametrize("text", ["60s", "", "0", "-1", "nan", "inf"])
def test_a_patience_that_is_no_time_is_one_line(monkeypatch, text):
    monkeypatch.setenv("PETALS_TIMEOUT", text)
    with pytest.raises(PetalsError, match=r"^PETALS_TIMEOUT: should be a number of seconds above 0, but is "):
        patience()


@pytest.mark.slow
def test_two_processes_end_where_one_does(folder, monkeypatch):
    monkeypatch.chdir(folder)
    knobs(**RECIPE)
    run = start(torchrun("--nproc-per-node=2", "-m", "meeting"))
    try:
        output, errors = run.communicate(timeout=300)
    finally:
        end(run)
    assert run.returncode == 0, errors
    assert output.count("epoch 3/3") == 1, "one process speaks"

    heard = json.loads(Path("talk.json").read_text())
    for each in heard:
        assert each["agreed"] == [1.5, 15] and each["same"] == ["", "aaaaa"] and each["mean"] == 0.5
    assert heard[0]["refused"] == "" and "process 1 of 2 has other code, data, settings" in heard[1]["refused"]

    for name in ("train/loss.tsv", "val/nll.tsv"):
        assert curve(folder, name) == pytest.approx(curve(folder / "one", name), abs=1e-5)
    assert len(curve(folder, "train/loss.tsv")) == 3
    assert answers(folder) == answers(folder / "one")
    assert scores(folder, "robustness") == scores(folder / "one", "robustness")
    found, expected = (
        Reference.from_json((each / "models/reference.json").read_text()) for each in (folder, folder / "one")
    )
    assert found.images == expected.images and found.classes == expected.classes
    assert found.mean == pytest.approx(expected.mean, abs=1e-3)


def test_parts_that_follow_one_another_end_there_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    knobs(**RECIPE, accumulate=3)
    shutil.rmtree(".petals", ignore_errors=True)
    call(train.main, *TRAIN)
    assert curve(folder, "train/loss.tsv") == pytest.approx(curve(folder / "one", "train/loss.tsv"), abs=1e-5)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_a_line_and_one_alone_goes_on(folder, monkeypatch):
    monkeypatch.chdir(folder)
    knobs(**RECIPE | {"epochs": 1000})
    run = start(torchrun("--nproc-per-node=2", "-m", "stages.train", *TRAIN))
    try:
        assert run.stdout.readline().startswith("epoch 1/1000")
        second = next(each for each in psutil.Process(run.pid).children() if each.environ()["RANK"] == "1")
        second.kill()
        errors = run.communicate(timeout=60)[1]
        assert run.returncode == 1
    finally:
        end(run)
    (line,) = said(errors)
    assert "another process of this run" in line and "was lost; dvc repro goes on from the last checkpoint" in line
    assert first_line_alone().startswith("going on from the checkpoint at epoch ")


def test_parts_cover_the_batch_and_their_weights_add_up():
    for count, size, accumulate in ((7, 2, 1), (7, 2, 3), (32, 3, 4), (5, 5, 1), (8, 1, 1)):
        parts = [part for rank in range(size) for part in Group(rank, size, CPU).micro_batches(count, accumulate)]
        assert [row for part in parts for row in range(count)[part.rows]] == list(range(count))
        assert sum(part.weight for part in parts) == pytest.approx(1)
        assert [part.last for part in parts] == ([False] * (accumulate - 1) + [True]) * size
    with pytest.raises(PetalsError, match=r"accumulate: 2 processes × 4 are more than the 7 images of a step; lower"):
        Group(0, 2, CPU).micro_batches(7, 4)


def test_one_process_needs_nobody():
    group, norm = Group(0, 1, CPU), nn.BatchNorm2d(2)
    assert group.main and group.agree(0.1, 15) == (0.1, 15) and group.broadcast(b"x") == b"x"
    assert group.data_parallel(norm) is norm and group.sync_batch_norms(norm) is norm
    group.check("anything")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_nobody_leaves_a_barrier_before_all_are_there(tmp_path):
    context = multiprocessing.get_context("fork")  # has imported torch already
    processes = [context.Process(target=meet, args=(rank, tmp_path / "store"), daemon=True) for rank in range(4)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
    assert [each.exitcode for each in processes] == [0] * 4


def meet(rank: int, path: Path) -> None:
    store, left = dist.FileStore(str(path), 4), False
    dist.init_process_group("gloo", store=store, rank=rank, world_size=4)
    if rank == 3:
        with suppress(RuntimeError):  # nobody leaves, for as long as this one stays away
            store.wait(["left"], timedelta(seconds=1))
            left = True
    Group(rank, 4, CPU).barrier()
    store.set("left", "")
    raise SystemExit(left)


@pytest.mark.parametrize(
    ("name", "gpus", "processes", "given"),
    [
        ("auto", 0, 1, "auto"),
        ("cuda:1", 2, 1, "cuda:1"),
        ("auto", 0, 2, "cpu"),
        ("cpu", 2, 2, "cpu"),
        ("auto", 2, 2, "cuda:1"),
        ("cuda", 8, 2, "cuda:1"),
    ],
)
def test_each_process_has_its_own_gpu(monkeypatch, name, gpus, processes, given):
    pretend(monkeypatch, gpus, processes)
    assert distributed.local_device(name) == given


@pytest.mark.parametrize(
    ("name", "gpus", "said"),
    [("auto", 1, "2 processes but 1 GPUs"), ("cuda:1", 2, "cannot share cuda:1"), ("mps", 0, "cannot share mps")],
)
def test_processes_do_not_share_a_gpu(monkeypatch, name, gpus, said):
    pretend(monkeypatch, gpus, 2)
    with pytest.raises(PetalsError, match=f"^device: .*{said}"):
        distributed.local_device(name)


def pretend(monkeypatch, gpus: int, processes: int) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", str(processes - 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def test_batch_norms_of_gpus_see_all_batches(folder):
    net = Group(0, 2, torch.device("cuda")).sync_batch_norms(nn.Sequential(nn.BatchNorm2d(3)))
    assert isinstance(net[0], nn.SyncBatchNorm)


def test_a_stage_of_one_process_refuses_several(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "PROCESSES", 2)
    monkeypatch.setattr(cli, "told_by_another", lambda: False)
    outs = ("data/other", "metrics/prepare.json", "plots/classes.csv", "plots/duplicates.csv")
    with pytest.raises(AssertionError, match="runs in one process; on several machines with --part"):
        call(prepare.main, "data/tiny", *outs)


def test_only_a_lost_process_is_called_one(monkeypatch):
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:4711")
    assert distributed.lost(gone) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.lost(gone).startswith("another process of this run at 10.0.0.2 was lost;")
    assert distributed.lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_what_nccl_could_not_do_is_told():
    """It may be this machine's own set-up, and no other's fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        fault = RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:77, unhandled system error\nLast error:\nno shm\n")
        assert distributed.lost(fault) == (
            "another process of this run was lost (RuntimeError NCCL error in: ProcessGroupNCCL.cpp:77, unhandled "
            "system error; no shm); dvc repro goes on from the last checkpoint"
        )
