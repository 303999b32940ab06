"""Four hospitals over a real network stack: TLS, node keys, nginx, process isolation, signatures, allow-lists."""

from __future__ import annotations

import base64
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flexmoe_core.checkpoint import read_checkpoint
from server.run_store import RunStore
from server.settings import settings_with
from simulations.runs import simulate
from tests.e2e.figures import note_rounds
from tests.e2e.lab import Lab, facts_of, lab, needs_nginx, processes_with, program, run

pytestmark = [pytest.mark.e2e, needs_nginx]
SITES = ("cleveland", "hungary", "switzerland", "va-long-beach")
SETTINGS = ("federation.rounds=3", "federation.quorum=4", "method.curriculum.generalize_rounds=1")
SEED = 5
RUNS = ("first", "alone")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A federation that has trained, its processes still running."""
    root = tmp_path_factory.mktemp("e2e")
    run([*program("flexmoe-sim"), "prepare", "uci-heart", "--out", str(root / "data")])
    with lab(root, root / "data", SITES) as one:
        one.start_all()
        options = [word for setting in SETTINGS for word in ("--set", setting)]
        one.server("run", "--name", "first", "--seed", str(SEED), *options)
        yield one


def test_it_trains_to_the_weights_of_the_federation_in_one_process(finished: Lab, tmp_path: Path) -> None:
    assert finished.status("first")["run"]["state"] == "finished"
    simulated = simulate(finished.study_folder, tmp_path / "run", settings_with(SETTINGS, seed=SEED))
    expected, _ = read_checkpoint(simulated.folder / "checkpoint" / "round-00003")
    found, _ = read_checkpoint(finished.run_folder("first") / "checkpoint" / "round-00003")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert facts_of(finished.run_folder("first"))["test"] == facts_of(simulated.folder)["test"]


def bundle_of(finished: Lab, site: str) -> Path:
    return finished.hospitals[site].state / RunStore.open(finished.run_folder("first")).run / "bundle"


@pytest.mark.parametrize("site", SITES)
def test_every_hospital_predicts_offline_what_the_coordinator_reports(
    finished: Lab, site: str, tmp_path: Path
) -> None:
    hospital, output = finished.hospitals[site], tmp_path / "predictions.csv"
    options = ["--input", str(hospital.data), "--split", "test", "--output", str(output)]
    run([*program("flexmoe-client"), "predict", str(bundle_of(finished, site)), *options])
    patients = pd.read_csv(hospital.data / "patients.csv").set_index("patient")
    predicted = pd.read_csv(output).set_index("patient")
    labels = patients.loc[predicted.index, "disease"].astype(str)
    accuracy = float((predicted["predicted_class"].astype(str) == labels).mean())
    reported = facts_of(finished.run_folder("first"))["test"]["sites"][site]
    assert len(predicted) == reported["n"]
    assert accuracy == pytest.approx(reported["accuracy"], abs=1e-12)


def test_without_a_process_that_stands_by_the_bits_are_the_same_and_a_round_takes_longer(finished: Lab) -> None:
    for hospital in finished.hospitals.values():
        (hospital.node / "run" / "standby.sock").unlink()
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    finished.server("run", "--name", "alone", "--seed", str(SEED), *options)
    first, alone = (read_checkpoint(finished.run_folder(run) / "checkpoint" / "round-00003")[0] for run in RUNS)
    assert all(np.array_equal(value, alone[name]) for name, value in first.items())
    seconds = {}
    for run_name, what in zip(RUNS, ("a process stands by", "a new process for each message"), strict=True):
        rows = finished.history(run_name)
        own = [value for row in rows for value in row["training_seconds"].values()]
        seconds[run_name] = [row["seconds"] for row in rows]
        note_rounds(f"four hospitals on one machine, {what}", seconds[run_name], own)
    assert min(seconds["alone"]) > min(seconds["first"])


def test_no_secret_is_on_a_command_line_or_in_a_log(finished: Lab) -> None:
    keys = [file for file in finished.root.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]
    needles = {line for file in keys for line in file.read_bytes().splitlines() if len(line) > 40}
    for file in finished.root.rglob("superexec.secret"):
        secret = file.read_bytes()
        needles |= {secret, secret.hex().encode(), base64.b64encode(secret)}
    commands = b"\n".join(
        (Path(f"/proc/{pid}") / "cmdline").read_bytes() for pid in processes_with("", str(finished.root))
    )
    assert b"flower-superlink" in commands
    logs = [file for file in finished.root.rglob("*.log*") if file.is_file()]
    assert len(logs) > 10
    texts = [commands, *(file.read_bytes() for file in logs)]
    assert not [needle for needle in needles for text in texts if needle in text]


def test_every_secret_is_for_its_owner_alone(finished: Lab) -> None:
    secret = re.compile(rb"PRIVATE KEY")
    files = [file for file in finished.root.rglob("*") if file.is_file()]
    found = [file for file in files if file.name == "superexec.secret" or secret.search(file.read_bytes())]
    assert len(found) >= 2 + 1 + 4 * 3
    for file in found:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_both_records_are_unbroken_and_agree(finished: Lab) -> None:
    run_folder = str(finished.run_folder("first"))
    for hospital in finished.hospitals.values():
        assert "unbroken" in run([*program("flexmoe-client"), "audit", "verify", str(hospital.state)])
        record = str(hospital.state / "audit.jsonl")
        said = run([*program("flexmoe-server"), "audit", "verify", run_folder, "--site-record", record])
        assert "unbroken" in said
