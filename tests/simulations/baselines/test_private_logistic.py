from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from client.site_data import SiteData
from flexmoe_core.errors import InputError
from flexmoe_core.privacy.accounting import epsilon_of, noise_multiplier_for
from flexmoe_core.privacy.events import SampledGaussian, Unprotected
from flexmoe_core.study import Study
from simulations.baselines import private_logistic as private_logistic_module
from simulations.baselines.features import site_features
from simulations.baselines.predictions import labels_of, mean_log_loss
from simulations.baselines.private_logistic import LogisticSettings, clipped_gradients, private_logistic
from tests.simulations.baselines.patients import prepared

Hospitals = tuple[Study, Mapping[str, SiteData]]
FAST = LogisticSettings(epsilon=8.0, rounds=5)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    study, _, sites = prepared(tmp_path_factory.mktemp("study") / "study", patients_per_site=150)
    return study, sites


@pytest.fixture(autouse=True)
def quick_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of the same budget is looked for once."""
    monkeypatch.setattr(private_logistic_module, "noise_multiplier_for", cached_noise)


@cache
def cached_noise(*budget: float) -> float:
    return noise_multiplier_for(budget[0], budget[1], budget[2], int(budget[3]))


class KnownSource:
    """Random bits that anybody can compute again."""

    secret = False

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def bits(self, count: int) -> Tensor:
        return torch.randint(-(2**63), 2**63 - 1, (count,), generator=self._generator)


def random_patients(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of very different sizes, labels, and weights."""
    generator = torch.Generator().manual_seed(seed)
    x_BF = torch.randn(count, 4, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(-1, 3)
    labels_B = torch.randint(classes, (count,), generator=generator)
    return x_BF, labels_B, torch.randn(4, classes - 1, generator=generator, dtype=torch.float64) / 10


def one_by_one(x_BF: Tensor, labels_B: Tensor, weight_FK: Tensor, clip: float) -> Tensor:
    """A backward pass for each patient."""
    total_FK = torch.zeros_like(weight_FK)
    for x_F, label in zip(x_BF, labels_B, strict=True):
        leaf_FK = weight_FK.clone().requires_grad_()
        logits_Y = torch.cat([torch.zeros(1, dtype=torch.float64), x_F @ leaf_FK])
        (gradient_FK,) = torch.autograd.grad(cross_entropy(logits_Y, label), leaf_FK)
        total_FK += gradient_FK * clip / max(clip, float(gradient_FK.norm()))
    return total_FK


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.integers(2, 4), st.floats(0.01, 10.0), st.integers(0, 2**31))
@example(3, 2, 1.0, 398)  # a patient without any gradient left
def test_clipped_gradients_are_those_of_a_backward_pass_per_patient(
    count: int, classes: int, clip: float, seed: int
) -> None:
    x_BF, labels_B, weight_FK = random_patients(count, classes, seed)
    expected_FK = one_by_one(x_BF, labels_B, weight_FK, clip)
    found_FK = clipped_gradients(x_BF, labels_B, weight_FK, clip)
    assert torch.allclose(found_FK, expected_FK, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 4), st.floats(0.01, 10.0), st.integers(0, 2**31))
def test_one_patient_more_changes_the_sum_by_at_most_the_clipping_norm(
    count: int, classes: int, clip: float, seed: int
) -> None:
    x_BF, labels_B, weight_FK = random_patients(count, classes, seed)
    with_FK = clipped_gradients(x_BF, labels_B, weight_FK, clip)
    without_FK = clipped_gradients(x_BF[1:], labels_B[1:], weight_FK, clip)
    assert float((with_FK - without_FK).norm()) <= clip * (1 + 1e-9)


def test_every_site_spends_its_budget_and_no_more(hospitals: Hospitals) -> None:
    study, sites = hospitals
    for epsilon in (1.0, 8.0):
        fit = private_logistic(study, sites, LogisticSettings(epsilon=epsilon, rounds=5))
        assert set(fit.events) == set(sites)
        for events in fit.events.values():
            assert 0.98 * epsilon < epsilon_of(events, 1e-3) <= epsilon


def test_what_is_charged_follows_from_declared_sizes_alone(hospitals: Hospitals) -> None:
    study, sites = hospitals
    name, other = sites
    declared = replace(sites[name], public=sites[name].public.model_copy(update={"patients": 300}))
    fewer = replace(sites[other], cohorts={**sites[other].cohorts, "train": sites[other].cohorts["validation"]})
    before = private_logistic(study, sites, FAST)
    after = private_logistic(study, {name: declared, other: fewer}, FAST)
    assert after.events[other] == before.events[other]
    event = after.events[name][0]
    assert isinstance(event, SampledGaussian)
    assert (event.sampling_rate, event.steps, len(after.events[name])) == (64 / 300, 5, 5)


@pytest.mark.parametrize("epsilon", [8.0, None])
def test_seeds_do_not_bring_back_noise_or_samples(hospitals: Hospitals, epsilon: float | None) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        weights.append(private_logistic(*hospitals, LogisticSettings(epsilon=epsilon, rounds=2)).weight_FK)
    assert not torch.isclose(weights[0], weights[1]).any()


def test_noise_that_somebody_may_know_protects_nobody(hospitals: Hospitals) -> None:
    study, sites = hospitals
    fits = [private_logistic(study, sites, FAST, KnownSource()) for _ in range(2)]
    assert torch.equal(fits[0].weight_FK, fits[1].weight_FK)
    assert fits[0].events[next(iter(sites))] == (Unprotected(),) * FAST.rounds
    without = private_logistic(study, sites, LogisticSettings(epsilon=None, rounds=1))
    assert all(epsilon_of(events, 1e-3) == math.inf for events in without.events.values())


def test_a_smaller_epsilon_costs_accuracy_and_a_larger_one_hardly_any(hospitals: Hospitals) -> None:
    study, sites = hospitals

    def loss(epsilon: float | None) -> float:
        fit = private_logistic(study, sites, LogisticSettings(epsilon=epsilon))
        x_BF = np.vstack([site_features(data, study, ("test",)) for data in sites.values()])
        labels_B = np.concatenate([labels_of(data, ("test",)) for data in sites.values()])
        return mean_log_loss(fit.predict(x_BF), labels_B)

    assert loss(None) < math.log(2) - 0.05
    assert loss(50.0) < loss(None) + 0.03
    assert loss(0.05) > loss(None) + 0.05


def test_scales_fitted_to_patients_are_refused(hospitals: Hospitals) -> None:
    study, sites = hospitals
    first = study.modalities[0].model_copy(update={"encoder": "local", "columns": ()})
    local = study.model_copy(update={"modalities": (first, *study.modalities[1:])})
    with pytest.raises(InputError, match="has a local encoder"):
        private_logistic(local, sites, FAST)
