"""Whole runs whose sums are masked, in one process: the plain sums' bits, faults at every stage, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client.site import Site
from flexmoe_core.audit_line import Entry, parse_line
from flexmoe_core.checkpoint import read_checkpoint
from flexmoe_core.errors import InputError, RunFailed
from flexmoe_core.messages import outline
from flexmoe_core.study import load_study
from server.report.page import write_report
from server.run_store import RunStore
from server.settings import RunSettings
from simulations.datasets.synthetic import prepare_synthetic
from simulations.engines.faults import Fault, FaultKind, FaultPlan
from simulations.runs import simulate
from tests.simulations.federations import SITES, tiny_settings, tiny_study

MASKS = "privacy.secure_aggregation.threshold=2"
# messages to a site: handshake, keys, shares, count, unmask, then train and unmask in each round, and the finish
FIRST_ROUND = 5


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it and nothing is tidied up."""


def masked_settings(*changes: str) -> RunSettings:
    return tiny_settings(MASKS, *changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return simulate(study, tmp_path_factory.mktemp("run") / "run", masked_settings())


def weights(store: RunStore, number: int = 4) -> dict[str, np.ndarray]:
    arrays, _ = read_checkpoint(store.folder / "checkpoint" / f"round-{number:05d}")
    return arrays


def entries(folder: Path, event: str) -> list[Entry]:
    lines = (folder / "audit.jsonl").read_bytes().splitlines()
    return [entry for entry in map(parse_line, lines) if entry.event == event]


def questions(folder: Path, event: str = "asked") -> list[object]:
    return [entry.facts["question"] for entry in entries(folder, event)]


def assert_same_weights(first: RunStore, second: RunStore, number: int = 4) -> None:
    ours, theirs = weights(first, number), weights(second, number)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_the_weights_are_those_of_the_plain_sum(study: Path, finished: RunStore, tmp_path: Path) -> None:
    assert finished.held_rows() == {}
    plain = simulate(study, tmp_path / "plain", tiny_settings())
    assert_same_weights(finished, plain)
    ours, theirs = finished.metrics(), plain.metrics()
    assert ours["test"]["pooled"] == theirs["test"]["pooled"]
    assert ours["validation"]["pooled"] == theirs["validation"]["pooled"]
    for row, plain_row in zip(finished.history(), plain.history(), strict=True):
        assert row["validation"]["pooled"] == plain_row["validation"]["pooled"]


def test_nothing_is_told_of_a_single_site(finished: RunStore) -> None:
    metrics = finished.metrics()
    for split in ("test", "validation"):
        assert metrics[split]["sites"] == {} and metrics[split]["combinations"] == {}
        assert metrics[split]["pooled"]["n"] > 0
    for row in finished.history():
        assert row["loss"] == {} and row["validation"]["sites"] == {}
        assert row["masked"] == {"cohort": list(SITES), "problem": None}


def test_the_report_has_the_pooled_results_and_says_why_there_are_no_others(finished: RunStore) -> None:
    page = write_report(finished.folder).read_text()
    assert "told to nobody: scores are summed under masks" in page
    assert f"{finished.metrics()['test']['pooled']['auroc']:.3f}" in page
    assert "(all sites)" not in page


def test_every_vector_that_a_site_sends_is_masked(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    for name in ("train", "finish"):
        original = getattr(Site, name)

        def noted(site: Site, request: bytes, original=original) -> bytes:  # noqa: ANN001
            answer: bytes = original(site, request)
            sent.append(answer)
            return answer

        monkeypatch.setattr(Site, name, noted)
    simulate(study, tmp_path / "run", masked_settings("federation.rounds=1"))
    assert len(sent) == 6
    for answer in sent:
        told = outline(answer)
        assert told.arrays.keys() == {"masked/vector"}
        assert told.facts.get("loss") is None
        vector = np.frombuffer(answer[-8 * (told.arrays["masked/vector"] // 8) :], np.uint8)
        by_byte = np.bincount(vector, minlength=256)
        expected = len(vector) / 256
        assert float(((by_byte - expected) ** 2 / expected).sum()) < 420  # 255 degrees of freedom


def test_no_secret_is_left_when_the_run_has_ended(finished: RunStore) -> None:
    files = list(finished.folder.rglob("masks/*.json"))
    assert len(files) == 3 * 6
    assert not [file for file in files if b'"seed":' in file.read_bytes()]


def test_both_sides_write_down_every_step(finished: RunStore) -> None:
    asked = questions(finished.folder)
    assert asked == ["handshake", "keys", "shares", "count", "unmask", *["train", "unmask"] * 4, "finish", "unmask"]
    for site in SITES:
        assert questions(finished.folder / "sites" / site, "answered") == asked


def run_with(study: Path, folder: Path, faults: list[Fault], *changes: str) -> RunStore:
    return simulate(study, folder, masked_settings(*changes), faults=FaultPlan(tuple(faults)))


@pytest.mark.parametrize("kind", [pytest.param("drop", marks=pytest.mark.slow), "delay", "raise"])
def test_a_site_that_is_lost_in_a_round_sits_out_the_next_and_is_back(
    study: Path, tmp_path: Path, kind: FaultKind
) -> None:
    """The sums are those of the plain run without the site in these two rounds."""
    lost = Fault("site-2", kind, nth=FIRST_ROUND + 2)
    masked = run_with(study, tmp_path / "masked", [lost])
    answered = [row["answered"] for row in masked.history()]
    assert [sorted(set(SITES) - set(names)) for names in answered] == [[], ["site-2"], ["site-2"], []]
    assert "sat out" in masked.history()[2]["dropped"]["site-2"][0]
    if kind == "raise":  # of the others, the site has trained without being heard
        plain = [Fault("site-2", "raise", nth=2), Fault("site-2", "raise", nth=3)]
        assert_same_weights(
            masked, simulate(study, tmp_path / "plain", tiny_settings(), faults=FaultPlan(tuple(plain)))
        )


@pytest.mark.parametrize("nth", range(1, FIRST_ROUND + 6))
@pytest.mark.parametrize(
    "kind", ["raise", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("drop", "delay"))]
)
def test_a_fault_at_any_message_costs_no_round(study: Path, tmp_path: Path, nth: int, kind: FaultKind) -> None:
    store = run_with(study, tmp_path / "run", [Fault("site-3", kind, nth=nth)], "federation.rounds=2")
    assert all(row["aggregated"] for row in store.history())
    assert store.metrics()["test"]["pooled"]["n"] > 0


def test_a_vector_that_was_damaged_on_its_way_is_left_out(study: Path, tmp_path: Path) -> None:
    store = run_with(study, tmp_path / "run", [Fault("site-3", "corrupt", nth=FIRST_ROUND + 2)])
    assert [len(row["answered"]) for row in store.history()] == [3, 2, 2, 3]


def test_below_the_threshold_a_round_is_given_up_and_the_run_goes_on(study: Path, tmp_path: Path) -> None:
    lost = [Fault(site, "raise", nth=FIRST_ROUND + 2) for site in ("site-2", "site-3")]
    store = run_with(study, tmp_path / "run", lost, "federation.min_aggregated=0.5")
    rows = store.history()
    assert [row["aggregated"] for row in rows] == [True, False, True, True]
    assert rows[1]["masked"]["problem"] == "1 masked vectors came, 2 are needed"
    assert [row["answered"] for row in rows[2:]] == [list(SITES)] * 2
    asked = questions(store.folder)
    unmasked = [number for number, question in enumerate(asked) if question == "unmask"]
    assert len(unmasked) == 5, "no share was asked for in the round that was given up"
    assert json.loads((store.folder / "masks.json").read_text())["attempt"] == 2


def test_without_enough_shares_a_round_is_given_up(study: Path, tmp_path: Path) -> None:
    lost = [Fault(site, "drop", nth=FIRST_ROUND + 3) for site in ("site-2", "site-3")]
    store = run_with(study, tmp_path / "run", lost, "federation.min_aggregated=0.5")
    rows = store.history()
    assert [row["aggregated"] for row in rows] == [True, False, True, True]
    assert "right ones are needed" in rows[1]["masked"]["problem"]


def test_a_run_whose_rows_cannot_be_counted_fails(study: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="rows could not be counted under masks: 1 masked vectors came"):
        run_with(study, tmp_path / "run", [Fault(site, "raise", nth=3) for site in ("site-2", "site-3")])


def test_a_coordinator_killed_between_rounds_resumes_to_the_same_weights(
    study: Path, finished: RunStore, tmp_path: Path
) -> None:
    def kill_after_round_2(row: dict[str, object]) -> None:
        if row["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", masked_settings(), observe=kill_after_round_2)
    resumed = simulate(study, tmp_path / "run", None)
    assert_same_weights(resumed, finished)
    assert resumed.metrics()["test"] == finished.metrics()["test"]
    asked = questions(resumed.folder)
    assert asked.count("count") == 1


@pytest.mark.parametrize("call", [1, 8, 9])
def test_a_coordinator_killed_in_a_round_resumes_to_the_same_weights(
    study: Path, finished: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    train, trained = Site.train, []

    def killing_train(site: Site, request: bytes) -> bytes:
        trained.append(site.folder.name)
        answer = train(site, request)
        if len(trained) == call:
            raise Killed
        return answer

    monkeypatch.setattr(Site, "train", killing_train)
    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", masked_settings())
    monkeypatch.setattr(Site, "train", train)
    resumed = simulate(study, tmp_path / "run", None)
    assert_same_weights(resumed, finished)
    assert json.loads((resumed.folder / "masks.json").read_text())["attempt"] == 2


def test_rows_that_too_few_sites_have_patients_for_are_held_back(tmp_path: Path) -> None:
    """With a threshold of three, each row needs (4 - 3) + 2 sites: what fewer have keeps the coordinator's value."""
    prepare_synthetic(tmp_path / "data", sites=4, modalities=3, patients_per_site=25, classes=2, missing=0.4, seed=8)
    settings = masked_settings("privacy.secure_aggregation.threshold=3", "federation.rounds=2")
    store = simulate(tmp_path / "data", tmp_path / "run", settings)
    held = store.held_rows()
    assert held
    first, last = weights(store, 1), weights(store, 2)
    for name, rows in held.items():
        np.testing.assert_array_equal(first[f"state/{name}"][list(rows)], last[f"state/{name}"][list(rows)])
    moved = [name for name in last if name.startswith("state/") and not np.array_equal(first[name], last[name])]
    assert moved


def test_rows_that_the_study_declares_are_released_without_a_count(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "sites")
    names = load_study(study / "study.toml").modality_names
    listed = "".join(f"\n[[combination]]\nmodalities = {json.dumps(one)}\n" for one in (names, names[:2], names[1:]))
    (study / "study.toml").write_text((study / "study.toml").read_text() + listed)
    settings = masked_settings("privacy.secure_aggregation.rows=declared", "federation.rounds=1")
    store = simulate(study, tmp_path / "run", settings)
    assert store.held_rows() == {} and store.history()[0]["aggregated"]
    assert questions(store.folder) == ["handshake", "keys", "shares", "train", "unmask", "finish", "unmask"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (["privacy.secure_aggregation.threshold=4"], "there are 3 sites on the roster"),
        (["privacy.secure_aggregation.colluding=1"], "not above half of the 3 sites and 1 colluding"),
        (["privacy.secure_aggregation.rows=declared"], "lists no combinations"),
    ],
)
def test_settings_that_do_not_protect_are_refused_before_the_run(
    study: Path, tmp_path: Path, changes: list[str], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        simulate(study, tmp_path / "run", masked_settings(*changes))
    assert not (tmp_path / "run").exists()
