"""Where and how exactly torch computes."""

import os

import torch

from petals.errors import PetalsError


def set_up(device: str, threads: int) -> torch.device:
    """Make torch deterministic with `threads` threads, and give the device that `device` names.

    Raises PetalsError for a device that this machine has not.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # guards against bugs, at the cost of speed
    torch.backends.cudnn.benchmark = False
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = device.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= there:
        raise PetalsError(f"device: this machine has no {device}; set device: auto or cpu")
    return torch.device(device)


def describe(device: torch.device) -> str:
    """What kind of processor a device is, as far as it decides the last bits of a result."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in fp32 or bf16; auto is bf16 on a GPU that has it."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
