"""How a stage that DVC runs is told to end."""

from pathlib import Path

import psutil

SHELLS = {"sh", "dash", "bash", "zsh", "fish"}


def stop_stage(pid: int) -> bool:
    """Send SIGTERM to what the process `pid` of DVC runs, and say whether there was anything.

    Its shell is spared: were it gone first, DVC would take the stage for ended while it still works.
    """
    told = False
    try:
        stages = psutil.Process(pid).children()
        while stages:
            process = stages.pop()
            if Path(process.cmdline()[0]).name in SHELLS and process.children():
                stages += process.children()
            else:
                process.terminate()
                told = True
    except (psutil.Error, IndexError):
        pass  # it has just ended
    return told
