from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flexmoe_core.errors import InputError, RunFailed
from server.deployment.control import FlowerRun, NoAnswer
from server.deployment.membership import enroll
from server.deployment.runs import SUBMISSION, Deployment, Submission, build_bundle, submission_of
from server.run_store import RunStore
from server.settings import settings_with
from tests.flexmoe_core.hospital_keys import enrollment_of
from tests.server.deployment.coordinators import NOW, FakeSuperLink, make_folder

GOING = FlowerRun(11, "running", "")
COMPLETED = FlowerRun(11, "finished:completed", "")
FAILED = FlowerRun(11, "finished:failed", "no quorum")
STOPPED = FlowerRun(11, "finished:stopped", "")
BUNDLE_HASH = "1e6ed65d77d6364eeaed5a745ba5c4985ae2b700dd85d7cf7f027bdf294a33fc"


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.setattr("server.deployment.runs.LOOK_S", 0.0)
    monkeypatch.setattr("server.deployment.runs.build_bundle", lambda: b"bundle")
    return Deployment(make_folder(tmp_path / "coordinator", "north", "south"))


def superlink_of(monkeypatch: pytest.MonkeyPatch, *states: FlowerRun | Exception | None) -> FakeSuperLink:
    return FakeSuperLink(states=list(states) or [None]).place(monkeypatch, "runs")


