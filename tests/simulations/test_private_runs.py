"""Whole federations under patient-level privacy: what they withhold, what they cost, and what is never paid twice."""

from __future__ import annotations

import json
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

from client.keys import IDENTITY_KEY
from client.ledger import PrivacyLedger
from client.ledger_start import node_ledger
from client.protection import Protection
from client.site import Site
from flexmoe_core.errors import RunFailed
from flexmoe_core.privacy.events import Gaussian, PrivacyEvent, SampledGaussian
from server.report.page import write_report
from server.run_store import RunStore
from server.settings import RunSettings
from simulations.engines.faults import Fault, FaultPlan
from simulations.runs import simulate, site_state
from tests.simulations.federations import SITES, tiny_settings, tiny_study

EPSILON, DELTA, ROUNDS = 6.0, 1e-3, 4
PRIVATE = (
    "method.losses.balance=0",
    "method.site.intercept=0",
    "method.site.regression=[]",
    f"privacy.patient.epsilon={EPSILON}",
    f"privacy.patient.delta={DELTA}",
)


class Killed(BaseException):
    """Stands for SIGKILL."""


def private_settings(*changes: str) -> RunSettings:
    return tiny_settings(*PRIVATE, *changes)


def ledger_of(store: RunStore, site: str) -> PrivacyLedger:
    state = site_state(store.folder, site)
    identity = state / IDENTITY_KEY
    return node_ledger(state, identity if identity.exists() else None, create=False)


def pld_epsilon(events: list[PrivacyEvent]) -> float:
    """By accountants of other authors."""
    accountant = PLDAccountant()
    for event in events:
        assert isinstance(event, SampledGaussian | Gaussian)
        one = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        if isinstance(event, SampledGaussian):
            one = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, one)
        accountant.compose(dp_accounting.SelfComposedDpEvent(one, event.steps))
    found: float = accountant.get_epsilon(DELTA)
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return simulate(study, tmp_path_factory.mktemp("run") / "run", private_settings())


def test_no_count_loss_or_score_comes_out_but_noised_ones(finished: RunStore) -> None:
    metrics = finished.metrics()
    assert metrics["test"]["pooled"]["n"] == 0
    assert all(site["n"] == 0 for site in metrics["test"]["sites"].values())
    assert set(metrics["released"]) == {"validation", "test"}
    for row in finished.history():
        assert row["answered"] == list(SITES)
        assert (row["loss"], row["training_seconds"]) == ({}, {})
        assert (row["validation"]["pooled"], row["validation"]["sites"]) == (None, {})
    participants = finished.results()[1]["participants"]
    assert all(one["announced"] == one["observed"] == one["patients"] == {} for one in participants.values())


def test_the_ledger_of_each_site_has_every_round_and_the_release_and_keeps_the_promise(finished: RunStore) -> None:
    for site in SITES:
        ledger = ledger_of(finished, site)
        events = [charge.event for charge in ledger.charges]
        assert [event.mechanism for event in events] == ["sampled-gaussian"] * ROUNDS + ["gaussian"]
        spent = ledger.epsilon(DELTA)
        assert 0 < spent <= EPSILON
        assert spent == pytest.approx(pld_epsilon(events), rel=0.01)
        assert finished.metrics()["privacy"]["patient"]["spent"][site] == pytest.approx(spent, abs=1e-3)


def test_the_model_moves_in_every_round(finished: RunStore, study: Path, tmp_path: Path) -> None:
    short = simulate(study, tmp_path / "run", private_settings("federation.rounds=1"))
    assert short.last_round() is not None
    rounds = [store.last_round() for store in (short, finished)]
    first, last = (stored[0] for stored in rounds if stored)
    assert all((first[name] != last[name]).any() for name in first if name.startswith("state/head"))


def test_a_run_that_was_killed_between_rounds_costs_no_more(study: Path, finished: RunStore, tmp_path: Path) -> None:
    def kill_after_round_2(row: dict[str, object]) -> None:
        if row.get("round") == 2:
            raise Killed

    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", private_settings(), observe=kill_after_round_2)
    resumed = simulate(study, tmp_path / "run", None)
    for site in SITES:
        assert ledger_of(resumed, site).epsilon(DELTA) == ledger_of(finished, site).epsilon(DELTA)


