"""The data sets of a benchmark: which patients a seed gives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flexmoe_core.validation import FrozenModel
from simulations.datasets import multiple_features, uci_heart
from simulations.datasets.multiple_features import MultipleFeatures, load_multiple_features
from simulations.datasets.site_folders import PooledPatients
from simulations.datasets.synthetic import SyntheticFederation, generate
from simulations.datasets.uci_heart import Protocol, load_uci_heart

Share = Annotated[float, Field(ge=0, lt=1)]


class UciHeart(FrozenModel):
    """Four real hospitals, six modalities, missing as they truly are."""

    dataset: Literal["uci-heart"] = "uci-heart"
    protocol: Protocol
    validation: Share

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"uci-heart, protocol {self.protocol}"

    @property
    def redrawn(self) -> float:
        """The share of the same patients that each seed tests on anew."""
        return uci_heart.TEST_SHARE if self.protocol == "all" else 0.0

    def load(self, seed: int) -> PooledPatients:
        """The patients and their split."""
        return load_uci_heart(self.protocol, seed, self.validation)


class Digits(FrozenModel):
    """Six views of handwritten digits, dealt to sites, views missing at random."""

    dataset: Literal["multiple-features"] = "multiple-features"
    sites: int = Field(ge=1)
    missing: float = Field(ge=0, le=1)
    validation: Share

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"multiple-features, {100 * self.missing:.3g}% missing"

    @property
    def redrawn(self) -> float:
        """The share of the same patients that each seed tests on anew."""
        return multiple_features.TEST_SHARE

    def load(self, seed: int) -> PooledPatients:
        """The patients and their split."""
        wanted = MultipleFeatures(sites=self.sites, missing=self.missing, validation=self.validation, seed=seed)
        return load_multiple_features(wanted)


class Synthetic(FrozenModel):
    """Generated patients whose label needs every modality."""

    dataset: Literal["synthetic"] = "synthetic"
    sites: int = Field(ge=1)
    modalities: int = Field(ge=1)
    patients_per_site: int = Field(ge=1)
    missing: float = Field(ge=0, le=1)

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"synthetic, {100 * self.missing:.3g}% missing"

    @property
    def redrawn(self) -> float:
        """Every seed has patients of its own."""
        return 0.0

    def load(self, seed: int) -> PooledPatients:
        """The patients and their split."""
        sizes = self.model_dump(exclude={"dataset"})
        return generate(SyntheticFederation(**sizes, classes=2, seed=seed))


DataSet = Annotated[UciHeart | Digits | Synthetic, Field(discriminator="dataset")]
