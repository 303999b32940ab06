"""The commands of flexmoe-client that run a hospital's node: start, allow, status, health.

What needs PyTorch or Flower is imported where it is used: a container asks for its health twice a minute.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from client.allowed_bundles import allow as add_to_list
from client.allowed_bundles import listed, parse_hash, remove
from client.node_folder import NodeFolder
from client.node_status import NodeStatus, as_json, ill_health, is_connected, latest_run, read_status, running_pid
from flexmoe_core.command_line import FAILED, tell
from flexmoe_core.errors import InputError, Problem

NodeArgument = Annotated[Path, typer.Argument(metavar="NODE", show_default=False)]
Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="a free one")]


def start(
    node: NodeArgument,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Your site folder, which holds site.toml.")],
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1.")] = "auto",
    study: Annotated[
        Path | None,
        typer.Option(help="The coordinator's study.toml. By default the one in DIR, or else the one beside DIR."),
    ] = None,
    runtime_port: Port = None,
    health_port: Port = None,
) -> None:
    """Connect to the coordinator and take part, until you stop it with Ctrl-C or SIGTERM.

    NODE is your node folder, with your keys and the coordinator's welcome.json.

    Your files are checked first, as 'flexmoe-client check' does. Whatever fails later is tried again, without end;
    what is wrong and what to do is said here and in NODE/logs/node.log.

    Only code that you have allowed runs here: see 'flexmoe-client allow'.
    """
    from client.node import StartOptions, start_node  # noqa: PLC0415

    options = StartOptions(data, device, study, runtime_port, health_port)
    raise typer.Exit(start_node(NodeFolder(node.resolve()), options))


def allow(
    node: NodeArgument,
    hashes: Annotated[list[str] | None, typer.Argument(metavar="[HASH]...", show_default=False)] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the bundles that are allowed.")] = False,
    remove_hash: Annotated[str | None, typer.Option("--remove", metavar="HASH", help="Allow it no more.")] = None,
) -> None:
    """Allow the code that a coordinator sends, by its SHA-256: nothing else of it ever runs at your site.

    Without a HASH, the bundle that this installed version makes is allowed: the coordinator's is the same if it runs
    the same version.

    The list is NODE/allowed_bundles.txt. A running node follows it at once.
    """
    folder = _existing(node)
    if remove_hash is not None:
        digest = parse_hash(remove_hash)
        remove(folder, digest)
        typer.echo(f"{digest} is no longer allowed")
    elif hashes:
        for digest in [parse_hash(text) for text in hashes]:
            _allow(folder, digest, time.strftime("allowed on %Y-%m-%d"))
    elif not show:
        from client.own_bundle import own_bundle  # noqa: PLC0415

        digest, version = own_bundle()
        _allow(folder, digest, f"flexmoe-federated {version}, allowed on {time.strftime('%Y-%m-%d')}")
        typer.echo(f"It is the bundle of flexmoe-federated {version}, as installed here.")
    if show:
        for digest, comment in listed(folder).items():
            typer.echo(f"{digest}  {comment}".rstrip())


def _allow(folder: Path, digest: str, comment: str) -> None:
    added = add_to_list(folder, digest, comment)
    typer.echo(f"{digest} {'is allowed now' if added else 'was already allowed'}")


def status(
    node: NodeArgument,
    as_json_text: Annotated[bool, typer.Option("--json", help="Print everything, for other programs.")] = False,
) -> None:
    """Show whether your node is connected, what it did last, and what is wrong if it is not.

    Exit code 0: connected. Exit code 1: not connected.
    """
    folder = NodeFolder(_existing(node))
    if as_json_text:
        typer.echo(json.dumps(as_json(folder, tuple(listed(folder.path))), indent=1))
    else:
        for name, words in status_lines(folder):
            typer.echo(f"{name:<20}{words}")
    if not is_connected(folder):
        raise typer.Exit(FAILED)


def status_lines(node: NodeFolder) -> list[tuple[str, str]]:
    """What `status` shows, line by line."""
    known, pid = read_status(node), running_pid(node)
    lines = [("running", f"yes, process {pid}" if pid is not None else "no")]
    if known is not None:
        lines += _connection_lines(known, is_connected(node), pid is not None)
    latest = latest_run(node.state)
    if latest is not None:
        name, trained = latest
        lines.append(("run", f"{name}, {'no round trained yet' if trained is None else f'round {trained} trained'}"))
    allowed = listed(node.path)
    lines.append(("allowed bundles", str(len(allowed)) if allowed else "none: see 'flexmoe-client allow'"))
    lines += [("", f"{digest[:12]}...  {comment}") for digest, comment in allowed.items()]
    return lines


def _connection_lines(known: NodeStatus, connected: bool, running: bool) -> list[tuple[str, str]]:
    facts, now = known.facts, time.time()
    lines = [
        ("site", f"{known.site}, study {known.study}"),
        ("coordinator", known.address),
        ("connected", "yes" if connected else "no"),
    ]
    if facts.last_contact is not None:
        lines.append(("last heartbeat", _ago(now - facts.last_contact)))
    if facts.trouble and running:
        lines.append(("trouble", facts.trouble))
    if facts.received is not None:
        round_words = f", round {facts.round}" if facts.round else ""
        lines.append(("last message", f"{facts.message}{round_words}, received {_ago(now - facts.received)}"))
    if facts.answered is not None:
        lines.append(("last answer", f"sent {_ago(now - facts.answered)}"))
    for one in known.services:
        if one.reason:
            lines.append((f"{one.name} again", f"{one.restarts} times, the last because {one.reason}"))
        if one.next_start is not None and running:
            lines.append((f"{one.name} starts", f"in {max(0.0, one.next_start - now):.0f} s"))
    return lines


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes ago"
    return f"{seconds / 3600:.0f} hours ago"


def health(node: NodeArgument) -> None:
    """Say whether the node works, for a container's health check. Exit code 0: it does. Exit code 1: it does not."""
    reason = ill_health(NodeFolder(_existing(node)))
    if reason:
        tell([f"flexmoe-client: {reason}"])
        raise typer.Exit(FAILED)


def _existing(node: Path) -> Path:
    if not node.is_dir():
        raise InputError([Problem(str(node), "", "is not a folder", "Name the node folder, with your keys.")])
    return node.resolve()
