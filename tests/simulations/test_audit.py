"""The records of real sites and their coordinator in a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flexmoe_core.audit_verify import record_path, verify
from server.anchors import compare
from simulations.runs import simulate, site_state
from tests.simulations.federations import SITES, tiny_settings, tiny_study


class Killed(BaseException):
    """Nothing may catch it."""


def test_the_records_of_a_run_that_was_stopped_and_resumed_hold_and_fit(tmp_path: Path) -> None:
    study, run = tiny_study(tmp_path / "sites"), tmp_path / "run"

    def stop(row: Mapping[str, object]) -> None:
        if row.get("round") == 2:
            raise Killed  # before the checkpoint of the round: it will be asked again

    with pytest.raises(Killed):
        simulate(study, run, tiny_settings("federation.rounds=3"), observe=stop)
    simulate(study, run, None)
    coordinator = verify(record_path(run))
    assert coordinator.unbroken
    assert coordinator.notes == ()
    for name in SITES:
        site = verify(record_path(site_state(run, name)))
        assert site.unbroken
        comparison = compare(coordinator, site)
        assert comparison.problems == ()
        assert "7 heads and 7 answers" in comparison.found[0]
        answered = [entry.facts for entry in site.entries if entry.event == "answered"]
        assert [(facts["question"], facts["round"], facts["repeated"]) for facts in answered] == [
            ("handshake", None, False),
            ("train", 1, False),
            ("train", 2, False),
            ("handshake", None, False),
            ("train", 2, True),
            ("train", 3, False),
            ("finish", 3, False),
        ]
