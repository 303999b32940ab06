"""The commands ``flexmoe-server audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexmoe_core.audit_verify import record_path
from flexmoe_core.audit_verify import verify as verify_record
from flexmoe_core.audit_view import Last, conclude
from flexmoe_core.audit_view import show as show_record
from server.anchors import compare

Record = Annotated[Path, typer.Argument(metavar="RUN", show_default=False)]

audit = typer.Typer(no_args_is_help=True, help="Read and check the record of a run.")


@audit.command()
def verify(
    run: Record,
    site_record: Annotated[
        Path | None,
        typer.Option("--site-record", metavar="FILE", help="Copy of a site's audit.jsonl, made after the run."),
    ] = None,
) -> None:
    """Check that nobody has changed, removed or added a line of the record of RUN.

    RUN is the run's folder, or its audit.jsonl.

    With --site-record also: that FILE is unbroken, fits what the site said of it, and tells of every answer.

    Exit code 0: unbroken. Exit code 2: broken, with every problem on a line of its own.
    """
    verdict = verify_record(record_path(run))
    if site_record is None:
        conclude(verdict)
        return
    comparison = compare(verdict, verify_record(record_path(site_record), is_copy=True))
    conclude(verdict, comparison.found, comparison.problems)


@audit.command()
def show(run: Record, last: Last = None) -> None:
    """Print the record of RUN, newest line last: what was asked, and what came back."""
    show_record(verify_record(record_path(run)), last)
