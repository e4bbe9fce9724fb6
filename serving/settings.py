"""What can be set, with its default."""

from dataclasses import dataclass
from pathlib import Path

from petals.parallel import cores

MOST_THREADS = 256


@dataclass(frozen=True)
class Settings:
    """Settings of the service; `python -m serving --help` says what each means."""

    model: Path = Path("models/model.onnx")
    name: str = "flowers"
    version: str | None = None
    revision: str | None = None
    threads: int = min(cores(), MOST_THREADS)
    max_bytes: int = 16_000_000
    max_pixels: int = 25_000_000
    max_files: int = 16
    upload_seconds: float = 20.0
    answer_seconds: float = 10.0
    queue: int = 128
    batch: int = 8
    wait_ms: float = 3.0
    window: int = 500
    drain_seconds: int = 8
