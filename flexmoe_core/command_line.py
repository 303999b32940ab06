"""How every command line ends: in words and an exit code, never in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from flexmoe_core.errors import CheckpointError, FlexMoeError, InputError

FAILED, WRONG_INPUT = 1, 2


def run_command_line(program: str, command: Callable[[], object]) -> None:
    """Run ``command``; an error that is meant for the user is told on stderr.

    Exit code 2: something that was given is wrong, a folder or file of a run included. Exit code 1: all of it was
    right, and the run failed.
    """
    try:
        command()
    except FlexMoeError as error:
        tell(f"{program}: {line}" for line in str(error).splitlines())
        raise SystemExit(WRONG_INPUT if isinstance(error, InputError | CheckpointError) else FAILED) from None


def tell(lines: Iterable[str]) -> None:
    """Print to stderr, control characters of file names and keys made visible."""
    for line in lines:
        print("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line), file=sys.stderr)
