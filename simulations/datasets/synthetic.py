"""A small generated federation whose label needs every modality, for tests and first steps.

Shapes: B patients, M modalities, F columns of one modality.
"""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn, TabularModality
from flexmoe_core.randomness import numpy_generator
from flexmoe_core.study import MOST_MODALITIES, Label, Study
from flexmoe_core.validation import FrozenModel, validate
from simulations.datasets.modality_files import TabularData
from simulations.datasets.site_folders import PooledPatients, write_site_folders
from simulations.datasets.splits import draw_stratified, split_column

TEST_SHARE = 0.3
VALIDATION_SHARE = 0.15  # of the patients who are not for the test
LEVELS = ("low", "middle", "high")
SIGNALS = ("signal_1", "signal_2", "signal_3")
LIMIT = 4.0  # signals have unit variance; the few values beyond are cut
NOISE = 0.5  # standard deviation of the measurements' and of the label's own noise


class SyntheticFederation(FrozenModel):
    """What to generate. ``missing`` is the chance with which a patient lacks each modality."""

    sites: Annotated[int, Field(ge=1)]
    modalities: Annotated[int, Field(ge=1, le=MOST_MODALITIES)]
    patients_per_site: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=2)]
    missing: Annotated[float, Field(ge=0, le=1)]
    seed: int

    @property
    def study(self) -> Study:
        """All modalities have the same columns: three signals and a coarse level."""
        signals = [NumericColumn(name=name, range=(-LIMIT, LIMIT)) for name in SIGNALS]
        columns = (*signals, CategoricalColumn(name="level", categories=LEVELS))
        names = [f"modality_{m + 1}" for m in range(self.modalities)]
        return Study(
            name="synthetic",
            label=Label(name="label", classes=tuple(f"class_{k}" for k in range(self.classes))),
            modalities=tuple(TabularModality(name=name, encoder="shared", columns=columns) for name in names),
        )


def prepare_synthetic(
    out: Path, *, sites: int, modalities: int, patients_per_site: int, classes: int, missing: float, seed: int
) -> None:
    """Write a generated study and its sites as site folders into the new folder ``out``.

    ``missing``: the chance with which a patient lacks each modality; every patient keeps at least one. Same
    arguments, same bytes. InputError: ``out`` is not empty, or an argument outside its range.
    """
    wanted = {
        "sites": sites,
        "modalities": modalities,
        "patients_per_site": patients_per_site,
        "classes": classes,
        "missing": missing,
        "seed": seed,
    }
    write_site_folders(out, generate(validate(wanted, SyntheticFederation, "synthetic")))


def generate(federation: SyntheticFederation) -> PooledPatients:
    """The same patients as ``prepare_synthetic`` writes, in memory.

    Each patient has one hidden standard-normal number per modality; the modality shows it noisily, and the class
    is the quantile band in which their scaled sum, with noise, falls. So classes are about equally frequent,
    every modality tells something that no other does, and all of them together tell most.
    """
    study, generator = federation.study, numpy_generator(federation.seed, "synthetic")
    sites = [f"site-{s + 1}" for s in range(federation.sites)]
    ids = [f"{site}-{p + 1:04d}" for site in sites for p in range(federation.patients_per_site)]
    patient = pd.Index(ids, name="patient")

    hidden_BM = generator.standard_normal((len(ids), federation.modalities))
    score_B = hidden_BM.sum(axis=1) / np.sqrt(federation.modalities) + NOISE * generator.standard_normal(len(ids))
    bands_B = np.searchsorted(_band_limits(federation.classes, float(np.hypot(1, NOISE))), score_B)
    lacks_BM = _lacking(len(ids), federation.modalities, federation.missing, generator)
    modalities = {
        name: TabularData(_measure(hidden_B, generator).set_index(patient)[~lacks_B].reindex(patient))
        for name, hidden_B, lacks_B in zip(study.modality_names, hidden_BM.T, lacks_BM.T, strict=True)
    }

    labels = [study.label.classes[band] for band in bands_B]
    patients = pd.DataFrame({"site": np.repeat(sites, federation.patients_per_site), "label": labels}, patient)
    test = draw_stratified(patients, TEST_SHARE, generator)
    split = split_column(patients, test, VALIDATION_SHARE, generator)
    return PooledPatients(study, patients.assign(split=split), modalities)


def _measure(hidden_B: np.ndarray, generator: np.random.Generator) -> pd.DataFrame:
    """Noisy signals of the hidden number, of unit variance, and a noisy coarse level."""
    noise_BF = generator.standard_normal((len(hidden_B), len(SIGNALS) + 1))
    signal_BF = ((hidden_B[:, None] + NOISE * noise_BF) / np.hypot(1, NOISE)).clip(-LIMIT, LIMIT).round(4)
    table = pd.DataFrame(signal_BF[:, :-1], columns=list(SIGNALS))
    table["level"] = [LEVELS[band] for band in np.searchsorted(_band_limits(len(LEVELS), 1.0), signal_BF[:, -1])]
    return table


def _band_limits(bands: int, deviation: float) -> list[float]:
    """The inner limits that cut a centered normal distribution into equally likely bands."""
    return [NormalDist(0.0, deviation).inv_cdf(k / bands) for k in range(1, bands)]


def _lacking(patients: int, modalities: int, missing: float, generator: np.random.Generator) -> np.ndarray:
    """(B, M) bool: each lacked independently, except that one drawn modality stays where all would be."""
    lacks_BM = generator.random((patients, modalities)) < missing
    kept_B = generator.integers(modalities, size=patients)
    nothing_B = lacks_BM.all(axis=1)
    lacks_BM[nothing_B, kept_B[nothing_B]] = False
    return lacks_BM
