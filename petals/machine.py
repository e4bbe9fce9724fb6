"""What decides the last bits of floating-point numbers here; `python -m petals.machine --record` keeps it for git."""

import hashlib
import json
import platform
from pathlib import Path
from typing import NamedTuple

import click
import torch

from petals.commands import Command
from petals.errors import PetalsError
from petals.fingerprint import LIBRARIES, version
from petals.params import read_mapping
from petals.tables import write_json

RECORD = "machine.json"
LOCK = "dvc.lock"
EXPORT = ("onnx", "onnxscript", "onnxruntime")
INSTALLED = (*LIBRARIES, "kornia_rs", "simplejpeg", "pillow", "safetensors", *EXPORT)
FLAGS = (  # that the kernels of PyTorch and ONNX Runtime choose by
    *("fma", "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve"),
)


class Record(NamedTuple):
    """What machine.json holds: the MD5 of a dvc.lock, and the description of the machine that made it."""

    dvc_lock_md5: str
    fingerprint: dict[str, str | int]


def description(root: str | Path = ".") -> dict[str, str | int]:
    """Processor, threads (of params.yaml in `root`), system and libraries; runs that agree in all give one result."""
    cpu = cpu_info()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "flags": " ".join(sorted(set(FLAGS) & set((cpu.get("flags") or cpu.get("Features") or "").split()))),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "threads": read_mapping(Path(root) / "params.yaml").get("threads", "not set"),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "python": platform.python_version(),
        **{name: version(name) for name in INSTALLED},
    }


def cpu_info() -> dict[str, str]:
    """The first processor of Linux's /proc/cpuinfo; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def record(root: str | Path = ".") -> Path:
    """Write `root`/machine.json for this machine and the dvc.lock beside it."""
    path = Path(root) / RECORD
    write_json(path, Record(lock_hash(root), description(root))._asdict())
    return path


def lock_hash(root: str | Path) -> str:
    try:
        return hashlib.md5((Path(root) / LOCK).read_bytes(), usedforsecurity=False).hexdigest()
    except FileNotFoundError:
        raise PetalsError(f"{LOCK}: not found; run dvc repro first") from None


def read_record(root: str | Path = ".") -> Record | None:
    """What `root`/machine.json says; None where it is missing or damaged."""
    try:
        kept = json.loads((Path(root) / RECORD).read_text(encoding="utf-8"))
        return Record(kept["dvc_lock_md5"], dict(kept["fingerprint"]))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def compare(root: str | Path = ".") -> list[str]:
    """Say in sentences where this machine is not the one of `root`/machine.json; empty where it is.

    A record that belongs to another dvc.lock is said too, for then it proves nothing.
    """
    kept, now = read_record(root), description(root)
    if kept is None:
        return [f"{RECORD} is missing or damaged: on which machine {LOCK} was made is not known; make record writes it"]
    then = kept.fingerprint
    said = [
        f"{name} differs: recorded {then.get(name, 'none')}, here {now.get(name, 'none')}"
        for name in now | then
        if then.get(name) != now.get(name)
    ]
    if kept.dvc_lock_md5 != lock_hash(root):
        said.append(f"{RECORD} was recorded for another {LOCK}; make record after each dvc repro that changes it")
    return said


@click.command(help=__doc__, cls=Command)
@click.option("--record", "write", is_flag=True, help=f"Write it to {RECORD}, for the current {LOCK}.")
def main(write: bool) -> None:
    for name, value in description().items():
        click.echo(f"  {name:<34}{value}")
    if write:
        click.echo(f"written to {record()}")


if __name__ == "__main__":
    main(prog_name="python -m petals.machine")
