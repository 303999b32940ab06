"""Coordinators' folders, hospitals on their roster, and a SuperLink that never was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.deployment.control import FlowerRun, NoAnswer, Node, NodeStatus, flower_key
from server.deployment.folder import CoordinatorFolder
from server.deployment.membership import enroll
from server.deployment.settings import CoordinatorSettings
from tests.flexmoe_core.hospital_keys import enrollment_of
from tests.server.scripted import STUDY

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def settings_of(names: tuple[str, ...] = ("fl.example.org",), **outside: object) -> CoordinatorSettings:
    inside = {name: outside.pop(name) for name in ("inside",) if name in outside}
    return CoordinatorSettings.model_validate({"outside": {"names": names, **outside}, **inside})


def make_folder(path: Path, *sites: str, **outside: object) -> CoordinatorFolder:
    """A coordinator's folder with hospitals enrolled."""
    folder = CoordinatorFolder.create(path, settings_of(**outside), STUDY, NOW)  # type: ignore[arg-type]
    for site in sites:
        enroll(folder, enrollment_of(site), NOW)
    return folder


@dataclass
class FakeSuperLink:
    """Answers in place of Flower's Control API.

    ``states`` are the answers to one question after another for a run, the last of them for ever: None where it is
    not known, an error to raise.
    """

    states: list[FlowerRun | Exception | None] = field(default_factory=lambda: [None])
    known: list[Node] = field(default_factory=list)
    answers: bool = True
    submitted: list[Mapping[str, Any]] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    refused_sites: Mapping[str, Exception] = field(default_factory=dict)

    def place(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> FakeSuperLink:
        """Let these modules of server.deployment reach it."""
        for module in modules:
            monkeypatch.setattr(f"server.deployment.{module}.control", self._control)
        return self

    @contextmanager
    def _control(self, port: int, authority: bytes) -> Iterator[FakeSuperLink]:
        if not self.answers:
            raise NoAnswer(f"the SuperLink at 127.0.0.1:{port} does not answer.")
        yield self

    def nodes(self) -> list[Node]:
        return list(self.known)

    def register(self, site: str, node_key: str) -> None:
        if site in self.refused_sites:
            raise self.refused_sites[site]
        self.known.append(node_of(site, node_key, number=len(self.known) + 1))

    def unregister(self, node: Node) -> None:
        self.known.remove(node)

    def run(self, run_id: int) -> FlowerRun | None:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return state

    def start_run(self, bundle: bytes, config: Mapping[str, Any]) -> int:
        self.submitted.append(config)
        return 10 + len(self.submitted)

    def stop_run(self, run_id: int) -> bool:
        self.stopped.append(run_id)
        return True


def node_of(site: str, node_key: str, status: NodeStatus = "registered", since: str = "", number: int = 1) -> Node:
    return Node(number, site, status, since, flower_key(node_key))
