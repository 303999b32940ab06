"""The clipping norm that follows a quantile, and what it costs.

Shapes: B patients.
"""

import math

import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.privacy.adaptive_clip import AdaptiveClip
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.secret_source import OperatingSystemSource


def mechanism(noise_multiplier: float = 1.0, expected_batch: float = 64.0, clip: float = 1.0) -> PatientMechanism:
    return PatientMechanism(
        sampling_rate=0.1, steps=1, clip=clip, noise_multiplier=noise_multiplier, expected_batch=expected_batch
    )


@given(noise_multiplier=st.floats(0.05, 100.0), expected_batch=st.floats(1.0, 1e5))
def test_both_releases_together_have_the_declared_multiplier(noise_multiplier: float, expected_batch: float) -> None:
    clip = AdaptiveClip(mechanism(noise_multiplier, expected_batch), 0.5)
    # Two Gaussians are one: the inverse squares of what their noise is of the sensitivity add up. The count's is 1/2.
    joint = (clip.noise_multiplier**-2 + (clip.deviation / 0.5) ** -2) ** -0.5
    assert math.isclose(joint, noise_multiplier, rel_tol=1e-9)
    assert noise_multiplier < clip.noise_multiplier <= 1.0328 * noise_multiplier


def test_an_independent_accountant_agrees_on_the_cost() -> None:
    """Both releases, composed over ten steps, against ten of the declared mechanism."""
    clip = AdaptiveClip(mechanism(2.0), 0.5)
    both = dp_event.ComposedDpEvent(
        [dp_event.GaussianDpEvent(clip.noise_multiplier), dp_event.GaussianDpEvent(2 * clip.deviation)]
    )
    declared = dp_event.GaussianDpEvent(2.0)
    epsilons = [
        PLDAccountant().compose(dp_event.SelfComposedDpEvent(event, 10)).get_epsilon(1e-3)
        for event in (both, declared)
    ]
    assert math.isclose(*epsilons, rel_tol=1e-3)


def test_without_a_quantile_nothing_is_released_and_nothing_moves() -> None:
    class NoSource:
        secret = True

        def bits(self, count: int) -> torch.Tensor:
            raise AssertionError("nothing may be drawn")

    clip = AdaptiveClip(mechanism(1.3), 0.0)
    clip.update(5.0, NoSource())
    assert (clip.clip, clip.noise_multiplier) == (1.0, 1.3)


@pytest.mark.parametrize("start", [0.01, 100.0])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_it_finds_the_quantile(start: float, quantile: float) -> None:
    norms_B = torch.linspace(0.0, 2.0, 1001)[1:]
    clip, source = AdaptiveClip(mechanism(1.0, 1000.0, start), quantile), OperatingSystemSource()
    for _ in range(200):
        below = int((norms_B <= clip.clip).sum())
        clip.update(below - 0.5 * len(norms_B), source)
    assert abs(clip.clip / (2.0 * quantile) - 1) < 0.1


def test_the_count_is_noised() -> None:
    """With nobody there the norm walks at random, by as much as the noise says."""
    source, logs = OperatingSystemSource(), []
    for _ in range(3000):
        clip = AdaptiveClip(mechanism(4.0, 16.0), 0.5)
        clip.update(0.0, source)
        logs.append(math.log(clip.clip))
    expected = 0.2 * 8.0 / 16.0
    assert abs(float(torch.tensor(logs).std()) / expected - 1) < 6 * (0.5 / 3000) ** 0.5
