from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexmoe_core.errors import InputError, RunFailed
from server.deployment.control import FlowerRun
from server.deployment.folder import CoordinatorFolder
from server.deployment.runs import Deployment
from server.deployment.status import FederationStatus, RunStatus, status_of
from server.settings import settings_with
from tests.server.deployment.coordinators import FakeSuperLink, make_folder, node_of


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return make_folder(tmp_path / "coordinator", "north", "south", "west", "east")


def status(folder: CoordinatorFolder, run: str | None = None) -> FederationStatus:
    return status_of(folder, run, "2027-04-02")


def status_of_run(folder: CoordinatorFolder) -> RunStatus:
    run = status(folder).run
    assert run is not None
    return run


def row(number: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "round": number,
        "stage": "specialize",
        "answered": ["north", "south"],
        "missing": [],
        "failed": {},
        "dropped": {},
        "loss": {"north": 0.5, "south": 0.7},
        "validation": {"pooled": None},
        "seconds": 10.0 * number,
    } | changes


def test_without_a_superlink_that_is_what_it_says(folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSuperLink(answers=False).place(monkeypatch, "status", "runs")
    found = status(folder)
    assert found.superlink == "does not answer; is 'flexmoe-server start' running?"
    assert {site.connection for site in found.sites} == {"unknown"}
    assert found.run is None
    Deployment(folder).create("first", settings_with([]))
    assert status_of_run(folder).state == "not submitted"


def test_hospitals_are_as_the_superlink_sees_them(folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {site: member.node_key for site, member in folder.roster.active.items()}
    known = [
        node_of("north", keys["north"], "online", "2026-03-01T12:00:00+00:00"),
        node_of("south", keys["south"], "offline", "2026-03-01T11:00:00+00:00"),
        node_of("west", keys["west"], "registered"),
    ]
    FakeSuperLink(known=known).place(monkeypatch, "status", "runs")
    found = status(folder)
    assert found.superlink == "running"
    assert [(site.site, site.connection, site.since[:16]) for site in found.sites] == [
        ("north", "online", "2026-03-01T12:00"),
        ("south", "offline", "2026-03-01T11:00"),
        ("west", "never connected", ""),
        ("east", "not registered yet", ""),
    ]


def test_a_run_before_its_first_round(folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSuperLink().place(monkeypatch, "status", "runs")
    Deployment(folder).create("first", settings_with(["federation.quorum=2"]))
    assert status_of_run(folder) == RunStatus(
        name="first",
        state="not submitted",
        round=0,
        rounds=40,
        stage="handshake",
        quality="",
        answered=(),
        quorum=2,
        troubles=(),
        seconds_left=None,
    )


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (FlowerRun(11, "running", ""), "running"),
        (FlowerRun(11, "finished:failed", "why"), "finished:failed"),
        (None, "unknown: the SuperLink does not know it"),
        (RunFailed("gone"), "unknown: the SuperLink does not answer"),
    ],
)
def test_an_unfinished_run_is_what_flower_says_of_it(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch, answer: FlowerRun | Exception | None, state: str
) -> None:
    monkeypatch.setattr("server.deployment.runs.build_bundle", lambda: b"bundle")
    superlink = FakeSuperLink().place(monkeypatch, "status", "runs")
    store = Deployment(folder).create("first", settings_with(["federation.rounds=10"]))
    Deployment(folder).submit(store, resume=False, expected=2)
    superlink.states = [answer]
    for number in range(1, 8):
        store.append_history(row(number, missing=["west"] if number == 7 else []))
    found = status_of_run(folder)
    assert (found.state, found.round, found.rounds, found.stage) == (state, 7, 10, "specialize")
    assert found.answered == ("north", "south")
    assert found.quality == "training loss 0.600"
    assert found.troubles == ("Round 7: west: no answer before the deadline",)
    assert found.seconds_left == 3 * 50.0  # the median of rounds 3 to 7


def test_a_finished_run_is_finished_even_without_a_superlink(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSuperLink(answers=False).place(monkeypatch, "status", "runs")
    store = Deployment(folder).create("first", settings_with(["federation.rounds=1"]))
    store.append_history(row(1, validation={"pooled": {"auroc": 0.75, "accuracy": None}}))
    store.save_metrics({})
    found = status_of_run(folder)
    assert (found.state, found.seconds_left) == ("finished", 0)
    assert found.quality == "training loss 0.600  validation AUROC 0.750"


def test_a_run_that_is_not_there_is_an_error_in_words(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSuperLink().place(monkeypatch, "status", "runs")
    with pytest.raises(InputError, match="holds no run"):
        status(folder, "nowhere")
