"""The command ``flexmoe-client check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.check import check_site
from client.coverage_tables import print_coverage
from flexmoe_core.command_line import WRONG_INPUT, tell
from flexmoe_core.errors import Problem


def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    study: Annotated[
        Path | None,
        typer.Option(help="The coordinator's study.toml. By default the one in DIR, or else the one beside DIR."),
    ] = None,
    min_cell: Annotated[
        int,
        typer.Option(min=1, help="Smallest number of training patients of a combination that is announced."),
    ] = 5,
) -> None:
    """Check your files before training, and show which modalities your patients have.

    DIR is your site folder, which holds site.toml and your tables.

    Every problem is listed with its file, line and remedy, never with a patient's value.

    Nothing is written and nothing is sent.

    Exit code 0: you are ready to take part. Exit code 2: there are problems.
    """
    result = check_site(folder, study)
    if result.problems:
        print_problems(result.problems)
        raise typer.Exit(WRONG_INPUT)
    print_coverage(result, min_cell)


def print_problems(problems: tuple[Problem, ...]) -> None:
    """Each problem on one line of stderr, control characters of file names and keys made visible."""
    tell(map(str, problems))
