from __future__ import annotations

import pytest

from server.settings import RunSettings
from simulations.baselines.private_logistic import LogisticSettings
from simulations.benchmark_data import Synthetic
from simulations.studies.privacy_arms import DEFAULT_PRESETS, TITLES, Arm, arms_of, training_of
from tests.simulations.studies.results import HEART


def settings_of(arm: Arm, *changes: str) -> RunSettings:
    found = training_of(arm, HEART, 3, changes)
    assert isinstance(found, RunSettings)
    return found


def test_every_family_is_there_and_those_with_a_budget_at_each_epsilon() -> None:
    arms = arms_of([1.0, 8.0])
    assert list(dict.fromkeys(arm.family for arm in arms)) == list(TITLES)
    for family in ("patient", "site"):
        assert [arm.epsilon for arm in arms if arm.family == family] == [1.0, 8.0]
    assert [arm.epsilon for arm in arms if arm.family == "logistic"] == [1.0, 8.0, None]
    assert sum(arm.epsilon is None for arm in arms) == 6


def test_federations_differ_in_nothing_but_their_protection() -> None:
    without = settings_of(Arm(family="none"), "federation.rounds=2")
    for arm in arms_of([8.0]):
        if arm.family in ("patient", "site", "secure-aggregation"):
            found = settings_of(arm, "federation.rounds=2")
            assert found.privacy != without.privacy
            assert found.model_copy(update={"privacy": without.privacy}) == without
    assert without.seed == 3
    assert without.federation.rounds == 2


def test_each_protection_has_its_epsilon_and_public_numbers() -> None:
    patient = settings_of(Arm(family="patient", epsilon=3.0)).privacy.patient
    assert patient is not None
    assert (patient.epsilon, patient.delta) == (3.0, 1e-3)
    site = settings_of(Arm(family="site", epsilon=8.0)).privacy.site
    assert site is not None
    assert (site.epsilon, site.cohort) == (8.0, 4)
    masked = settings_of(Arm(family="secure-aggregation")).privacy.secure_aggregation
    assert masked is not None
    assert masked.threshold == 3


def test_what_is_simpler_has_no_run() -> None:
    logistic = training_of(Arm(family="logistic", epsilon=8.0), HEART, 0)
    assert isinstance(logistic, LogisticSettings)
    assert (logistic.epsilon, logistic.delta) == (8.0, 1e-3)
    for family in ("pooled-logistic", "majority"):
        assert training_of(Arm.model_validate({"family": family}), HEART, 0) is None


@pytest.mark.parametrize("name", ["uci-heart", *DEFAULT_PRESETS])
def test_its_own_preset_protects_nothing(name: str) -> None:
    data = Synthetic(sites=2, modalities=3, patients_per_site=40, missing=0.4).model_copy(update={"dataset": name})
    found = training_of(Arm(family="default"), data, 0)
    assert isinstance(found, RunSettings)
    assert found.privacy == RunSettings().privacy
    assert found.method.model.width == (32 if name == "uci-heart" else 64)
