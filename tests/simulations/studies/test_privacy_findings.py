from __future__ import annotations

import pytest

from simulations.benchmark_data import Digits
from simulations.seed_intervals import student_quantile
from simulations.studies import privacy_findings as of
from simulations.studies.privacy_arms import Arm, arms_of
from simulations.studies.privacy_findings import Findings, findings_of
from tests.simulations.studies.results import HEART, made_up_results

PATIENT_8, NONE = Arm(family="patient", epsilon=8.0), Arm(family="none")
DIGITS = Digits(sites=8, missing=0.3, validation=0.15)


@pytest.fixture
def heart() -> Findings:
    (found,) = findings_of(made_up_results(), arms_of([1.0, 8.0]))
    return found


def test_each_data_set_has_its_own_findings() -> None:
    both = findings_of(made_up_results(data=(HEART, DIGITS)), arms_of([1.0, 8.0]))
    assert [one.data for one in both] == [HEART, DIGITS]
    assert both[0].arms == tuple(arms_of([1.0, 8.0]))
    assert (both[0].epsilons, both[0].seeds) == ((1.0, 8.0), (0, 1, 2))


def test_means_are_over_seeds_and_the_worst_hospital_over_hospitals(heart: Findings) -> None:
    assert heart.estimate(NONE, of.auroc).value == pytest.approx(0.92)
    assert heart.estimate(NONE, of.worst_accuracy).value == pytest.approx(0.92 - 0.05 - 0.1)
    assert heart.estimate(NONE, of.worst_auroc).value == pytest.approx(0.92 - 0.02)
    assert heart.estimate(Arm(family="majority"), of.attack_auc).value is None


def test_differences_pair_seeds(heart: Findings) -> None:
    found = heart.difference(PATIENT_8, NONE, of.auroc)
    assert found.value == pytest.approx(-0.015)
    assert found.low == pytest.approx(-0.015)
    fewer = Findings(HEART, tuple(one for one in heart.results if (one.job.arm, one.job.seed) != (NONE, 2)))
    assert fewer.difference(PATIENT_8, NONE, of.auroc).value == pytest.approx(-0.015)


def test_intervals_allow_for_patients_that_seeds_share() -> None:
    heart, digits = findings_of(made_up_results(data=(HEART, DIGITS)), arms_of([1.0, 8.0]))

    def half(findings: Findings, measure: of.Measure) -> float:
        found = findings.estimate(NONE, measure)
        assert found.high is not None
        assert found.value is not None
        return found.high - found.value

    plain = student_quantile(0.975, 2) * 0.01 / 3**0.5
    assert half(heart, of.auroc) == pytest.approx(plain, rel=1e-4)
    assert half(digits, of.auroc) == pytest.approx(plain * (1 + 3 * 0.34 / 0.66) ** 0.5, rel=1e-4)
    two_seeds = findings_of(made_up_results(seeds=(0, 1)), arms_of([1.0, 8.0]))[0].estimate(NONE, of.auroc)
    assert (two_seeds.low, two_seeds.high) == (None, None)
