from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexmoe_core.privacy.engine import Batch, PatientEngine
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.patient_chance import SecretChance
from flexmoe_core.privacy.secret_source import OperatingSystemSource
from simulations.audits.builds import BUILDS, Round, TokenEngine, tokens_apart
from simulations.audits.canaries import (
    ENCODER,
    Hospital,
    canary_hospital,
    canary_model,
    canary_settings,
    directions,
    seen_by_auditor,
)

SETTINGS = canary_settings("small")
CLIP = 0.1


def mechanism(noise: float = 1e-6) -> PatientMechanism:
    return PatientMechanism(sampling_rate=1.0, steps=1, clip=CLIP, noise_multiplier=noise, expected_batch=50.0)


def trained(build: str, hospital: Hospital, included: np.ndarray, noise: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The encoder before and after."""
    model = canary_model(hospital, SETTINGS)
    before = model.get_parameter(ENCODER).detach().clone()
    cohort = hospital.with_canaries(included)
    BUILDS[build](Round(model, cohort, hospital.table, SETTINGS, mechanism(noise), OperatingSystemSource()))
    return before, model.get_parameter(ENCODER).detach()


def scores(build: str, hospital: Hospital, included: np.ndarray, noise: float = 1e-6) -> np.ndarray:
    before, after = trained(build, hospital, included, noise)
    unit = SETTINGS.training.learning_rate * CLIP / 50.0
    return seen_by_auditor(before, after, directions(canary_model(hospital, SETTINGS), hospital), unit)


def sum_of_one(engine_type: type[PatientEngine]) -> float:
    """The norm of what one canary adds."""
    hospital = canary_hospital(40, 10, 0)
    engine = engine_type(canary_model(hospital, SETTINGS), hospital.table, SETTINGS, specialize=True)
    one = hospital.everybody.select(torch.tensor([7]))
    batch = Batch(one, hospital.table.place(one.masks_B), None)
    with engine.tape.attached():
        found = engine.clipped_sum(batch, CLIP, lambda index_S: SecretChance(OperatingSystemSource(), len(index_S)))
    return float(found.total_V.norm())


def test_the_auditor_knows_each_canary_s_gradient_on_its_own_column() -> None:
    hospital = canary_hospital(30, 10, 0)
    model = canary_model(hospital, SETTINGS)
    found = directions(model, hospital)
    for canary in (0, 11, 29):
        one = hospital.everybody.select(torch.tensor([canary]))
        loss = cross_entropy(model(one, hospital.table.place(one.masks_B), specialize=True).logits_BY, one.labels_B)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        own = dict(zip([name for name, _ in model.named_parameters()], gradients, strict=True))[ENCODER]
        assert own is not None
        norm = torch.cat([one.flatten() for one in gradients if one is not None]).norm()
        assert float(own[:, canary].norm() / norm) > 0.99, "most of its gradient is its own"
        assert float(norm) > 10 * CLIP, "and is clipped"
        torch.testing.assert_close(found[:, canary], -own[:, canary] / own[:, canary].norm(), rtol=1e-4, atol=1e-6)


def test_of_the_shipped_build_a_canary_adds_one_clipped_gradient_and_noise() -> None:
    hospital, included = canary_hospital(60, 20, 0), np.arange(60) % 2 == 0
    quiet = scores("shipped", hospital, included)
    assert quiet[included].max() <= 1.001, "clipped"
    assert quiet[included].min() > 0.85, "gate noise turns a gradient a little"
    np.testing.assert_allclose(quiet[~included], 0.0, atol=0.02)
    loud = np.concatenate([scores("shipped", hospital, included, noise=3.0) - included for _ in range(4)])
    assert loud.std() == pytest.approx(3.0, rel=0.15)


def test_each_wrong_build_is_wrong_as_it_says() -> None:
    hospital, included = canary_hospital(60, 20, 0), np.arange(60) % 2 == 0
    less = np.concatenate([scores("noise", hospital, included, noise=3.0) - included for _ in range(4)])
    assert less.std() == pytest.approx(0.6, rel=0.15)
    tokens = scores("tokens", hospital, included)
    assert tokens[included].min() > 2.0
    np.testing.assert_allclose(tokens[~included], 0.0, atol=0.05)
    before, after = trained("encoder", hospital, included, noise=3.0)
    moved = (after != before).any(dim=0).numpy()
    np.testing.assert_array_equal(moved, included)
    before, after = trained("no privacy", hospital, included)
    np.testing.assert_array_equal((after != before).any(dim=0).numpy(), included)


def test_clipping_tokens_lets_a_patient_count_for_several() -> None:
    assert sum_of_one(PatientEngine) <= CLIP
    assert 3 * CLIP < sum_of_one(TokenEngine) <= 32 * CLIP


def test_tokens_apart_add_up_to_the_patients_gradients() -> None:
    hospital = canary_hospital(12, 12, 0)
    model = canary_model(hospital, SETTINGS)
    engine = PatientEngine(model, hospital.table, SETTINGS, specialize=True)
    batch = Batch(hospital.everybody, hospital.table.place(hospital.everybody.masks_B), None)
    with engine.tape.attached():
        gradients = engine.gradients(batch, SecretChance(OperatingSystemSource(), len(batch)))
    ones_B = torch.ones(len(batch))
    whole_V = engine.weighted_sum(gradients, ones_B)
    units = list(tokens_apart(gradients, model))
    assert len(units) == 32
    assert float(whole_V.norm()) > 10.0
    summed_V = torch.stack([engine.weighted_sum(unit, ones_B) for unit in units]).sum(dim=0)
    torch.testing.assert_close(summed_V, whole_V, rtol=1e-4, atol=1e-3)


def test_canaries_come_and_go_and_others_stay() -> None:
    hospital = canary_hospital(10, 5, 0)
    included = np.arange(10) < 3
    there = hospital.with_canaries(included)
    assert len(there) == 8
    assert int(there.observed_BM.all(dim=1).sum()) == 3
