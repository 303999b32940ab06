"""Patient-level privacy under masks over a real network stack: ledgers, a policy, and a hospital without a ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Lab, facts_of, lab, needs_nginx, program, run
from tests.e2e.test_secure_aggregation import options

pytestmark = [pytest.mark.e2e, needs_nginx]
SITES = ("cleveland", "hungary", "switzerland", "va-long-beach")
STRICT, CARELESS = "cleveland", "va-long-beach"
EPSILON, ROUNDS = 8.0, 3
PRIVATE = (
    "--preset",
    "private",
    *options(
        f"privacy.patient.epsilon={EPSILON}",
        "privacy.secure_aggregation.threshold=3",
        f"federation.rounds={ROUNDS}",
        "federation.quorum=3",
        "federation.deadline_s=120",
    ),
)
POLICY = """
[patient_privacy]
max_epsilon_per_study = 10.0
max_epsilon_lifetime = 20.0
[secure_aggregation]
min_cohort = 3
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A federation that has trained, one hospital with a policy and one without a ledger."""
    root = tmp_path_factory.mktemp("private")
    run([*program("flexmoe-sim"), "prepare", "uci-heart", "--out", str(root / "data")])
    with lab(root, root / "data", SITES) as one:
        one.pin_rosters()
        for name, hospital in one.hospitals.items():
            if name != CARELESS:
                because = ["--reason", "the first study", "--assume-unspent"]
                run([*program("flexmoe-client"), "ledger", "init", str(hospital.node), *because])
        (one.hospitals[STRICT].data / "policy.toml").write_text(POLICY)
        one.start_all()
        one.server("run", "--name", "private", "--seed", "5", *PRIVATE)
        yield one


def test_it_trains_with_everybody_who_has_a_ledger(finished: Lab) -> None:
    assert finished.status("private")["run"]["state"] == "finished"
    rows = finished.history("private")
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    assert all(row["aggregated"] for row in rows)
    assert all(row["answered"] == sorted({*SITES} - {CARELESS}) for row in rows)
    assert "its log has the details" in rows[0]["failed"][CARELESS]
    log = (finished.hospitals[CARELESS].state / "site.log").read_text()
    assert "ledger init" in log


def test_every_ledger_tells_what_was_spent_and_is_whole(finished: Lab) -> None:
    spent = facts_of(finished.run_folder("private"))["privacy"]["patient"]["spent"]
    for name, hospital in finished.hospitals.items():
        if name == CARELESS:
            continue
        status = run([*program("flexmoe-client"), "privacy", "status", str(hospital.node)])
        assert "uci-heart" in status
        assert f"{spent[name]:.2f}"[:3] in status
        record = finished.run_folder("private") / "audit.jsonl"
        run([*program("flexmoe-client"), "ledger", "verify", str(hospital.node), "--server-record", str(record)])


def test_only_vectors_under_masks_and_noised_counts_left_a_hospital(finished: Lab) -> None:
    record = (finished.hospitals["hungary"].state / "audit.jsonl").read_text()
    assert '"masked"' in record
    assert '"weighted"' not in record
    assert '"counts":{"announced":{}' in record.replace(" ", "")


def test_a_hospital_whose_policy_demands_privacy_takes_no_part_without_it(finished: Lab, tmp_path: Path) -> None:
    finished.server(
        "run", "--name", "open", *options("federation.rounds=1", "federation.quorum=3", "federation.deadline_s=120")
    )
    assert finished.history("open")[0]["answered"] == sorted({*SITES} - {STRICT})
    assert "patient_privacy.required" in (finished.hospitals[STRICT].state / "site.log").read_text()
