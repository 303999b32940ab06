"""Options that the commands ``flexmoe-sim audit ...`` share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from simulations.audits.data import AuditData
from simulations.benchmark_data import Synthetic, UciHeart


class DataName(StrEnum):
    """Whose patients are attacked."""

    uci_heart = "uci-heart"
    synthetic = "synthetic"


Data = Annotated[DataName, typer.Option(help="uci-heart: 920 real patients. synthetic: generated ones.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws members, generated patients and initial weights.")]
Processes = Annotated[int, typer.Option(min=0, help="Runs beside each other; 0 or 1: one after the other.")]
Sites = Annotated[int, typer.Option(min=1, help="Hospitals of generated patients.")]
Modalities = Annotated[int, typer.Option(min=1, help="Modalities of generated patients.")]
PatientsPerSite = Annotated[int, typer.Option(min=4, help="Generated patients of each hospital.")]
Missing = Annotated[float, typer.Option(min=0, max=0.99, help="Chance of a generated patient to lack a modality.")]


def data_of(name: DataName, sites: int, modalities: int, patients_per_site: int, missing: float) -> AuditData:
    """The named patients; what is said of generated ones is ignored for real ones."""
    if name is DataName.uci_heart:
        return UciHeart(protocol="all", validation=0.0)
    return Synthetic(sites=sites, modalities=modalities, patients_per_site=patients_per_site, missing=missing)
