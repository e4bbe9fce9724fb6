"""Put on PYTHONPATH, this notes each file that a Python process opens or moves into place, its workers' too.

The lines of $WATCH_LOG are: stage, "r" or "w", path.
"""

import os
import sys

if "WATCH_LOG" in os.environ and "DVC_STAGE" in os.environ:
    log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stage = os.environ["DVC_STAGE"]

    def note(kind: str, path: object) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            os.write(log, f"{stage}\t{kind}\t{os.path.abspath(os.fsdecode(path))}\n".encode())

    def hook(event: str, details: tuple) -> None:
        if event == "open":
            path, mode, flags = details
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else "w" in (mode or "")
            note("w" if writes else "r", path)
        elif event == "os.rename":
            note("w", details[1])

    sys.addaudithook(hook)
