"""The privacy settings of a run: what protects patients, what protects hospitals, and whether sums are masked.

They travel with every request, so that a site checks them against its own policy before it reads a patient.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flexmoe_core.validation import FrozenModel

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class PatientPrivacy(FrozenModel):
    """Patient-level differential privacy by DP-SGD (Abadi et al. 2016): add or remove one patient of one site.

    (epsilon, delta) is the whole run's guarantee at each site, the release of metrics included.
    """

    epsilon: Positive
    delta: Probability = 1e-3
    clip: Positive = Field(default=1.0, description="L2 norm of what one patient adds to the sum of a step")
    quantile: float = Field(
        default=0.0, ge=0, lt=1, description="adapt the clipping norm to this quantile of the norms; 0: keep it"
    )
    noise: Literal["site", "uniform"] = Field(
        default="site", description="site: as much as each site's own size needs; uniform: what the smallest needs"
    )
    spare_rounds: int = Field(default=2, ge=0, description="rounds that may be computed again within the guarantee")
    release_share: float = Field(
        default=0.2, ge=0, lt=1, description="of epsilon that the final metrics alone would cost; 0: none released"
    )


class SitePrivacy(FrozenModel):
    """Site-level differential privacy (McMahan et al. 2018): replace all that one site sends in a run by nothing.

    ``cohort`` is the public number of sites: sums are divided by it, whoever answers.
    """

    epsilon: Positive
    delta: Probability = 1e-2
    clip: Positive = Field(default=1.0, description="L2 norm of one site's joint delta")
    cohort: int = Field(ge=1)


class SecureAggregation(FrozenModel):
    """Masked sums (Bonawitz et al. 2017): the coordinator learns the sum of the updates and none of them.

    ``threshold`` sites can finish a sum; ``colluding`` sites may tell each other and the coordinator all they know.
    """

    threshold: int = Field(ge=2)
    colluding: int = Field(default=0, ge=0)
    rows: Literal["counted", "declared"] = Field(
        default="counted",
        description="released: counted, those that enough sites have patients for; declared, all of study.toml's",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.threshold <= self.colluding:
            raise ValueError("threshold must be above the number of colluding sites")
        return self


class PrivacySettings(FrozenModel):
    """Each protection alone, or together; none by default."""

    patient: PatientPrivacy | None = None
    site: SitePrivacy | None = None
    secure_aggregation: SecureAggregation | None = None
