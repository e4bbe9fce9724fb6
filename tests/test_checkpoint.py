"""Checkpoints: a resumed run is the uninterrupted one, and nothing goes on from another run's state."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from petals import checkpoint
from petals.checkpoint import Checkpoint, discard_finished
from petals.files import STATE
from petals.optim import AveragedWeights, adamw
from petals.seeding import seed_for

STEPS = 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sorted_values(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [state[name] for name in sorted(state)]


class Run:
    """A training run in small: convolution, batch statistics, dropout; chance comes from the step alone."""

    def __init__(self, key: str = "k", seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 5)
        ).to(memory_format=torch.channels_last)
        self.optimizer = adamw(self.net, 0.01, 0.1)
        self.average = AveragedWeights(self.net, 0.9)
        self.checkpoint = Checkpoint(key, self.net, self.optimizer, self.average)

    def train(self, start: int, end: int) -> None:
        for step in range(start, end):
            torch.manual_seed(seed_for("step", step))
            loss = nn.functional.cross_entropy(self.net(torch.randn(6, 3, 4, 4)), torch.randint(5, (6,)))
            self.net.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.average.update(step)

    def bits(self) -> list[bytes]:
        slots = [
            each for weight in self.net.parameters() for each in sorted_values(self.optimizer.state.get(weight, {}))
        ]
        tensors = [*self.net.state_dict().values(), *self.average.average, *slots]
        return [tensor.numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("killed_at", [0, 1, 7, STEPS])
def test_a_resumed_run_ends_in_the_bits_of_the_uninterrupted_one(killed_at: int):
    whole = Run()
    whole.train(0, STEPS)

    first = Run()
    first.train(0, killed_at)
    progress = {"step": killed_at, "loss": 0.1 + 0.2, "history": [{"train": {"loss": 1e-7}}]}
    first.checkpoint.save(progress)
    first.train(killed_at, killed_at + 2)  # lost with the process

    second = Run(seed=5)
    assert second.checkpoint.load() == progress
    second.train(killed_at, STEPS)
    assert second.bits() == whole.bits()
    control = Run(seed=5)
    control.train(0, STEPS)
    assert control.bits() != whole.bits()


def test_saving_changes_nothing_and_the_last_one_counts():
    run, control = Run(), Run()
    for step in range(4):
        run.train(step, step + 1)
        run.checkpoint.save({"step": step + 1})
    control.train(0, 4)
    assert run.bits() == control.bits()
    assert Run().checkpoint.load() == {"step": 4}
    assert [path.name for path in STATE.iterdir()] == ["train-k.safetensors"]


def test_without_a_checkpoint_of_its_own_a_run_starts_over():
    Run("other").checkpoint.save({"step": 1})
    run = Run()
    before = run.bits()
    assert run.checkpoint.load() is None
    assert run.bits() == before


@pytest.mark.parametrize("keep", [0, 4, 100, 1000, -1])
def test_a_checkpoint_cut_short_is_no_checkpoint(keep: int):
    run = Run()
    run.train(0, 3)
    run.checkpoint.save({"step": 3})
    path = run.checkpoint.path
    path.write_bytes(path.read_bytes()[:keep])
    fresh = Run(seed=1)
    before = fresh.bits()
    assert fresh.checkpoint.load() is None
    assert fresh.bits() == before


def test_an_unfinished_run_goes_on_beside_the_lock_of_an_earlier_one():
    Run().checkpoint.save({"step": 3})
    Path("dvc.lock").write_text("md5: 0123")
    assert Run(seed=5).checkpoint.load() == {"step": 3}


def test_one_is_due_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    saved = Run().checkpoint
    now += 45
    assert not saved.due() and saved.due(ahead=0.5)
    now += 1
    assert saved.due()
    saved.save({"step": 1})
    assert not saved.due()
    assert checkpoint.EVERY_SECONDS < 60


def test_those_whose_model_is_written_and_broken_ones_are_discarded_and_others_kept():
    for key, progress in (
        ("half", {"step": 5}),
        ("done", {"step": STEPS, "md5": "abc"}),
        ("unwritten", {"step": STEPS}),  # stopped after its last step, before it wrote its model
        ("broken", {"step": 3}),
    ):
        Run(key).checkpoint.save(progress)
    (STATE / "train-broken.safetensors").write_bytes(b"\x00")
    (STATE / ".train-killed.safetensors.partial").write_bytes(b"\x00")
    (STATE / "notes.txt").write_text("not ours to remove")
    discard_finished()
    assert sorted(path.name for path in STATE.iterdir()) == [
        "notes.txt", "train-half.safetensors", "train-unwritten.safetensors",
    ]  # fmt: skip


def test_the_latest_three_that_can_be_gone_on_from_are_kept():
    for age, (key, step) in enumerate((("done", STEPS), ("c", 1), ("b", 2), ("broken", 3), ("a", 4), ("old", 5))):
        Run(key).checkpoint.save({"step": step} | ({"md5": "abc"} if key == "done" else {}))
        path = STATE / f"train-{key}.safetensors"
        if key == "broken":
            path.write_bytes(b"")
        os.utime(path, (1000 - age, 1000 - age))
    discard_finished()
    assert sorted(path.name for path in STATE.iterdir()) == [f"train-{key}.safetensors" for key in "abc"]


def test_there_may_be_nothing_to_discard():
    discard_finished()


def test_a_full_disk_leaves_the_last_checkpoint(on_small_disk):
    done = on_small_disk(
        "-c",
        """
import torch
from petals.checkpoint import Checkpoint
from petals.optim import AveragedWeights, adamw
net = torch.nn.Linear(200, 80)
run = Checkpoint("k", net, adamw(net, 0.1, 0.1), AveragedWeights(net, 0.9))
run.save({"step": 1})
net(torch.ones(200)).sum().backward()
run.optimizer.step()
try:
    run.save({"step": 2})
except OSError as error:
    print(error.errno, run.load(), [path.name for path in run.path.parent.iterdir()])
""",
    )
    assert done.stdout == "28 {'step': 1} ['train-k.safetensors']\n", done.stderr
