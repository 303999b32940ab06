"""Our own command lines, parsed by the parsers that the console scripts use, without running anything."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

import click
import typer

from client.cli import app as client_app
from server.cli import app as server_app
from simulations.cli import app as simulations_app

PROGRAMS = {"flexmoe-client": client_app, "flexmoe-server": server_app, "flexmoe-sim": simulations_app}


def complaint(words: Sequence[str]) -> str:
    """What the parser of the named program says against these arguments; empty where it takes them."""
    program, *arguments = words
    try:
        _parse(typer.main.get_command(PROGRAMS[program]), program, arguments)
    except click.ClickException as error:
        return f"{shlex.join(words)}: {error.format_message()}"
    return ""


def _parse(command: click.Command, name: str, arguments: Sequence[str], parent: click.Context | None = None) -> None:
    if not isinstance(command, click.Group):
        command.make_context(name, list(arguments), parent=parent)
        return
    context = click.Context(command, info_name=name, parent=parent)
    found_name, found, rest = command.resolve_command(context, list(arguments))
    assert found is not None and found_name is not None
    _parse(found, found_name, rest, context)


def commands_in(text: str) -> Iterator[list[str]]:
    """Every command of ours in the fenced blocks of a Markdown text, continued lines joined and comments dropped.

    What stands before the program's name (``docker compose run ...``) and after a redirection is not ours.
    """
    for line in fenced_lines(text):
        words = shlex.split(line, comments=True)
        start = next((place for place, word in enumerate(words) if word in PROGRAMS), None)
        if start is not None:
            ours = words[start:]
            yield ours[: ours.index("<")] if "<" in ours else ours


def fenced_lines(text: str) -> Iterator[str]:
    """The lines of the blocks that are marked as shell (```sh)."""
    inside, kept = False, ""
    for line in text.splitlines():
        if line.strip().startswith("```"):
            inside = line.strip() == "```sh"
        elif inside:
            kept += line
            if kept.endswith("\\"):
                kept = kept[:-1]
            else:
                yield kept
                kept = ""
