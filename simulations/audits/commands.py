"""The commands ``flexmoe-sim audit ...``."""

from __future__ import annotations

import typer

from simulations.audits.canary_command import canary
from simulations.audits.membership_command import membership
from simulations.audits.presence_command import presence

audit = typer.Typer(
    no_args_is_help=True,
    help="Attack what leaves the hospitals, and measure what it gives away.",
)
audit.command("membership")(membership)
audit.command("presence")(presence)
audit.command("canary")(canary)
