"""What an operator types about the ledger, and what a coordinator's copy of its heads shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.keys import IDENTITY_KEY, make_keys
from client.ledger import Caps, PrivacyLedger
from client.ledger_file import HEAD_FILE, LEDGER_FILE
from client.ledger_start import node_ledger
from client.policy import POLICY_FILE
from flexmoe_core.audit import AUDIT_FILE, AuditLog
from flexmoe_core.audit_verify import verify
from flexmoe_core.messages import HandshakeRequest, Terms, encode
from flexmoe_core.signatures import read_identity_key
from tests.client.conftest import SiteFolder
from tests.client.coordinator import METHOD, RUN
from tests.client.ledgers import DELTA, ROUND, charge_round, place
from tests.client.test_audit_commands import flexmoe_client
from tests.client.test_signing import answered


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node folder whose ledger has begun."""
    folder = tmp_path / "node"
    make_keys(folder, "cleveland")
    (folder / "state").mkdir()
    PrivacyLedger.start(folder / "state", read_identity_key(folder / IDENTITY_KEY), "first", (), {})
    return folder


def ledger_of(node: Path) -> PrivacyLedger:
    return node_ledger(node / "state", node / IDENTITY_KEY, create=False)


def ask(node: Path, site: SiteFolder) -> None:
    """A question by the coordinator, whose answer carries the ledger's head."""
    terms = Terms(run=RUN, seed=0, study=site.study(), method=METHOD, min_cell=1, rounds=4)
    answered(encode(HandshakeRequest(terms=terms)), site, node / "state", identity=str(node / IDENTITY_KEY))


def set_back(node: Path) -> None:
    """Both files of an older copy: by itself nothing is wrong with it."""
    for name in (LEDGER_FILE, HEAD_FILE):
        shutil.copy(node / f"{name}.backup", node / "state" / name)


def back_up(node: Path) -> None:
    for name in (LEDGER_FILE, HEAD_FILE):
        shutil.copy(node / "state" / name, node / f"{name}.backup")


def test_init_wants_to_know_what_was_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = tmp_path / "node"
    make_keys(node, "cleveland")
    assert flexmoe_client(monkeypatch, "privacy", "status", node) == 2
    assert "was never started" in capsys.readouterr().err
    assert flexmoe_client(monkeypatch, "ledger", "init", node, "--reason", "first study") == 2
    assert "nothing says what was spent before" in capsys.readouterr().err
    both = ("--assume-unspent", "--carry-over", "before.toml")
    assert flexmoe_client(monkeypatch, "ledger", "init", node, "--reason", "first study", *both) == 2
    assert flexmoe_client(monkeypatch, "ledger", "init", node, "--reason", " ", "--assume-unspent") == 2
    assert not (node / "state" / LEDGER_FILE).exists()
    capsys.readouterr()
    assert flexmoe_client(monkeypatch, "ledger", "init", node, "--reason", "first study", "--assume-unspent") == 0
    assert "is started with 0 earlier charges" in capsys.readouterr().out
    assert flexmoe_client(monkeypatch, "ledger", "init", node, "--reason", "more", "--assume-unspent") == 2
    assert "a whole privacy ledger already" in capsys.readouterr().err


