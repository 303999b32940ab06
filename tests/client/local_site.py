"""A site folder whose every modality has a local encoder, one of each kind, for any patients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.client.conftest import SiteFolder

STUDY = """
[study]
name = "own"
[label]
name = "disease"
classes = ["absent", "present"]
[[modality]]
name = "scan"
kind = "tabular"
encoder = "local"
[[modality]]
name = "text"
kind = "embedding"
encoder = "local"
[[modality]]
name = "image"
kind = "volume"
encoder = "local"
[[modality]]
name = "vitals"
kind = "sequence"
encoder = "local"
longest = 4
"""

MANIFEST = """
[site]
name = "own-hospital"
id = "patient"
patients = "patients.csv"
[public]
patients = 6
full_modality = true
[[modality]]
name = "scan"
file = "scan.csv"
[[modality.column]]
name = "volume"
type = "numeric"
unit = "ml"
range = [0, 100]
[[modality.column]]
name = "device"
type = "categorical"
categories = ["A", "B"]
[[modality]]
name = "text"
file = "text.npz"
range = [-3, 3]
[[modality]]
name = "image"
file = "image.csv"
shape = [8, 8, 8]
range = [0, 8]
[[modality]]
name = "vitals"
file = "vitals.csv"
time_range = [0, 48]
[[modality.column]]
name = "rate"
type = "numeric"
range = [20, 250]
"""

SCALES = {
    "modality.scan.column.volume.range": "range = [0, 100]\n",
    "modality.text.range": "range = [-3, 3]\n",
    "modality.image.range": "range = [0, 8]\n",
    "modality.vitals.time_range": "time_range = [0, 48]\n",
    "modality.vitals.column.rate.range": "range = [20, 250]\n",
}
"""Where each scale is declared, and by which line."""

SPLITS = ("train", "train", "train", "validation", "test")
COHORT = {f"p{number}": number for number in range(10)}
"""Patients, each with the seed of all that is known of them."""


def write_local_site(folder: Path, patients: Mapping[str, int]) -> SiteFolder:
    """The folder with these patients; all of one are drawn from their seed, and their split follows from it."""
    site = SiteFolder(folder)
    (folder / "images").mkdir(parents=True)
    tables = {
        "patients.csv": ["patient,disease,split"],
        "scan.csv": ["patient,volume,device"],
        "image.csv": ["patient,path"],
        "vitals.csv": ["patient,time,rate"],
    }
    vectors = []
    for patient, seed in patients.items():
        generator = np.random.default_rng(seed)
        label = ("absent", "present")[seed % 2]
        tables["patients.csv"].append(f"{patient},{label},{SPLITS[seed % len(SPLITS)]}")
        tables["scan.csv"].append(f"{patient},{generator.uniform(0, 100)},{'AB'[generator.integers(2)]}")
        tables["image.csv"].append(f"{patient},images/{patient}.npy")
        for time, rate in zip(generator.uniform(0, 48, 3 + seed % 4), generator.uniform(20, 250, 7), strict=False):
            tables["vitals.csv"].append(f"{patient},{time},{rate}")
        vectors.append(generator.normal(size=5))
        np.save(folder / "images" / f"{patient}.npy", generator.uniform(0, 8, (8, 8, 8)).astype(np.float32))
    np.savez(folder / "text.npz", ids=np.array(list(patients), dtype=str), values=np.array(vectors))
    for name, lines in tables.items():
        site.write(name, "\n".join([*lines, ""]))
    site.write("study.toml", STUDY)
    site.write("site.toml", MANIFEST)
    return site
