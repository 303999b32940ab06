"""Generated patients with a scan and two measurements: small volumes, for tests and first steps.

Shapes: B patients, D, H, W voxels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from flexmoe_core.modalities.tabular import NumericColumn, TabularModality
from flexmoe_core.modalities.volume import VolumeModality
from flexmoe_core.randomness import numpy_generator
from flexmoe_core.study import Label, Study
from flexmoe_core.validation import FrozenModel, validate
from simulations.datasets.modality_files import ModalityData, TabularData, VolumeData
from simulations.datasets.site_folders import PooledPatients, write_site_folders
from simulations.datasets.splits import draw_stratified, split_column

NAME = "synthetic-scans"
TEST_SHARE = 0.3
VALIDATION_SHARE = 0.15  # of the patients who are not for the test
BLUR = 0.15  # standard deviation of a lesion, as a part of each axis
SCANNERS = 0.2  # by which the brightness of a hospital's images differs
NOISE = 0.2  # standard deviation of each voxel
MEASUREMENT_NOISE = 1.5
LIMIT = 4.0
SPACING = (2.0, 2.0, 2.0)


class SyntheticScans(FrozenModel):
    """What to generate. ``missing`` is the chance with which a patient lacks the scan."""

    sites: Annotated[int, Field(ge=1)]
    patients_per_site: Annotated[int, Field(ge=1)]
    side: Annotated[int, Field(ge=8, le=256)]
    missing: Annotated[float, Field(ge=0, le=1)]
    seed: int

    @property
    def study(self) -> Study:
        """A cubic scan and two noisy measurements, which everybody has."""
        columns = tuple(NumericColumn(name=name, range=(-LIMIT, LIMIT)) for name in ("marker_1", "marker_2"))
        scan = VolumeModality(
            name="scan", encoder="shared", voxels=(self.side,) * 3, range=(-0.5, 1.5), spacing=SPACING
        )
        return Study(
            name=NAME,
            label=Label(name="lesion", classes=("left", "right")),
            modalities=(scan, TabularModality(name="markers", encoder="shared", columns=columns)),
        )


def prepare_synthetic_scans(
    out: Path, *, sites: int, patients_per_site: int, side: int, missing: float, seed: int
) -> None:
    """Write a generated study and its sites as site folders into the new folder ``out``.

    ``side``: voxels along each axis of a scan. Same arguments, same bytes. InputError: ``out`` is not empty, or an
    argument outside its range.
    """
    wanted = {"sites": sites, "patients_per_site": patients_per_site, "side": side, "missing": missing, "seed": seed}
    write_site_folders(out, generate_scans(validate(wanted, SyntheticScans, NAME)))


def generate_scans(wanted: SyntheticScans) -> PooledPatients:
    """The same patients as ``prepare_synthetic_scans`` writes, in memory.

    Each patient's lesion is a blurred blob, somewhere in the left or the right half of the first axis: the class.
    The markers tell the class, too, but with more noise. Hospitals' scanners differ in brightness.
    """
    study, generator = wanted.study, numpy_generator(wanted.seed, NAME)
    sites = [f"site-{s + 1}" for s in range(wanted.sites)]
    ids = [f"{site}-{p + 1:04d}" for site in sites for p in range(wanted.patients_per_site)]
    patient = pd.Index(ids, name="patient")

    right_B = generator.random(len(ids)) < 0.5
    center_B3 = generator.uniform(0.2, 0.8, (len(ids), 3))
    center_B3[:, 0] = generator.uniform(0.15, 0.45, len(ids)) + 0.4 * right_B
    brightness_B = np.repeat(1 + SCANNERS * generator.standard_normal(wanted.sites), wanted.patients_per_site)
    lacks_B = generator.random(len(ids)) < wanted.missing
    scans = {
        name: _scan(brightness, center_3, wanted.side, generator)
        for name, center_3, brightness, lacks in zip(ids, center_B3, brightness_B, lacks_B, strict=True)
        if not lacks
    }
    signal_BF = np.where(right_B, 1.0, -1.0)[:, None] + MEASUREMENT_NOISE * generator.standard_normal((len(ids), 2))
    markers = pd.DataFrame(signal_BF.clip(-LIMIT, LIMIT).round(4), patient, ["marker_1", "marker_2"])

    labels = [study.label.classes[int(right)] for right in right_B]
    patients = pd.DataFrame({"site": np.repeat(sites, wanted.patients_per_site), "lesion": labels}, patient)
    test = draw_stratified(patients, TEST_SHARE, generator)
    split = split_column(patients, test, VALIDATION_SHARE, generator)
    modalities: dict[str, ModalityData] = {"scan": VolumeData(patient, scans), "markers": TabularData(markers)}
    return PooledPatients(study, patients.assign(split=split), modalities)


def _scan(brightness: float, center_3: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """(D, H, W) float32: a Gaussian blob in noise; its center is given in parts of an axis."""
    place_N = (np.arange(side) + 0.5) / side
    along_3N = np.exp(-0.5 * ((place_N - center_3[:, None]) / BLUR) ** 2)
    blob_DHW = brightness * np.einsum("d,h,w->dhw", *along_3N)
    scan_DHW: np.ndarray = blob_DHW + NOISE * generator.standard_normal((side, side, side))
    return scan_DHW.astype(np.float32)
