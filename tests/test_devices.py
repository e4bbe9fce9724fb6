"""Where and how exactly torch computes."""

import pytest
import torch

from petals.devices import autocast, set_up
from petals.errors import PetalsError


@pytest.fixture(autouse=True)
def torch_as_it_was():
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_is_made_to_repeat_itself(threads: int):
    assert set_up("cpu", threads) == torch.device("cpu")
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark


def test_auto_takes_a_gpu_where_there_is_one():
    assert set_up("auto", 1).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "cuda", "mps"])
def test_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if device == "cuda:99" else 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PetalsError, match=f"^device: this machine has no {device}; set device: auto or cpu$"):
        set_up(device, 1)


def test_each_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [set_up(name, 1) for name in ("cuda", "cuda:0", "cuda:1")] == [
        *map(torch.device, ("cuda", "cuda:0", "cuda:1"))
    ]
    with pytest.raises(PetalsError):
        set_up("cuda:2", 1)


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("auto", torch.float32)]
)
def test_precision_of_a_forward_pass_on_the_processor(precision: str, expected: torch.dtype):
    layer = torch.nn.Linear(4, 4)
    with autocast(torch.device("cpu"), precision):
        assert layer(torch.ones(1, 4)).dtype == expected
    assert layer(torch.ones(1, 4)).dtype == torch.float32


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_is_bf16_on_a_gpu_that_has_it(has_bf16: bool, monkeypatch: pytest.MonkeyPatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: asked.update(kind=kind, enabled=enabled))
    autocast(torch.device("cuda"), "auto")
    assert asked == {"kind": "cuda", "enabled": has_bf16}
