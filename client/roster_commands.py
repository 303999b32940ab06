"""The command ``flexmoe-client roster``: which hospitals this one knows by their keys, for masked sums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.node_folder import ROSTER_FILE
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.enrollment import Enrollment, Roster, fingerprint, read_public_file
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.secure_aggregation.roster import PinnedRoster

PUBLIC_MODE = 0o644


def roster(
    node: Annotated[Path, typer.Argument(metavar="NODE", show_default=False)],
    file: Annotated[
        Path | None, typer.Argument(metavar="[ROSTER]", show_default=False, help="The coordinator's roster.json.")
    ] = None,
) -> None:
    """Pin the hospitals whose sums yours may be part of, by their keys; without a ROSTER, show those that are pinned.

    With secure aggregation, this file is what protects you from a coordinator that invents hospitals. Compare the
    roster's fingerprint with the other hospitals by telephone, not with the coordinator: all must have the same.

    It is kept as NODE/roster.json. A running node follows it at once; a run that goes on needs the one it began with.
    """
    pinned = node / ROSTER_FILE
    if file is not None:
        known = read_public_file(Roster, file)
        _require_own_key(node, known, file)
        write_atomic(pinned, (known.model_dump_json(indent=2) + "\n").encode(), PUBLIC_MODE)
    elif not pinned.exists():
        remedy = f"Ask the coordinator for roster.json, then: flexmoe-client roster {node} roster.json"
        raise InputError([Problem(str(pinned), "", "is not there: no roster is pinned", remedy)])
    for site, line in PinnedRoster.read(pinned).keys.items():
        typer.echo(f"{site:<24}  {fingerprint(line)}")
    typer.echo(f"{'roster of all':<24}  {PinnedRoster.read(pinned).fingerprint}")


def _require_own_key(node: Path, known: Roster, file: Path) -> None:
    own = read_public_file(Enrollment, node / "enrollment.json")
    listed = PinnedRoster.of(known).keys
    if listed.get(own.site) != own.identity_key:
        what = f"does not have {own.site} with the identity key of this node"
        remedy = "Enroll first, or ask the coordinator for the roster of now."
        raise InputError([Problem(str(file), "", what, remedy)])
