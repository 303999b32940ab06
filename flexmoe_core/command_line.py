"""How every command line ends: in words and an exit code, never in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module

import click
import typer
from typer.core import TyperGroup

from flexmoe_core.errors import CheckpointError, FlexMoeError, InputError, LedgerError

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
        raise SystemExit(
            WRONG_INPUT if isinstance(error, InputError | CheckpointError | LedgerError) else FAILED
        ) from None


def tell(lines: Iterable[str]) -> None:
    """Print to stderr, control characters of file names and keys made visible."""
    for line in lines:
        print("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line), file=sys.stderr)


def lazy_group(places: Mapping[str, str]) -> type[TyperGroup]:
    """A group of commands that are imported when they are called: a container asks for its health twice a minute, and
    must not load PyTorch each time.

    ``places`` gives each name its ``module:attribute``, a function or a Typer of more commands.
    """

    class LazyGroup(TyperGroup):
        """Knows its commands by name."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(places)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return _command(cmd_name, places[cmd_name]) if cmd_name in places else None

    return LazyGroup


def _command(name: str, place: str) -> click.Command:
    module, attribute = place.split(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        group = typer.Typer(add_completion=False)
        group.command(name)(found)
        found = group
    command = typer.main.get_command(found)
    command.name = name
    return command
