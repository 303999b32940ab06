"""The commands ``flexmoe-server run``, ``resume``, ``stop`` and ``status``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.settings import DEFAULT_PRESET, PRESETS
from server.deployment.arguments import Folder
from server.deployment.certificates import expires
from server.deployment.folder import CoordinatorFolder
from server.deployment.runs import Deployment, enrolled
from server.deployment.status import FederationStatus, RunStatus, status_of
from server.progress import round_progress
from server.report.page import write_report
from server.run_store import RunStore
from server.settings import settings_with

RunName = Annotated[str | None, typer.Option("--run", help="Name of the run. Without it: the latest.")]
Follow = Annotated[bool, typer.Option(help="Show its progress until it ends.")]
Expected = Annotated[
    int | None, typer.Option(min=0, help="Hospitals to wait for at the start. Without it: all that are enrolled.")
]


def run(
    folder: Folder,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder. Without it: the time.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Short for --set federation.rounds=N.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same result.")] = None,
    preset: Annotated[str, typer.Option(help=f"Sizes to start from: {', '.join(PRESETS)}.")] = DEFAULT_PRESET,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting. Repeatable.")
    ] = None,
    expected: Expected = None,
    follow: Follow = True,
) -> None:
    """Train a federation of the enrolled hospitals; needs a running 'flexmoe-server start'.

    DIR is the coordinator's folder; the run is kept in DIR/runs.

    A hospital takes part once it allows the bundle, whose hash is shown: its engineer compares it there.

    Exit code 1: the run ended without a result; it can be resumed.
    """
    deployment = Deployment(CoordinatorFolder.open(folder))
    hospitals = _hospitals_to_wait_for(deployment, expected)
    deployment.require_superlink()
    changes = [*(overrides or []), *([f"federation.rounds={rounds}"] if rounds else [])]
    store = deployment.create(name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}", settings_with(changes, preset, seed))
    _submit(deployment, store, resume=False, expected=hospitals, follow=follow)


def resume(folder: Folder, name: RunName = None, expected: Expected = None, follow: Follow = True) -> None:
    """Continue a run from its last checkpoint, on this machine or on another that has its folder.

    DIR is the coordinator's folder, and DIR/runs holds the run's.
    """
    deployment = Deployment(CoordinatorFolder.open(folder))
    hospitals = _hospitals_to_wait_for(deployment, expected)
    _submit(deployment, deployment.open(name), resume=True, expected=hospitals, follow=follow)


def stop(folder: Folder, name: RunName = None) -> None:
    """End a run; it can be resumed.

    DIR is the coordinator's folder.
    """
    deployment = Deployment(CoordinatorFolder.open(folder))
    store = deployment.open(name)
    stopped = deployment.stop(store)
    typer.echo(f"{store.folder.name} {'was stopped' if stopped else 'was not running'}")


def status(
    folder: Folder,
    name: RunName = None,
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Show who is online, and of a run its round, quality, quorum and the time that is left.

    DIR is the coordinator's folder.
    """
    opened = CoordinatorFolder.open(folder)
    found = status_of(opened, name, f"{expires(opened.server.certificate):%Y-%m-%d}")
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        print_status(Console(), found)


def _hospitals_to_wait_for(deployment: Deployment, expected: int | None) -> int:
    members = len(deployment.folder.roster.active)
    if expected is not None and expected > members:
        what = f"is {expected}, and {enrolled(members)}"
        raise InputError([Problem("--expected", "", what, "Enroll more of them, or wait for fewer.")])
    return members if expected is None else expected


def _submit(deployment: Deployment, store: RunStore, resume: bool, expected: int, follow: bool) -> None:
    console = Console()
    told = len(store.events())
    submission = deployment.submit(store, resume, expected)
    console.print(f"Run       {store.folder}", highlight=False, soft_wrap=True)
    console.print(f"Bundle    {submission.bundle}", highlight=False)
    if not follow:
        return
    with round_progress(console, store.settings.federation.rounds) as observe:
        deployment.follow(
            store, observe, lambda sentence: console.print(sentence, style="yellow", markup=False), told
        )
    console.print(f"Results   {store.folder / 'metrics.json'}", highlight=False, soft_wrap=True)
    console.print(f"Report    {write_report(store.folder)}", highlight=False, soft_wrap=True)


def print_status(console: Console, found: FederationStatus) -> None:
    """For a person, in 80 columns."""
    console.print(f"Study        {found.study}, at https://{found.address}", highlight=False)
    console.print(f"SuperLink    {found.superlink}", highlight=False)
    console.print(f"Certificate  until {found.certificate_expires}\n", highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("hospital", "connection", "since"):
        table.add_column(column)
    for site in found.sites:
        table.add_row(site.site, site.connection, site.since[:19].replace("T", " "))
    console.print(table)
    if found.run is not None:
        _print_run(console, found.run)


def _print_run(console: Console, run: RunStatus) -> None:
    left = (
        "" if run.seconds_left is None or run.state == "finished" else f", about {_duration(run.seconds_left)} left"
    )
    console.print(f"\nRun          {run.name}: {run.state}", highlight=False)
    console.print(f"Round        {run.round} of {run.rounds}, {run.stage}{left}", highlight=False)
    if run.round:
        console.print(f"Last round   {len(run.answered)} answered, {run.quorum} needed", highlight=False)
    console.print(f"Quality      {run.quality or 'not known yet'}", highlight=False)
    for trouble in run.troubles:
        console.print(trouble, style="yellow", markup=False, highlight=False)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(max(round(seconds / 60), 1), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
