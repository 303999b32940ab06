"""Masked sums over a real network stack: the weights of the run in one process, and a hospital that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flexmoe_core.audit_line import parse_line
from flexmoe_core.checkpoint import read_checkpoint
from server.run_store import RunStore
from server.settings import settings_with
from simulations.runs import simulate
from tests.e2e.figures import note_rounds
from tests.e2e.lab import Lab, facts_of, lab, needs_nginx, program, run, until

pytestmark = [pytest.mark.e2e, needs_nginx]
SITES = ("cleveland", "hungary", "switzerland", "va-long-beach")
MASKS = "privacy.secure_aggregation.threshold=3"
SETTINGS = ("federation.rounds=3", "federation.quorum=3", "method.curriculum.generalize_rounds=1", MASKS)
SEED = 5


def options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A federation that has trained under masks, its processes still running."""
    root = tmp_path_factory.mktemp("masked")
    run([*program("flexmoe-sim"), "prepare", "uci-heart", "--out", str(root / "data")])
    with lab(root, root / "data", SITES) as one:
        one.pin_rosters()
        one.start_all()
        one.server("run", "--name", "masked", "--seed", str(SEED), *options(*SETTINGS))
        yield one


def test_it_trains_to_the_weights_of_the_masked_federation_in_one_process(finished: Lab, tmp_path: Path) -> None:
    assert finished.status("masked")["run"]["state"] == "finished"
    simulated = simulate(finished.study_folder, tmp_path / "run", settings_with(SETTINGS, seed=SEED))
    expected, _ = read_checkpoint(simulated.folder / "checkpoint" / "round-00003")
    found, _ = read_checkpoint(finished.run_folder("masked") / "checkpoint" / "round-00003")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert facts_of(finished.run_folder("masked"))["test"] == facts_of(simulated.folder)["test"]
    rows = finished.history("masked")
    assert all(row["aggregated"] and row["answered"] == list(SITES) for row in rows)
    seconds = [value for row in rows for value in row["training_seconds"].values()]
    note_rounds("four hospitals on one machine, sums masked", [row["seconds"] for row in rows], seconds)


def test_no_answer_of_any_site_holds_more_than_masked_vectors_keys_and_shares(finished: Lab) -> None:
    for hospital in finished.hospitals.values():
        lines = (hospital.state / "audit.jsonl").read_bytes().splitlines()
        facts = [entry.facts for entry in map(parse_line, lines) if entry.event == "answered"]
        sent = [one for one in facts if one["question"] in {"count", "train", "finish"}]
        assert len(sent) == 1 + 3 + 1
        assert {name for one in sent for name in one["reply"]["arrays"]} == {"masked"}


def test_no_secret_of_a_mask_is_left_at_any_site(finished: Lab) -> None:
    for hospital in finished.hospitals.values():
        files = list((hospital.state / RunStore.open(finished.run_folder("masked")).run / "masks").glob("*.json"))
        assert len(files) == 5
        assert not [file for file in files if b'"seed":' in file.read_bytes()]


def test_a_hospital_that_is_killed_in_a_round_costs_it_two_rounds_and_the_others_none(finished: Lab) -> None:
    settings = [setting for setting in SETTINGS if "rounds=3" not in setting]
    finished.submit("killed", "--seed", str(SEED), *options("federation.rounds=6", *settings))
    until("two rounds are done", lambda: finished.round("killed") >= 2, patience_s=400)
    hospital = finished.hospitals["hungary"]
    hospital.running.kill()
    hospital.running.start()
    finished.wait_for_end("killed")
    rows = finished.history("killed")
    assert len(rows) == 6 and all(row["aggregated"] for row in rows)
    absent = [row["round"] for row in rows if "hungary" not in row["answered"]]
    assert absent, "it was killed"
    assert finished.status("killed")["run"]["state"] == "finished"