def submitted(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    superlink_of(monkeypatch)
    store = deployment.create("first", settings_with(["federation.rounds=3"]))
    deployment.submit(store, resume=False, expected=2)
    return store


def follow(deployment: Deployment, store: RunStore, events: int = 0) -> tuple[list[Mapping[str, Any]], list[str]]:
    rows: list[Mapping[str, Any]] = []
    told: list[str] = []
    deployment.follow(store, rows.append, told.append, events)
    return rows, told


def test_a_quorum_beyond_the_roster_is_refused_before_anything_is_made(deployment: Deployment) -> None:
    with pytest.raises(InputError, match=r"federation\.quorum: is 3, and 2 hospitals are enrolled\. Enroll more"):
        deployment.create("first", settings_with(["federation.quorum=3"]))
    assert list((deployment.folder.path / "runs").iterdir()) == []


def test_without_hospitals_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is 1, and 0 hospitals are enrolled"):
        Deployment(make_folder(tmp_path / "coordinator")).create("first", settings_with([]))


def test_what_is_submitted_names_folder_and_hospitals(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink = superlink_of(monkeypatch)
    store = deployment.create("first", settings_with([]))
    submission = deployment.submit(store, resume=False, expected=2)
    assert superlink.submitted == [{"run-folder": str(store.folder), "resume": False, "expected-sites": 2}]
    assert submission == submission_of(store) == Submission(flower_run="11", bundle=BUNDLE_HASH)
    assert store.roster == deployment.folder.roster


def test_a_resumed_run_gets_the_roster_of_now(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    store = submitted(deployment, monkeypatch)
    enroll(deployment.folder, enrollment_of("west"), NOW)
    superlink = superlink_of(monkeypatch, FAILED)
    deployment.submit(store, resume=True, expected=3)
    assert superlink.submitted[0]["resume"] is True
    assert store.roster == deployment.folder.roster


def test_a_run_that_is_going_on_is_not_submitted_again_and_keeps_its_roster(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = submitted(deployment, monkeypatch)
    roster = store.roster
    enroll(deployment.folder, enrollment_of("west"), NOW)
    superlink = superlink_of(monkeypatch, GOING)
    with pytest.raises(InputError, match=r"is running\. Wait for it, or stop it: flexmoe-server stop .* --run first"):
        deployment.submit(store, resume=True, expected=3)
    assert superlink.submitted == []
    assert store.roster == roster


def test_a_run_that_a_new_superlink_does_not_know_may_be_submitted_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = submitted(deployment, monkeypatch)
    assert len(superlink_of(monkeypatch, None).submitted) == 0
    deployment.submit(store, resume=True, expected=2)


def test_without_a_superlink_nothing_is_kept_of_a_submission(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = deployment.create("first", settings_with([]))
    FakeSuperLink(answers=False).place(monkeypatch, "runs")
    with pytest.raises(NoAnswer):
        deployment.submit(store, resume=False, expected=2)
    assert submission_of(store) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not whole JSON"),
        ("[]", "should be a table"),
        ('{"flower_run": "-1", "bundle": ""}', "flower_run: "),
        ('{"flower_run": "x", "bundle": ""}', "flower_run: "),
        ('{"flower_run": "1", "bundle": "", "more": 1}', "more: is not a known key"),
    ],
)
def test_a_broken_submission_is_an_error_in_words(deployment: Deployment, content: str, words: str) -> None:
    store = deployment.create("first", settings_with([]))
    (store.folder / SUBMISSION).write_text(content)
    with pytest.raises(InputError, match=words):
        deployment.state(store)


def test_the_latest_run_is_the_one_that_was_made_last(deployment: Deployment) -> None:
    with pytest.raises(InputError, match=r"holds no run\. Start one: flexmoe-server run"):
        deployment.open(None)
    for name in ("b", "a"):
        deployment.create(name, settings_with([]))
    assert deployment.open(None).folder.name == "a"
    assert deployment.open("b").folder.name == "b"
    with pytest.raises(InputError, match="holds no run"):
        deployment.open("c")
    with pytest.raises(InputError, match="cannot be the name of a run"):
        deployment.open("../runs/b")


def test_only_a_run_that_is_going_on_is_stopped(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    store = deployment.create("first", settings_with([]))
    assert not deployment.stop(store)
    superlink_of(monkeypatch)
    deployment.submit(store, resume=False, expected=2)
    for state, stopped in ((None, []), (COMPLETED, []), (STOPPED, []), (GOING, [11])):
        superlink = superlink_of(monkeypatch, state)
        assert deployment.stop(store) == bool(stopped)
        assert superlink.stopped == stopped


def test_events_come_before_rounds_and_everything_once(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = submitted(deployment, monkeypatch)

    class Working(FakeSuperLink):
        def run(self, run_id: int) -> FlowerRun | None:
            step = len(store.history()) + 1
            if step == 1:
                store.append_event({"refused_nodes": {"7": "a reason"}})
            if step <= 3:
                store.append_history({"round": step})
                return GOING
            store.save_metrics({})
            return COMPLETED

    Working().place(monkeypatch, "runs")
    # what stood there when following began is not told
    rows, told = follow(deployment, store)
    assert rows == [{"refused_nodes": {"7": "a reason"}}, {"round": 1}, {"round": 2}, {"round": 3}]
    assert told == []


def test_what_happened_before_a_run_was_resumed_is_not_told_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = submitted(deployment, monkeypatch)
    store.append_event({"refused_checkpoint": "old"})
    store.append_history({"round": 1})
    seen = len(store.events())
    store.append_event({"refused_checkpoint": "new"})
    store.save_metrics({})
    superlink_of(monkeypatch, COMPLETED)
    assert follow(deployment, store, seen)[0] == [{"refused_checkpoint": "new"}]


def test_a_superlink_that_vanishes_and_returns_is_waited_for_and_told_once_each_time(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = submitted(deployment, monkeypatch)
    store.save_metrics({})
    superlink_of(monkeypatch, GOING, NoAnswer("gone."), NoAnswer("gone."), GOING, NoAnswer("gone."), COMPLETED)
    assert follow(deployment, store)[1] == ["gone. Waiting for it."] * 2


def test_a_superlink_that_returns_without_the_run_ends_the_wait(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = submitted(deployment, monkeypatch)
    superlink_of(monkeypatch, GOING, NoAnswer("gone."), None)
    with pytest.raises(RunFailed, match=r"no longer knows first\. Continue it: flexmoe-server resume .* --run first"):
        follow(deployment, store)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (FAILED, "first ended as finished:failed: no quorum"),
        (STOPPED, r"first ended as finished:stopped: Flower gives no reason; logs/executor\.log may"),
        (FlowerRun(11, "finished:completed", "the details"), "first ended as finished:completed.*: the details"),
    ],
)
def test_a_run_without_metrics_failed_whatever_flower_calls_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, end: FlowerRun, words: str
) -> None:
    store = submitted(deployment, monkeypatch)
    superlink_of(monkeypatch, GOING, end)
    with pytest.raises(RunFailed, match=words):
        follow(deployment, store)


def test_a_run_that_failed_is_not_saved_by_the_metrics_of_an_earlier_end(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = submitted(deployment, monkeypatch)
    store.save_metrics({})
    superlink_of(monkeypatch, FAILED)
    with pytest.raises(RunFailed):
        follow(deployment, store)


@pytest.mark.slow
def test_the_same_code_is_the_same_bundle() -> None:
    assert build_bundle() == build_bundle()


def test_a_submission_is_readable_json(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    store = submitted(deployment, monkeypatch)
    assert json.loads((store.folder / SUBMISSION).read_text()) == {"flower_run": "11", "bundle": BUNDLE_HASH}
