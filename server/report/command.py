"""The command ``flexmoe-server report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.report.page import write_report


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]) -> None:
    """Write the HTML page of RUN again, and print its path."""
    typer.echo(write_report(run))
