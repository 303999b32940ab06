"""What was done to patients' data, as an accountant must know it: mechanisms with public parameters only."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from flexmoe_core.validation import FrozenModel


class SampledGaussian(FrozenModel):
    """Steps of DP-SGD: each samples every patient with ``sampling_rate``, independently, and adds Gaussian noise.

    The noise has ``noise_multiplier`` times the L2 sensitivity of the sum as standard deviation. Adding or removing
    one patient is the neighborhood.
    """

    mechanism: Literal["sampled-gaussian"] = "sampled-gaussian"
    sampling_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(gt=0, allow_inf_nan=False)
    steps: int = Field(ge=1)


class Gaussian(FrozenModel):
    """Sums over all patients, released ``steps`` times with Gaussian noise."""

    mechanism: Literal["gaussian"] = "gaussian"
    noise_multiplier: float = Field(gt=0, allow_inf_nan=False)
    steps: int = Field(default=1, ge=1)


class Unprotected(FrozenModel):
    """A release without a guarantee, as when somebody may know the source of its noise: epsilon is infinite."""

    mechanism: Literal["unprotected"] = "unprotected"


PrivacyEvent = Annotated[SampledGaussian | Gaussian | Unprotected, Field(discriminator="mechanism")]


class PatientMechanism(FrozenModel):
    """How one site's round of DP-SGD is done. Everything here is public: it follows from settings and declared facts.

    ``clip`` bounds the L2 norm of a patient's gradient, ``expected_batch`` divides the noised sum.
    """

    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    clip: float = Field(gt=0)
    noise_multiplier: float = Field(gt=0)
    expected_batch: float = Field(gt=0)

    @property
    def event(self) -> SampledGaussian:
        """What a round costs, whatever happens in it."""
        return SampledGaussian(
            sampling_rate=self.sampling_rate, noise_multiplier=self.noise_multiplier, steps=self.steps
        )


def public_schedule(declared_patients: int, batch_size: int, epochs: int) -> tuple[float, int]:
    """Sampling rate and steps of a round, from the declared size alone: never from the number of patients."""
    return min(1.0, batch_size / declared_patients), epochs * math.ceil(declared_patients / batch_size)
