"""The privacy ledger: what it charges, what it refuses, and what it survives."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from client import ledger_file
from client.ledger import Caps, Guarantee, PrivacyLedger
from client.ledger_file import HEAD_FILE, LEDGER_FILE, LOCK_FILE, LedgerFile, is_signed_head, read_head_copy
from flexmoe_core.errors import BudgetExceeded, LedgerError
from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.privacy.events import Gaussian, PrivacyEvent, SampledGaussian, Unprotected
from tests.client.ledgers import DELTA, KEY, NO_CAPS, ROUND, charge_round, new_ledger, place
from tests.flexmoe_core.privacy.test_accounting import independent_epsilon

KILL = """
import os, sys
from pathlib import Path
from client import ledger_file
from client.ledger import PrivacyLedger
from tests.client.ledgers import KEY, charge_round
state, victim = Path(sys.argv[1]), sys.argv[2]
setattr(ledger_file, victim, lambda *_: os._exit(9))
charge_round(PrivacyLedger.open(state, KEY), 2)
"""
CHARGE_MANY = """
import sys
from pathlib import Path
from client.ledger import PrivacyLedger
from tests.client.ledgers import KEY, charge_round
ledger = PrivacyLedger.open(Path(sys.argv[1]), KEY)
for number in range(int(sys.argv[2])):
    charge_round(ledger, number)
"""


def lines(state: Path) -> list[bytes]:
    return (state / LEDGER_FILE).read_bytes().splitlines(keepends=True)


def refused(state: Path, match: str, key: Ed25519PrivateKey = KEY) -> None:
    with pytest.raises(LedgerError, match=match) as caught:
        PrivacyLedger.open(state, key)
    assert "flexmoe-client ledger init" in str(caught.value)


def test_the_total_is_that_of_an_independent_accountant_on_the_recorded_events(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    for number in range(1, 6):
        charge_round(ledger, number)
    ledger.charge(Gaussian(noise_multiplier=4.0), place(6), DELTA, NO_CAPS)
    charge_round(ledger, 1, study="lung")
    recorded: list[PrivacyEvent] = []
    for line in lines(tmp_path)[1:]:
        event = json.loads(line)["facts"]["event"]
        kind = {"sampled-gaussian": SampledGaussian, "gaussian": Gaussian}[event["mechanism"]]
        recorded.append(kind.model_validate(event))
    for again in (ledger, PrivacyLedger.open(tmp_path, KEY)):
        assert again.epsilon(DELTA) == pytest.approx(independent_epsilon(recorded, DELTA, 1e-3), rel=1e-2)
        assert again.epsilon(DELTA, "heart") == pytest.approx(
            independent_epsilon(recorded[:6], DELTA, 1e-3), rel=1e-2
        )
        assert again.epsilon(DELTA, "lung") == pytest.approx(independent_epsilon(recorded[6:], DELTA, 1e-3), rel=1e-2)
        assert again.epsilon(DELTA, "liver") == 0.0


def test_a_line_says_what_was_charged_for(tmp_path: Path) -> None:
    new_ledger(tmp_path).charge(ROUND, place(3, attempt=2), 1e-5, NO_CAPS)
    line = json.loads(lines(tmp_path)[1])
    assert line["number"] == 2
    assert line["event"] == "charged"
    facts = line["facts"]
    assert len(facts.pop("signature")) == 128
    assert facts == {
        "study": "heart",
        "run": "ab" * 16,
        "question": "train",
        "round": 3,
        "attempt": 2,
        "request": place(3, attempt=2).request,
        "event": ROUND.model_dump(),
        "delta": 1e-5,
    }
    for name in (LEDGER_FILE, HEAD_FILE, LOCK_FILE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_request_that_is_charged_again_costs_exactly_one_round_more(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    for _ in range(3):
        charge_round(ledger, 1)
    assert ledger.epsilon(DELTA) == epsilon_of([ROUND.model_copy(update={"steps": 60})], DELTA)


def test_a_second_study_continues_the_total(tmp_path: Path) -> None:
    charge_round(new_ledger(tmp_path), 1)
    later = PrivacyLedger.open(tmp_path, KEY)
    charge_round(later, 1, study="lung")
    assert later.epsilon(DELTA) == epsilon_of([ROUND, ROUND], DELTA)
    assert later.epsilon(DELTA, "heart") == later.epsilon(DELTA, "lung") == epsilon_of([ROUND], DELTA)


def test_the_head_is_signed_and_kept_twice(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    head = ledger.charge(ROUND, place(), DELTA, NO_CAPS)
    assert head == ledger.head == read_head_copy(tmp_path)
    assert head.count == 2
    assert is_signed_head(head, KEY.public_key())
    assert not is_signed_head(head, Ed25519PrivateKey.generate().public_key())


def edit_a_number(state: Path) -> None:
    ledger = state / LEDGER_FILE
    ledger.write_bytes(ledger.read_bytes().replace(b'"noise_multiplier":2.0', b'"noise_multiplier":9.0', 1))


def edit_with_a_fresh_hash(state: Path) -> None:
    """As somebody does it who knows the format, and has no key."""
    *before, last = lines(state)
    entry = ledger_file.parse_line(last.rstrip())
    forged = ledger_file.Entry(entry.number, entry.time, entry.event, {**entry.facts, "delta": 0.5}, entry.previous)
    (state / LEDGER_FILE).write_bytes(b"".join([*before, forged.to_bytes()]))


def cut_last_line(state: Path) -> None:
    (state / LEDGER_FILE).write_bytes(b"".join(lines(state)[:-1]))


def cut_in_the_middle(state: Path) -> None:
    first, _, *rest = lines(state)
    (state / LEDGER_FILE).write_bytes(b"".join([first, *rest]))


def cut_the_last_line_short(state: Path) -> None:
    os.truncate(state / LEDGER_FILE, (state / LEDGER_FILE).stat().st_size - 1)


def empty(state: Path) -> None:
    os.truncate(state / LEDGER_FILE, 0)


def restore_older(state: Path) -> None:
    """The file of a backup, beside today's head."""
    shutil.copy(state / "backup", state / LEDGER_FILE)


