"""How a ledger begins, and that nothing that was spent is forgotten by it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from client.keys import IDENTITY_KEY, make_keys
from client.ledger import Charge, PrivacyLedger
from client.ledger_file import HEAD_FILE, LEDGER_FILE
from client.ledger_start import KEY_FILE, begin, earlier_charges, node_ledger
from flexmoe_core.errors import InputError, LedgerError
from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.privacy.events import Gaussian, Unprotected
from tests.client.ledgers import DELTA, KEY, ROUND, charge_round, new_ledger

DECLARED = """
[[charge]]
study = "heart"
delta = 1e-5
event = { mechanism = "sampled-gaussian", sampling_rate = 0.1, noise_multiplier = 2.0, steps = 20 }
[[charge]]
study = "lung"
event = { mechanism = "gaussian", noise_multiplier = 5.0 }
"""


def first_line(state: Path) -> dict[str, Any]:
    return json.loads((state / LEDGER_FILE).read_bytes().splitlines()[0])["facts"]


def test_a_deployed_node_never_begins_a_ledger_by_itself(tmp_path: Path) -> None:
    make_keys(tmp_path / "node", "cleveland")
    identity, state = tmp_path / "node" / IDENTITY_KEY, tmp_path / "state"
    for _ in range(2):
        with pytest.raises(LedgerError, match="was never started"):
            node_ledger(state, identity, create=False)
        state.mkdir(exist_ok=True)
    with pytest.raises(LedgerError, match="no identity key"):
        node_ledger(state, None, create=False)
    assert list(state.iterdir()) in ([], [state / "privacy_ledger.lock"])


def test_a_simulated_node_begins_once_with_a_key_of_its_own(tmp_path: Path) -> None:
    state = tmp_path / "state"
    charge_round(node_ledger(state, None, create=True))
    assert stat.S_IMODE((state / KEY_FILE).stat().st_mode) == 0o600
    assert node_ledger(state, None, create=True).epsilon(DELTA) == epsilon_of([ROUND], DELTA)
    assert node_ledger(state, None, create=False).head.count == 2
    for name in (LEDGER_FILE, HEAD_FILE):
        (state / name).rename(state / "away")
        with pytest.raises(LedgerError):
            node_ledger(state, None, create=True)
        (state / "away").rename(state / name)


def test_the_first_line_says_who_began_it_why_and_on_what_assumption(tmp_path: Path) -> None:
    begin(tmp_path / "state", KEY, "the heart study", None)
    facts = first_line(tmp_path / "state")
    assert facts["reason"] == "the heart study"
    assert facts["before"] == facts["replaced"] == []
    assert facts["before_is"] == "assumed to be nothing"
    assert facts["key"].startswith("ssh-ed25519 ")


def test_a_whole_ledger_is_not_started_anew(tmp_path: Path) -> None:
    charge_round(new_ledger(tmp_path))
    with pytest.raises(InputError, match="whole privacy ledger already"):
        begin(tmp_path, KEY, "to have more budget", None)
    with pytest.raises(LedgerError, match="is there already"):
        PrivacyLedger.start(tmp_path, KEY, "again", (), {})
    assert PrivacyLedger.open(tmp_path, KEY).head.count == 2


@pytest.mark.parametrize("lost", [(LEDGER_FILE,), (HEAD_FILE,)])
def test_what_is_left_of_a_broken_ledger_is_kept_and_named(tmp_path: Path, lost: tuple[str, ...]) -> None:
    charge_round(new_ledger(tmp_path))
    left = {LEDGER_FILE, HEAD_FILE} - set(lost)
    content = {(tmp_path / name).read_bytes() for name in left}
    for name in lost:
        (tmp_path / name).unlink()
    begin(tmp_path, KEY, "a disk failed", [Charge("heart", ROUND)])
    (replaced,) = first_line(tmp_path)["replaced"]
    assert {(tmp_path / one["file"]).read_bytes() for one in replaced["files"]} == content
    assert all(".broken-2" in one["file"] for one in replaced["files"])
    assert LEDGER_FILE in replaced["problem"]
    assert first_line(tmp_path)["before_is"] == "carried over"
    assert PrivacyLedger.open(tmp_path, KEY).epsilon(DELTA) == epsilon_of([ROUND], DELTA)


def test_what_was_spent_is_carried_over_from_a_ledger_and_counts_with_what_follows(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    PrivacyLedger.start(old, KEY, "first", [Charge("lung", Gaussian(noise_multiplier=5.0))], {})
    charge_round(PrivacyLedger.open(old, KEY))
    begin(new, KEY, "new keys", earlier_charges(old / LEDGER_FILE))
    ledger = PrivacyLedger.open(new, KEY)
    charge_round(ledger)
    assert ledger.epsilon(DELTA) == epsilon_of([ROUND, ROUND, Gaussian(noise_multiplier=5.0)], DELTA)
    assert ledger.epsilon(DELTA, "lung") == epsilon_of([Gaussian(noise_multiplier=5.0)], DELTA)


def test_what_was_spent_is_declared_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "before.toml").write_text(DECLARED)
    found = earlier_charges(tmp_path / "before.toml")
    assert found == [Charge("heart", ROUND, 1e-5), Charge("lung", Gaussian(noise_multiplier=5.0))]


def test_what_nobody_can_bound_is_declared_as_unprotected(tmp_path: Path) -> None:
    (tmp_path / "before.toml").write_text('[[charge]]\nstudy = "old"\nevent = { mechanism = "unprotected" }')
    assert earlier_charges(tmp_path / "before.toml") == [Charge("old", Unprotected())]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.toml", "", "charge: is missing"),
        ("a.toml", "charge = []", "at least 1"),
        ("a.toml", '[[charge]]\nstudy = "x"\nevent = { mechanism = "gausian" }', "should be one of these"),
        ("a.toml", '[[charge]]\nstudy = "x"\nepsilon = 3', "is not a known key"),
        ("a.jsonl", "nonsense\n", "line 1: is not a whole line"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused(tmp_path: Path, name: str, text: str, what: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=what):
        earlier_charges(tmp_path / name)


def test_a_damaged_ledger_is_not_carried_over_in_part(tmp_path: Path) -> None:
    charge_round(new_ledger(tmp_path))
    ledger = tmp_path / LEDGER_FILE
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":20', b'"steps":10'))
    with pytest.raises(InputError, match="line 2"):
        earlier_charges(ledger)
    with pytest.raises(InputError, match="cannot be read"):
        earlier_charges(tmp_path / "nowhere.jsonl")


def test_a_folder_that_cannot_be_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot hold a ledger"):
        begin(tmp_path / "file" / "state", KEY, "first", None)
