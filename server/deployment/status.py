"""How the federation is doing: hospitals, the latest run, its quality, and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from flexmoe_core.errors import RunFailed
from flexmoe_core.validation import FrozenModel
from server.deployment.control import NoAnswer, Node, control, flower_key
from server.deployment.folder import CoordinatorFolder
from server.deployment.invitation import study_of
from server.deployment.runs import Deployment, submission_of
from server.progress import quality, troubles
from server.run_store import RunStore

RECENT = 5
"""Rounds from which the time that is left is estimated."""


class SiteStatus(FrozenModel):
    """A hospital on the roster: ``online``, ``offline``, ``never connected``, or ``unknown`` without a SuperLink."""

    site: str
    connection: str
    since: str


class RunStatus(FrozenModel):
    """A run: Flower's word for its state, rounds done and planned, and what its last round was like.

    ``answered`` sites took part in the last round, ``quorum`` must; ``seconds_left`` None where nothing tells.
    """

    name: str
    state: str
    round: int
    rounds: int
    stage: str
    quality: str
    answered: tuple[str, ...]
    quorum: int
    troubles: tuple[str, ...]
    seconds_left: float | None


class FederationStatus(FrozenModel):
    """Everything that ``flexmoe-server status`` shows."""

    study: str
    address: str
    superlink: str
    certificate_expires: str
    sites: tuple[SiteStatus, ...]
    run: RunStatus | None


def status_of(folder: CoordinatorFolder, run: str | None, expires: str) -> FederationStatus:
    """The federation's status now; a SuperLink that does not answer is part of it."""
    nodes, superlink = _nodes(folder)
    deployment = Deployment(folder)
    has_run = run is not None or any((folder.path / "runs").glob("*/run.json"))
    return FederationStatus(
        study=study_of(folder).name,
        address=folder.settings.address,
        superlink=superlink,
        certificate_expires=expires,
        sites=_sites(folder, nodes),
        run=_run(deployment, deployment.open(run)) if has_run else None,
    )


def _nodes(folder: CoordinatorFolder) -> tuple[list[Node] | None, str]:
    try:
        with control(folder.settings.inside.port, folder.authority_certificate) as flower:
            return flower.nodes(), "running"
    except NoAnswer:
        return None, "does not answer; is 'flexmoe-server start' running?"
    except RunFailed as error:
        return None, str(error)


def _sites(folder: CoordinatorFolder, nodes: Sequence[Node] | None) -> tuple[SiteStatus, ...]:
    known = {node.public_key: node for node in nodes or ()}
    found = []
    for site, member in folder.roster.active.items():
        node = known.get(flower_key(member.node_key))
        connection = "unknown" if nodes is None else "not registered yet"
        if node is not None:
            connection = "never connected" if node.status == "registered" else str(node.status)
        found.append(SiteStatus(site=site, connection=connection, since=node.since if node else ""))
    return tuple(found)


def _run(deployment: Deployment, store: RunStore) -> RunStatus:
    history, federation = store.history(), store.settings.federation
    last: dict[str, Any] = history[-1] if history else {}
    done = int(last.get("round", 0))
    return RunStatus(
        name=store.folder.name,
        state=_state(deployment, store),
        round=done,
        rounds=federation.rounds,
        stage=str(last.get("stage", "handshake")),
        quality=quality(last) if last else "",
        answered=tuple(last.get("answered", ())),
        quorum=federation.quorum,
        troubles=tuple(troubles(last)) if last else (),
        seconds_left=_seconds_left([row["seconds"] for row in history], federation.rounds - done),
    )


def _state(deployment: Deployment, store: RunStore) -> str:
    if (store.folder / "metrics.json").is_file():
        return "finished"
    if submission_of(store) is None:
        return "not submitted"
    try:
        run = deployment.state(store)
    except RunFailed:
        return "unknown: the SuperLink does not answer"
    return "unknown: the SuperLink does not know it" if run is None else run.status


def _seconds_left(seconds: Sequence[float], rounds: int) -> float | None:
    """Rounds that are left, at the pace of the last few."""
    return rounds * median(seconds[-RECENT:]) if seconds else None
