from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.cli import main
from client.keys import make_keys
from flexmoe_core.enrollment import Enrollment, Member, Roster, fingerprint
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from tests.flexmoe_core.hospital_keys import enrollment_of


def roster_of(*enrollments: Enrollment) -> Roster:
    now = datetime.now(UTC)
    return Roster(members=tuple(Member(**one.model_dump(exclude={"format"}), enrolled=now) for one in enrollments))


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["flexmoe-client", "roster", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def node(tmp_path: Path) -> Path:
    make_keys(tmp_path / "node", "north")
    return tmp_path / "node"


def test_a_roster_is_pinned_and_shown(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Enrollment.model_validate_json((node / "enrollment.json").read_bytes())
    south = enrollment_of("south")
    sent = tmp_path / "roster.json"
    sent.write_text(roster_of(own, south).model_dump_json())
    code, told, _ = said(monkeypatch, capsys, node, sent)
    assert code == 0
    assert fingerprint(own.identity_key) in told and fingerprint(south.identity_key) in told
    assert PinnedRoster.of(roster_of(own, south)).fingerprint in told
    assert said(monkeypatch, capsys, node) == (0, told, "")
    assert PinnedRoster.read(node / "roster.json").keys.keys() == {"north", "south"}


def test_a_roster_without_this_hospitals_key_is_not_pinned(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = tmp_path / "roster.json"
    for others in ([enrollment_of("south")], [enrollment_of("north"), enrollment_of("south")]):
        sent.write_text(roster_of(*others).model_dump_json())
        code, _, error = said(monkeypatch, capsys, node, sent)
        assert code == 2 and "does not have north with the identity key of this node" in error
    assert not (node / "roster.json").exists()


def test_without_one_the_remedy_is_told(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = said(monkeypatch, capsys, node)
    assert code == 2 and "no roster is pinned" in error and "flexmoe-client roster" in error


def test_the_fingerprint_follows_every_name_and_key_and_nothing_else() -> None:
    north, south = enrollment_of("north"), enrollment_of("south")
    known = PinnedRoster.of(roster_of(north, south))
    assert known.fingerprint == PinnedRoster.of(roster_of(south, north)).fingerprint
    assert known.fingerprint != PinnedRoster.of(roster_of(north, enrollment_of("south"))).fingerprint
    assert known.fingerprint != PinnedRoster.of(roster_of(north)).fingerprint