def forget_the_head(state: Path) -> None:
    (state / HEAD_FILE).unlink()


def forge_the_head(state: Path) -> None:
    (state / HEAD_FILE).write_text((state / HEAD_FILE).read_text().replace('"count":4', '"count":3'))


def remove_it(state: Path) -> None:
    (state / LEDGER_FILE).unlink()


def remove_both(state: Path) -> None:
    remove_it(state)
    forget_the_head(state)


DAMAGES: dict[Callable[[Path], None], str] = {
    edit_a_number: "was changed: line 2 was changed",
    edit_with_a_fresh_hash: "line 4 is not signed with this site's key",
    cut_last_line: "has 3 lines, and the copy of its head counts 4",
    cut_in_the_middle: "line 2 does not continue the line before it",
    cut_the_last_line_short: "has 3 lines, and the copy of its head counts 4",
    empty: "has no line",
    restore_older: "has 2 lines, and the copy of its head counts 4",
    forget_the_head: "has no copy of its head",
    forge_the_head: "not signed with this site's key",
    remove_it: "is missing",
    remove_both: "was never started",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_ledger_refuses_every_charge(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    ledger = new_ledger(tmp_path)
    charge_round(ledger, 1)
    shutil.copy(tmp_path / LEDGER_FILE, tmp_path / "backup")
    charge_round(ledger, 2)
    charge_round(ledger, 3)
    PrivacyLedger.open(tmp_path, KEY)
    damage(tmp_path)
    refused(tmp_path, DAMAGES[damage])
    if damage not in (edit_a_number, edit_with_a_fresh_hash, cut_in_the_middle):  # seen where a process begins
        with pytest.raises(LedgerError):
            charge_round(ledger, 4)


def test_a_ledger_of_another_key_is_refused(tmp_path: Path) -> None:
    new_ledger(tmp_path)
    refused(tmp_path, "not signed with this site's key", Ed25519PrivateKey.generate())


def killed_charge(state: Path, victim: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILL, state, victim], check=False)
    assert ended.returncode == 9


def test_killed_between_ledger_and_head_the_line_counts(tmp_path: Path) -> None:
    charge_round(new_ledger(tmp_path), 1)
    before = read_head_copy(tmp_path)
    killed_charge(tmp_path, "sync_folder")
    assert read_head_copy(tmp_path) == before
    ledger = PrivacyLedger.open(tmp_path, KEY)
    assert ledger.head.count == 3
    assert ledger.epsilon(DELTA) == epsilon_of([ROUND] * 2, DELTA)
    killed_charge(tmp_path, "sync_folder")
    ledger = PrivacyLedger.open(tmp_path, KEY)
    charge_round(ledger, 2)
    assert PrivacyLedger.open(tmp_path, KEY).epsilon(DELTA) == epsilon_of([ROUND] * 4, DELTA)


def test_two_lines_ahead_of_the_head_nobody_can_have_got_by_a_kill(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    charge_round(ledger, 1)
    older = (tmp_path / HEAD_FILE).read_bytes()
    charge_round(ledger, 2)
    charge_round(ledger, 3)
    (tmp_path / HEAD_FILE).write_bytes(older)
    refused(tmp_path, "is not the one that the copy of its head names")


def test_killed_while_writing_a_line_nothing_was_charged(tmp_path: Path) -> None:
    charge_round(new_ledger(tmp_path), 1)
    whole = (tmp_path / LEDGER_FILE).read_bytes()
    (tmp_path / LEDGER_FILE).write_bytes(whole + b'{"event":"charged","facts":{"att' + b"t" * 2000)
    ledger = PrivacyLedger.open(tmp_path, KEY)
    assert ledger.epsilon(DELTA) == epsilon_of([ROUND], DELTA)
    charge_round(ledger, 2)
    mended = (tmp_path / LEDGER_FILE).read_bytes()
    assert mended.startswith(whole + b'{"event":"charged","facts":{"attempt":1,')
    assert mended.endswith(b"}\n")
    assert PrivacyLedger.open(tmp_path, KEY).head.count == 3


def test_nothing_is_charged_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = new_ledger(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger_file.os, "pwrite", full)
    with pytest.raises(LedgerError, match="No space left on device"):
        charge_round(ledger)
    monkeypatch.undo()
    charge_round(ledger)
    assert PrivacyLedger.open(tmp_path, KEY).epsilon(DELTA) == epsilon_of([ROUND], DELTA)


def test_a_charge_is_on_the_disk_before_its_head_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, order = new_ledger(tmp_path), []
    whole_fsync, whole_write = os.fsync, ledger_file.write_atomic
    monkeypatch.setattr(ledger_file.os, "fsync", lambda handle: (order.append("fsync"), whole_fsync(handle))[1])
    monkeypatch.setattr(ledger_file, "sync_folder", lambda _: order.append("folder"))
    monkeypatch.setattr(ledger_file, "write_atomic", lambda *all: (order.append("head"), whole_write(*all))[1])
    charge_round(ledger)
    assert order[:3] == ["fsync", "folder", "head"]


@pytest.mark.parametrize(
    ("caps", "what"),
    [
        (Caps(lifetime=1.0, study=None, delta=DELTA), "all studies together"),
        (Caps(lifetime=None, study=1.0, delta=DELTA), "the study heart"),
        (Caps(lifetime=100.0, study=1.0, delta=DELTA), "the study heart"),
        (Caps(lifetime=None, study=None, delta=DELTA, run=Guarantee(1.0, DELTA)), "this run"),
    ],
)
def test_a_cap_holds_before_anything_is_written(tmp_path: Path, caps: Caps, what: str) -> None:
    ledger, charged = new_ledger(tmp_path), 0
    with pytest.raises(BudgetExceeded, match=what):
        while charged < 1000:
            ledger.charge(ROUND, place(charged), DELTA, caps)
            charged += 1
            before = lines(tmp_path), read_head_copy(tmp_path)
    assert charged > 1
    assert (lines(tmp_path), read_head_copy(tmp_path)) == before
    assert ledger.epsilon(DELTA) <= 1.0 < epsilon_of([ROUND] * (charged + 1), DELTA)


def test_a_cap_of_one_study_leaves_another_its_own_and_the_lifetime_counts_both(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    one = epsilon_of([ROUND], DELTA)
    ledger.charge(ROUND, place(study="heart"), DELTA, Caps(None, one, DELTA))
    ledger.charge(ROUND, place(study="lung"), DELTA, Caps(None, one, DELTA))
    with pytest.raises(BudgetExceeded, match="the study lung"):
        ledger.charge(ROUND, place(study="lung"), DELTA, Caps(None, one, DELTA))
    with pytest.raises(BudgetExceeded, match="all studies together"):
        ledger.charge(ROUND, place(study="liver"), DELTA, Caps(epsilon_of([ROUND] * 2, DELTA), None, DELTA))


def test_no_cap_allows_an_unprotected_release_and_without_one_it_is_recorded_as_infinite(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    with pytest.raises(BudgetExceeded):
        ledger.charge(Unprotected(), place(), DELTA, Caps(1e300, None, DELTA))
    ledger.charge(Unprotected(), place(), DELTA, NO_CAPS)
    assert PrivacyLedger.open(tmp_path, KEY).epsilon(DELTA) == float("inf")


def test_processes_that_charge_at_once_lose_no_line(tmp_path: Path) -> None:
    new_ledger(tmp_path)
    many = [subprocess.Popen([sys.executable, "-c", CHARGE_MANY, tmp_path, "15"]) for _ in range(2)]
    assert [process.wait() for process in many] == [0, 0]
    ledger = PrivacyLedger.open(tmp_path, KEY)
    assert ledger.head.count == 31
    assert ledger.epsilon(DELTA) == epsilon_of([ROUND] * 30, DELTA)


charges = st.tuples(
    st.sampled_from(["heart", "lung"]),
    st.one_of(
        st.builds(
            SampledGaussian,
            sampling_rate=st.floats(0.001, 1.0),
            noise_multiplier=st.floats(0.5, 30.0),
            steps=st.integers(1, 200),
        ),
        st.builds(Gaussian, noise_multiplier=st.floats(0.5, 30.0)),
    ),
    st.booleans(),
)


@settings(max_examples=8, deadline=None)
@given(st.lists(charges, min_size=1, max_size=5))
def test_no_total_is_ever_lower(
    tmp_path_factory: pytest.TempPathFactory, many: list[tuple[str, PrivacyEvent, bool]]
) -> None:
    state = tmp_path_factory.mktemp("state")
    ledger, before = new_ledger(state), [0.0, 0.0, 0.0]
    for study, event, reopened in many:
        ledger.charge(event, place(study=study), DELTA, NO_CAPS)
        ledger = PrivacyLedger.open(state, KEY) if reopened else ledger
        after = [ledger.epsilon(DELTA, which) for which in (None, "heart", "lung")]
        assert all(later >= earlier * (1 - 1e-6) for earlier, later in zip(before, after, strict=True))
        before = after


@pytest.mark.slow
def test_ten_thousand_lines_are_charged_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_ledger(tmp_path)
    file = LedgerFile(tmp_path, KEY)
    file.read_on()
    facts = {"study": "heart", "event": ROUND.model_dump()}
    with monkeypatch.context() as quick:
        quick.setattr(ledger_file.os, "fsync", lambda _: None)
        quick.setattr(ledger_file, "write_atomic", lambda *_: None)
        for _ in range(9_999):
            file.append("charged", facts)
    file.append("charged", facts)
    ledger = PrivacyLedger.open(tmp_path, KEY)
    started = time.perf_counter()
    charge_round(ledger)
    assert time.perf_counter() - started < 0.1
    started = time.perf_counter()
    assert ledger.epsilon(DELTA) == epsilon_of([ROUND.model_copy(update={"steps": 20 * 10_001})], DELTA)
    assert time.perf_counter() - started < 2