def test_an_answer_that_was_lost_is_sent_again_without_another_charge(
    study: Path, finished: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Site.train

    def asking_twice(site: Site, request: bytes) -> bytes:
        first = train(site, request)
        assert train(site, request) == first
        return first

    monkeypatch.setattr(Site, "train", asking_twice)
    store = simulate(study, tmp_path / "run", private_settings())
    for site in SITES:
        assert ledger_of(store, site).epsilon(DELTA) == ledger_of(finished, site).epsilon(DELTA)


def test_a_round_that_a_site_computes_again_costs_exactly_one_more(
    study: Path, finished: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge, charged = Protection.charge, []

    def killed_after_charging(protection: Protection, event: PrivacyEvent) -> None:
        charge(protection, event)
        charged.append(protection.place)
        if len(charged) == 5:  # the second of three sites in round 2
            raise Killed

    monkeypatch.setattr(Protection, "charge", killed_after_charging)
    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", private_settings())
    monkeypatch.undo()
    resumed = simulate(study, tmp_path / "run", None)

    def rounds(store: RunStore, site: str) -> list[str]:
        return [charge.event.mechanism for charge in ledger_of(store, site).charges]

    again, *others = "site-2", "site-1", "site-3"
    assert len(rounds(resumed, again)) == len(rounds(finished, again)) + 1
    assert all(rounds(resumed, site) == rounds(finished, site) for site in others)
    assert ledger_of(finished, again).epsilon(DELTA) < ledger_of(resumed, again).epsilon(DELTA) <= EPSILON


def test_uniform_noise_is_that_of_the_site_which_needs_most(study: Path, tmp_path: Path) -> None:
    manifest = study / "site-1" / "site.toml"
    text = manifest.read_text()
    try:
        manifest.write_text(text.replace("patients = 60\n", "patients = 30\n"))
        assert manifest.read_text() != text
        store = simulate(study, tmp_path / "run", private_settings('privacy.patient.noise="uniform"'))
    finally:
        manifest.write_text(text)
    noise = {
        charge.event.noise_multiplier
        for site in SITES
        for charge in ledger_of(store, site).charges
        if isinstance(charge.event, SampledGaussian)
    }
    assert len(noise) == 1
    assert store.metrics()["privacy"]["patient"]["spent"]["site-2"] < EPSILON / 1.2


def test_a_site_that_fails_leaves_its_charge_in_the_ledger(study: Path, tmp_path: Path) -> None:
    faults = FaultPlan((Fault("site-2", "corrupt", nth=2),))
    store = simulate(study, tmp_path / "run", private_settings(), faults=faults)
    assert len(ledger_of(store, "site-2").charges) == ROUNDS + 1
    assert store.history()[1]["answered"] == ["site-1", "site-3"]


def test_metrics_may_be_withheld_altogether(study: Path, tmp_path: Path) -> None:
    store = simulate(
        study, tmp_path / "run", private_settings("federation.rounds=1", "privacy.patient.release_share=0")
    )
    assert "released" not in store.metrics()
    assert [charge.event.mechanism for charge in ledger_of(store, "site-1").charges] == ["sampled-gaussian"]
    assert "withheld" in write_report(store.folder).read_text()


def test_the_report_tells_what_was_spent(finished: RunStore) -> None:
    page = write_report(finished.folder).read_text()
    assert "Patient-level differential privacy" in page
    assert "Withheld under patient-level privacy" in page
    assert json.dumps(EPSILON) in page


def test_patients_and_sums_are_protected_together(study: Path, tmp_path: Path) -> None:
    masked = private_settings("privacy.secure_aggregation.threshold=3", "federation.rounds=2")
    store = simulate(study, tmp_path / "run", masked)
    assert all(row["aggregated"] and row["answered"] == list(SITES) for row in store.history())
    for site in SITES:
        events = [charge.event.mechanism for charge in ledger_of(store, site).charges]
        assert events == ["sampled-gaussian"] * 2 + ["gaussian"]
        record = (site_state(store.folder, site) / "audit.jsonl").read_text()
        assert '"weighted"' not in record
    assert set(store.metrics()["privacy"]) == {"patient", "secure_aggregation"}
    assert "test" in store.metrics()["released"]


def test_sites_share_the_noise_of_site_level_privacy_under_masks(study: Path, tmp_path: Path) -> None:
    site_level = ("privacy.site.epsilon=30", "privacy.site.cohort=3", "privacy.site.clip=0.1", "federation.rounds=2")
    masked = tiny_settings(*site_level, "privacy.secure_aggregation.threshold=3")
    first, second = (simulate(study, tmp_path / name, masked) for name in ("first", "second"))
    states = [store.last_round() for store in (first, second)]
    assert all(row["aggregated"] for row in first.history())
    assert all(stored is not None for stored in states)
    weights = [stored[0]["state/head.weight"] for stored in states if stored]
    assert not (weights[0] == weights[1]).all(), "the noise of two runs is the same"


def test_when_spare_rounds_run_out_the_ledger_ends_the_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = Protection.charge

    def charged_twice(protection: Protection, event: PrivacyEvent) -> None:
        charge(protection, event)
        charge(protection, event)

    monkeypatch.setattr(Protection, "charge", charged_twice)
    with pytest.raises(RunFailed):
        simulate(study, tmp_path / "run", private_settings("privacy.patient.spare_rounds=1"))
    log = (tmp_path / "run" / "sites" / "site-1" / "site.log").read_text()
    assert "this run would have cost epsilon" in log
    ledger = node_ledger(tmp_path / "run" / "sites" / "site-1", None, create=False)
    assert ledger.epsilon(DELTA) <= EPSILON


def test_another_noise_than_before_in_the_run_is_refused(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = Protection.charge

    def with_more_noise(protection: Protection, event: PrivacyEvent) -> None:
        later = protection.place.round != 1 and isinstance(event, SampledGaussian)
        charge(protection, event.model_copy(update={"noise_multiplier": 50.0}) if later else event)

    monkeypatch.setattr(Protection, "charge", with_more_noise)
    with pytest.raises(RunFailed):
        simulate(study, tmp_path / "run", private_settings())
    assert "another noise" in (tmp_path / "run" / "sites" / "site-1" / "site.log").read_text()


def test_site_level_privacy_keeps_its_promise(study: Path, tmp_path: Path) -> None:
    changes = ("privacy.site.epsilon=20", "privacy.site.cohort=3", "privacy.site.clip=0.5")
    store = simulate(study, tmp_path / "run", tiny_settings(*changes))
    told = store.metrics()["privacy"]["site"]
    assert 19 < told["spent"] <= 20
    assert told["noise_multiplier"] > 0
    faults = FaultPlan((Fault("site-2", "raise", nth=2),))
    fewer = simulate(study, tmp_path / "fewer", tiny_settings(*changes), faults=faults)
    assert fewer.metrics()["privacy"]["site"]["spent"] == told["spent"]
