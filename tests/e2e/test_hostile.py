"""Hospitals that raise, lie or sleep: named and dropped, and nothing of them is to be found at the coordinator."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import ROOT, Hospital, Lab, lab, needs_nginx, program, run

pytestmark = [pytest.mark.e2e, needs_nginx]
KINDS = {"site-2": "raises", "site-3": "lies", "site-4": "sleeps"}
MARKERS = (b"MARKER-EXCEPTION", b"MARKER-PATIENT", b"ward-MARKER-PATH")
SETTINGS = ("--rounds", "2", "--set", "federation.quorum=1", "--set", "federation.deadline_s=30")


def make_rogue(hospital: Hospital, kind: str) -> None:
    """Put a program of the test in place of the guard of a running node."""
    command = [sys.executable, "-P", ROOT / "tests" / "e2e" / "rogue.py", kind, ROOT / "client" / "guard.py"]
    words = " ".join(f"'{word}'" for word in [*command, hospital.node])
    launcher = hospital.node / "run" / "bin" / "flwr-clientapp"
    launcher.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\nexport PATH\nexec {words} "$@"\n')


def plant_patient(folder: Path) -> None:
    """Give a patient of a site a name that must never leave it."""
    patient = (folder / "patients.csv").read_text().splitlines()[1].split(",")[0]
    for file in folder.glob("*.csv"):
        file.write_text(re.sub(rf"^{patient},", "MARKER-PATIENT,", file.read_text(), flags=re.MULTILINE))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A run of one honest hospital and three others."""
    root = tmp_path_factory.mktemp("hostile")
    study = root / "ward-MARKER-PATH"
    run([*program("flexmoe-sim"), "prepare", "synthetic", "--sites", "4", "--out", str(study)])
    for folder in study.glob("site-*"):
        plant_patient(folder)
    shutil.copy(study / "study.toml", root / "study.toml")
    with lab(root, study, ("site-1", *KINDS)) as one:
        one.start_all()
        for site, kind in KINDS.items():
            make_rogue(one.hospitals[site], kind)
        one.submit("hostile", *SETTINGS)
        one.wait_for_end("hostile", 400)
        yield one


def test_each_of_them_is_named_and_the_others_go_on(finished: Lab) -> None:
    history = finished.history("hostile")
    assert [row["aggregated"] for row in history] == [True, True]
    for row in history:
        assert row["answered"] == ["site-1"]
        assert "the site could not run the bundle; its log has the details under" in row["failed"]["site-2"]
        assert any("expected" in problem for problem in row["dropped"]["site-3"])
        assert "site-4" in {*row["missing"], *row["failed"]}
    assert finished.status("hostile")["run"]["state"] == "finished"


def test_what_was_wrong_is_in_the_log_of_the_site_that_has_to_know(finished: Lab) -> None:
    log = (finished.hospitals["site-2"].state / "site.log").read_text()
    assert "MARKER-EXCEPTION" in log
    told = finished.history("hostile")[0]["failed"]["site-2"]
    assert re.search(r"[0-9a-f]{8}", told.rpartition("under ")[2])[0] in log  # type: ignore[index]


def test_no_patient_path_or_exception_text_is_in_any_file_of_the_coordinator(finished: Lab) -> None:
    files = [file for file in finished.folder.rglob("*") if file.is_file()]
    assert any(file.name.startswith("state.db") for file in files)
    found = {
        (str(file.relative_to(finished.folder)), marker.decode())
        for file in (*files, finished.coordinator.log)
        for marker in MARKERS
        if marker in file.read_bytes()
    }
    assert not found
