"""The commands ``flexmoe-client audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexmoe_core.audit_verify import record_path
from flexmoe_core.audit_verify import verify as verify_record
from flexmoe_core.audit_view import Last, conclude
from flexmoe_core.audit_view import show as show_record

Record = Annotated[Path, typer.Argument(metavar="STATE_OR_FILE", show_default=False)]

audit = typer.Typer(no_args_is_help=True, help="Read and check the record of everything that left this site.")


@audit.command()
def verify(record: Record) -> None:
    """Check that nobody has changed, removed or added a line of the record.

    STATE_OR_FILE is your site's state folder, or its audit.jsonl.

    Exit code 0: unbroken. Exit code 2: broken, with every problem on a line of its own.
    """
    conclude(verify_record(record_path(record)))


@audit.command()
def show(record: Record, last: Last = None) -> None:
    """Print the record, newest line last: what was asked, and what left the site.

    STATE_OR_FILE is your site's state folder, or its audit.jsonl.
    """
    show_record(verify_record(record_path(record)), last)
