"""What git knows, by its own command."""

import subprocess
from pathlib import Path

from petals.errors import PetalsError


def git(*arguments: str, cwd: str | Path = ".") -> str:
    """What git prints when it runs in `cwd`; raises PetalsError, one line, where it fails or is not installed."""
    return git_bytes(*arguments, cwd=cwd).decode()


def git_bytes(*arguments: str, cwd: str | Path = ".") -> bytes:
    """The same for what may not be UTF-8."""
    try:
        done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, check=False)
    except FileNotFoundError:
        raise PetalsError("git is not installed or not on PATH") from None
    except ValueError as error:  # a NUL in an argument
        raise PetalsError(f"git {arguments[0]}: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split()).removeprefix("fatal: ")
        raise PetalsError(f"git {arguments[0]}: {said or f'exit code {done.returncode}'}")
    return done.stdout
