from __future__ import annotations

import numpy as np
import pytest

from simulations.audits.membership import ATTACKS, AttackScores, attack_all, loss_threshold
from simulations.audits.roc import roc_of


def federations(effect: float, count: int = 24, patients: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that differ between patients far more than membership changes them, by ``effect``."""
    generator = np.random.default_rng(seed)
    is_member_KB = generator.random((count, patients)) < 0.5
    difficulty_B = generator.normal(1.0, 3.0, patients)
    noise_KB = generator.normal(0.0, 1.0, (count, patients))
    return difficulty_B + noise_KB + effect * is_member_KB, is_member_KB


def auc(found: AttackScores) -> float:
    return roc_of(found.scores_N, found.is_member_N).auc


@pytest.mark.parametrize("name", ATTACKS)
def test_without_an_effect_no_attack_finds_one(name: str) -> None:
    assert auc(attack_all(ATTACKS[name], *federations(0.0))) == pytest.approx(0.5, abs=0.02)


def test_shadows_see_what_a_threshold_does_not() -> None:
    found = {name: auc(attack_all(attack, *federations(1.5))) for name, attack in ATTACKS.items()}
    assert found["loss"] < 0.68
    assert found["LiRA offline"] > 0.8
    assert found["LiRA online"] >= found["LiRA offline"] - 0.01
    assert found["LiRA online"] == pytest.approx(0.855, abs=0.03)  # of two normals 1.5 apart: Phi(1.5 / sqrt 2)


def test_few_shadows_do_not_spoil_the_online_attack() -> None:
    logits, is_member = federations(0.5, count=8)
    assert auc(attack_all(ATTACKS["LiRA online"], logits, is_member)) > 0.58


def test_patients_whose_membership_hurts_are_found_by_the_online_attack_alone() -> None:
    logits, is_member = federations(0.0, count=60)
    sign_B = np.where(np.arange(logits.shape[1]) % 2 == 0, 2.0, -2.0)
    logits = logits + is_member * sign_B
    assert auc(attack_all(ATTACKS["LiRA offline"], logits, is_member)) < 0.6
    assert auc(attack_all(ATTACKS["LiRA online"], logits, is_member)) > 0.85


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_looks_at_the_membership_that_it_guesses(name: str) -> None:
    logits, is_member = federations(1.0, count=10, patients=50)
    flipped = is_member.copy()
    flipped[3] = ~flipped[3]
    np.testing.assert_array_equal(ATTACKS[name](3, logits, is_member), ATTACKS[name](3, logits, flipped))


def test_patients_without_enough_shadows_are_left_out() -> None:
    logits, is_member = federations(1.0, count=6, patients=40)
    is_member[:, 0] = [True, False, False, False, False, False]
    found = attack_all(ATTACKS["LiRA online"], logits, is_member)
    assert 0 not in found.patient_N
    assert 0 in attack_all(loss_threshold, logits, is_member).patient_N


def test_a_part_of_the_patients_keeps_its_own_scores() -> None:
    logits, is_member = federations(1.0, count=6, patients=10)
    chosen_B = np.arange(10) < 3
    part = attack_all(loss_threshold, logits, is_member).only(chosen_B)
    np.testing.assert_array_equal(np.sort(part.scores_N), np.sort(logits[:, :3].ravel()))
    assert set(part.patient_N) == {0, 1, 2}
