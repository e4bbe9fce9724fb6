"""Commands whose faults are one line and exit code 1."""

import errno
import io
import sys

import click

from petals.errors import PetalsError


class Command(click.Command):
    """A command that says in one line what was wrong with its input, or what the system refused: a full disk, say."""

    def invoke(self, context: click.Context) -> object:
        show_all_names()
        try:
            return super().invoke(context)
        except PetalsError as error:
            raise click.ClickException(str(error)) from None
        except BrokenPipeError:  # who reads has gone away, as `head` does: click ends quietly
            raise
        except OSError as error:
            raise click.ClickException(refusal(error)) from None
        except MemoryError:
            raise click.ClickException("out of memory; close other programs, or try on a larger machine") from None


def show_all_names() -> None:
    """Let a console that cannot show a character show its number."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def refusal(error: OSError, again: str = "try again") -> str:
    """What the system refused, in one line; where the disk is full, to make room and then do what `again` says."""
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return where + (f"the disk is full; make room, then {again}" if full else str(error.strerror or error))