def test_init_over_a_broken_ledger_carries_over_and_says_what_it_keeps(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    charge_round(ledger_of(node))
    (node / "state" / HEAD_FILE).unlink()
    old = node / "state" / LEDGER_FILE
    assert flexmoe_client(monkeypatch, "ledger", "init", node, "--reason", "head lost", "--carry-over", old) == 0
    out = capsys.readouterr().out
    assert "is started with 1 earlier charges" in out
    assert "kept aside: " in out
    assert ledger_of(node).charges[0].event == ROUND


def test_status_shows_what_was_spent_and_what_is_left(
    node: Path, site: SiteFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_of(node)
    for study in ("heart", "heart", "lung"):
        ledger.charge(ROUND, place(study=study), DELTA, Caps(None, None, DELTA))
    site.write(POLICY_FILE, "[patient_privacy]\nmax_epsilon_lifetime = 8\nmax_epsilon_per_study = 3\ndelta = 1e-4")
    assert flexmoe_client(monkeypatch, "privacy", "status", node, "--data", site.path) == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    heart, total = ledger.epsilon(1e-4, "heart"), ledger.epsilon(1e-4)
    assert ["heart", "2", "0.0001", f"{heart:.3f}", "3", f"{3 - heart:.3f}"] in rows
    assert ["heart", "2", "0.001", f"{ledger.epsilon(DELTA, 'heart'):.3f}", "-", "-"] in rows
    assert ["lung", "1", "0.0001", f"{ledger.epsilon(1e-4, 'lung'):.3f}"] in [row[:4] for row in rows]
    assert ["all together", "3", "0.0001", f"{total:.3f}", "8", f"{8 - total:.3f}"] in rows
    assert flexmoe_client(monkeypatch, "privacy", "status", node, "--delta", "1e-6") == 0
    out = capsys.readouterr().out
    assert f"{ledger.epsilon(1e-6):.3f}" in out
    assert "0.001" not in out


def test_verify_names_every_line_that_is_wrong(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_of(node)
    for number in range(4):
        charge_round(ledger, number)
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "unbroken"
    path = node / "state" / LEDGER_FILE
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"round":1', b'"round":7').replace(b'"round":3', b'"round":9'))
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 2
    assert [line.split(":")[0].rsplit(", ")[-1] for line in capsys.readouterr().err.splitlines()] == [
        "line 3",
        "line 5",
    ]
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 2
    assert "the copy of its head counts 5" in capsys.readouterr().err


def test_verify_of_no_ledger_and_of_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flexmoe_client(monkeypatch, "ledger", "verify", tmp_path) == 2
    assert "Name your node folder" in capsys.readouterr().err
    make_keys(tmp_path / "node", "cleveland")
    assert flexmoe_client(monkeypatch, "ledger", "verify", tmp_path / "node") == 2
    assert "there is no privacy ledger" in capsys.readouterr().err


def test_the_sites_own_record_names_the_heads_that_left(
    node: Path, site: SiteFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up(node)
    charge_round(ledger_of(node))
    ask(node, site)
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 0
    assert "Compared  1 heads" in capsys.readouterr().out
    set_back(node)
    assert ledger_of(node).epsilon(DELTA) == 0.0
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 2
    assert f"{node / 'state' / AUDIT_FILE}, line 1: names line 2 of the privacy ledger" in capsys.readouterr().err


def test_a_node_that_is_set_back_as_a_whole_contradicts_the_coordinator(
    node: Path, site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(node, site)
    shutil.copytree(node, tmp_path / "backup")
    ledger = ledger_of(node)
    charge_round(ledger)
    record = AuditLog(tmp_path / AUDIT_FILE)
    head = {"count": ledger.head.count, "hash": ledger.head.hash}
    record.append("answered", question="handshake", nodes={"cleveland": 7}, answers={"node 7": {"ledger": head}})
    record.append("answered", question="train", answers={"cleveland": {"ledger": head}, "basel": {"head": None}})
    verify_with_record = ("ledger", "verify", node, "--server-record", record.path)
    assert flexmoe_client(monkeypatch, *verify_with_record) == 0
    assert "Compared  3 heads" in capsys.readouterr().out
    shutil.rmtree(node)
    shutil.copytree(tmp_path / "backup", node)
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 0
    assert flexmoe_client(monkeypatch, *verify_with_record) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{record.path}, line {number}" for number in (1, 2)]


def test_a_record_of_a_run_without_this_site_compares_nothing(
    node: Path, site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(node, site)
    record = AuditLog(tmp_path / AUDIT_FILE)
    record.append("answered", question="train", answers={"basel": {"head": None}})
    assert flexmoe_client(monkeypatch, "ledger", "verify", node, "--server-record", record.path) == 2
    assert "holds no head of this site's privacy ledger" in capsys.readouterr().err


def test_heads_of_a_ledger_that_an_operator_replaced_are_looked_for_in_the_file_that_was_kept(
    node: Path, site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge_round(ledger_of(node))
    ask(node, site)
    state = node / "state"
    for reason in ("once", "twice"):
        (state / HEAD_FILE).unlink()
        old = state / LEDGER_FILE
        assert flexmoe_client(monkeypatch, "ledger", "init", node, "--reason", reason, "--carry-over", old) == 0
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 0
    for kept in state.glob(f"{LEDGER_FILE}.broken-*"):
        kept.write_bytes(kept.read_bytes() + b"\n")
    assert flexmoe_client(monkeypatch, "ledger", "verify", node) == 2


def test_an_answer_carries_the_head_and_both_sides_keep_it(node: Path, site: SiteFolder) -> None:
    ask(node, site)
    charge_round(ledger_of(node))
    terms = Terms(run=RUN, seed=0, study=site.study(), method=METHOD, min_cell=1, rounds=4)
    _, beside = answered(encode(HandshakeRequest(terms=terms)), site, node / "state")
    head = ledger_of(node).head
    assert beside.ledger_head == head.head
    assert head.count == 2
    entries = verify(node / "state" / AUDIT_FILE).entries
    assert entries[-1].facts["ledger"] == {"count": 2, "hash": head.hash}


def test_without_a_ledger_no_answer_names_one(site: SiteFolder, tmp_path: Path) -> None:
    terms = Terms(run=RUN, seed=0, study=site.study(), method=METHOD, min_cell=1, rounds=4)
    _, beside = answered(encode(HandshakeRequest(terms=terms)), site, tmp_path / "state")
    assert beside.ledger_head is None
    assert "ledger" not in verify(tmp_path / "state" / AUDIT_FILE).entries[-1].facts
