"""Where and how exactly torch computes."""

import ctypes
import os
import platform
import shutil

import torch
from torch import nn

from petals.errors import PetalsError
from petals.files import STATE, remove

ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1  # of mallopt(3)
COMPILED = STATE / "compiled"


def keep_freed_memory(largest: int = 2**30) -> None:
    """Have glibc keep freed blocks of up to `largest` bytes, and not give each back to the system; else do nothing.

    A training step frees and asks for the same hundreds of megabytes again, and with a system call and thousands of
    page faults each time it took 1.3 times as long. All threads take from one heap, or each would keep its own. No
    result depends on it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(ARENA_MAX, 1)
        libc.mallopt(MMAP_THRESHOLD, largest)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def set_up(device: str, threads: int) -> torch.device:
    """Make torch deterministic with `threads` threads, and give the device that `device` names.

    Raises PetalsError for a device that this machine does not have.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms, without the import of a compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # guards against bugs, at the cost of speed
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 is asked for, and bf16 where speed is
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = device.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= there:
        raise PetalsError(f"device: this machine has no {device}; set device: auto or cpu")
    if kind == "cuda" and number:
        torch.cuda.set_device(int(number))  # whose generator is seeded where none is named
    return torch.device(device)


def room_for_data(device: torch.device) -> int:
    """The bytes of a GPU's memory that the images of a split may take: half of what is free; else 0."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0


def reseed(seed: int, device: torch.device) -> None:
    """As torch.manual_seed, for the processor and `device` alone.

    torch.manual_seed also records a stack trace for each GPU backend that may be initialised later: 1 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last, which is faster; but on MPS, where torch 2.13's batch norms have wrong gradients with it."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last  # its issue 175189


def describe(device: torch.device) -> str:
    """What kind of processor a device is, as far as it decides the last bits of a result."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def choose_precision(device: torch.device, attention: bool) -> tuple[str, str]:
    """What `precision: auto` is on a device, bf16 or fp32, and why.

    On a processor bf16 wins where there are tiles to multiply it (AMX) and the network is made of `attention`. With
    AVX-512's instructions for it alone it lost, and with AMX convolutions did: depthwise ones do not gain by tiles.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has it"
        return "fp32", "this GPU has no bf16"
    if device.type != "cpu":
        return "fp32", "bf16 was not tried here"
    if not torch.cpu._is_amx_tile_supported():
        return "fp32", "bf16 is slower on a processor without AMX"
    if not attention:
        return "fp32", "convolutions are slower in bf16 on a processor"
    return "bf16", "this processor has AMX"


def compile_kernels(net: nn.Module, parts: int) -> None:
    """Have torch.compile make kernels for `net`, at its first step of each size; other draws of dropout come of it.

    Those for a processor are made anew in each run: of one that was killed they may be cut short, and torch takes such.

    Raises PetalsError where a batch is taken in several `parts`, whose draws could not be those of the whole, or where
    the machine has no compiler.
    """
    if parts > 1:
        raise PetalsError(f"compile: takes whole batches, not {parts} parts; set accumulate: 1 and launch: python -m")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise PetalsError("compile: this machine has no C++ compiler; install g++, or set compile: false")
    torch.use_deterministic_algorithms(True)  # the compiler too
    if next(net.parameters()).device.type == "cpu":
        remove(COMPILED)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(COMPILED.resolve())
    net.compile(dynamic=False)  # for all sizes at once it does not end: they make the padding a long formula


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in fp32 or bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
