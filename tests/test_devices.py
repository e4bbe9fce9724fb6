"""Where and how exactly torch computes."""

import copy
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from petals.devices import autocast, choose_precision, compile_kernels, room_for_data, set_up
from petals.errors import PetalsError
from petals.files import write_text
from petals.models import MODELS


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


@pytest.mark.parametrize(("there", "taken"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(there: bool, taken: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    assert set_up("auto", 1).type == taken


@pytest.mark.parametrize("device", ["cuda:99", "cuda", "mps"])
def test_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if device == "cuda:99" else 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PetalsError, match=f"^device: this machine has no {device}; set device: auto or cpu$"):
        set_up(device, 1)


def test_each_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [set_up(name, 1) for name in ("cuda", "cuda:0", "cuda:1")] == [
        *map(torch.device, ("cuda", "cuda:0", "cuda:1"))
    ]
    assert current == [0, 1], "the one that is named is seeded, and not the first"
    with pytest.raises(PetalsError):
        set_up("cuda:2", 1)


def test_images_may_take_half_of_what_a_gpu_has_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 16 * 2**30))
    assert room_for_data(torch.device("cuda:1")) == 4 * 2**30
    assert room_for_data(torch.device("cpu")) == 0


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu().flatten(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch itself
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
def test_a_compiled_network_learns_the_same_and_keeps_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # to be put back
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", list)  # each would be tried out at length
    cut_short = tmp_path / ".petals" / "compiled" / "kernel.so"
    write_text(cut_short, "")
    torch.manual_seed(1)
    eager = Small()
    eager.norm.eval()  # as where its statistics are kept
    compiled = copy.deepcopy(eager)
    compile_kernels(compiled, 1)
    assert torch._inductor.config.deterministic, "the kernels that it makes repeat themselves too"
    for size in (8, 10, 12):
        images = torch.rand(2, 3, size, size)
        for net in (eager, compiled):
            net(images).square().sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3, "one for each size, and none for any size"
    assert list(cut_short.parent.rglob("*.so")) and not cut_short.exists()
    assert list(compiled.state_dict()) == list(eager.state_dict())
    for mine, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_parts_of_a_batch_are_not_compiled():
    with pytest.raises(PetalsError, match=r"^compile: takes whole batches, not 4 parts; set accumulate: 1 and launch"):
        compile_kernels(torch.nn.Linear(1, 1), 4)


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PetalsError, match=r"^compile: this machine has no C\+\+ compiler; install g"):
        compile_kernels(torch.nn.Linear(1, 1), 1)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_of_a_forward_pass_on_the_processor(precision: str, expected: torch.dtype):
    layer = torch.nn.Linear(4, 4)
    with autocast(torch.device("cpu"), precision):
        assert layer(torch.ones(1, 4)).dtype == expected
    assert layer(torch.ones(1, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("amx", "model", "expected", "why"),
    [
        (True, "vit_ti_16", "bf16", "has AMX"),
        (True, "vit_ti_conv", "bf16", "has AMX"),
        (True, "tiny_vit_5m", "bf16", "has AMX"),
        (True, "mobilevit_xs", "fp32", "convolutions"),
        (True, "efficientnet_lite0", "fp32", "convolutions"),
        (False, "vit_ti_16", "fp32", "without AMX"),
    ],
)
def test_auto_on_a_processor_is_bf16_for_matrices_where_it_has_tiles(
    amx: bool, model: str, expected: str, why: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    chosen, reason = choose_precision(torch.device("cpu"), MODELS[model].attention)
    assert chosen == expected and why in reason


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_is_bf16_on_a_gpu_that_has_it(has_bf16: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    chosen, reason = choose_precision(torch.device("cuda"), attention=False)
    assert chosen == ("bf16" if has_bf16 else "fp32") and "this GPU has" in reason


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    program = """
import resource, numpy as np
from petals.devices import keep_freed_memory
def faults():
    np.ones(2**23)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
keep_freed_memory()
print(given_back, faults())
"""
    said = subprocess.check_output([sys.executable, "-c", program], cwd=REPOSITORY, text=True)
    given_back, kept = map(int, said.split())
    assert kept < given_back / 10
