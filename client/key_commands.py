"""The command ``flexmoe-client keygen``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.keys import ENROLLMENT, make_keys
from flexmoe_core.enrollment import fingerprint


def keygen(
    folder: Annotated[Path, typer.Argument(metavar="NODE", show_default=False, help="Folder to keep the keys in.")],
    site: Annotated[str, typer.Option(help="Your hospital's name in the federation, as in site.toml.")],
) -> None:
    """Make this hospital's keys in NODE, and the file to send to the coordinator.

    Private keys stay in NODE, readable for you alone. enrollment.json is public: send it, and compare the two
    fingerprints with the coordinator by telephone.
    """
    enrollment = make_keys(folder, site)
    typer.echo(f"Send to the coordinator   {folder / ENROLLMENT}")
    typer.echo(f"Node key                  {fingerprint(enrollment.node_key)}")
    typer.echo(f"Identity key              {fingerprint(enrollment.identity_key)}")
