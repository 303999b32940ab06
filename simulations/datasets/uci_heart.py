"""The UCI heart-disease patients: four hospitals that measured different things, with their true missingness.

Source and license: data/ATTRIBUTION.md. The test patients of protocol ``flamby`` are those of FLamby's
Fed-Heart-Disease (Ogier du Terrail et al., NeurIPS 2022), which drops three columns and then every patient
with an empty cell; the 180 patients that it drops join training here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from flexmoe_core.modalities.tabular import TabularModality
from flexmoe_core.randomness import numpy_generator
from flexmoe_core.study import load_study
from simulations.datasets.modality_files import TabularData
from simulations.datasets.site_folders import PooledPatients, write_site_folders
from simulations.datasets.splits import draw_stratified, split_column

Protocol = Literal["flamby", "all"]

DATA = Path(__file__).parent / "data"

FLAMBY_DROPS = ["slope", "vessels", "thallium"]
FLAMBY_TRAIN = 0.66
FLAMBY_SEED = 43
FLAMBY_MIN_CLASS = 3  # FLamby does not stratify a hospital with fewer patients than this in a class
TEST_SHARE = 0.34

WHOLE_NUMBERS = ["age", "blood_pressure", "cholesterol", "peak_heart_rate", "vessels", "num"]
MISSING = {"resting": {"blood_pressure": [0]}, "labs": {"cholesterol": [0]}}  # nobody alive has either


def prepare_uci_heart(out: Path, protocol: Protocol, seed: int, validation: float = 0.15) -> None:
    """Write the study and its four hospitals as site folders into the new folder ``out``.

    ``protocol``: ``flamby`` tests on FLamby's 254 patients whatever the seed, ``all`` on 34% of all 920, drawn
    by hospital and label. ``validation``: share of the other patients to hold out of training. Same arguments,
    same bytes. InputError: ``out`` is not empty, or a share outside [0, 1).
    """
    write_site_folders(out, load_uci_heart(protocol, seed, validation))


def load_uci_heart(protocol: Protocol, seed: int, validation: float = 0.15) -> PooledPatients:
    """The same patients, split and modalities as ``prepare_uci_heart`` writes, in memory."""
    table = read_table()
    study = load_study(DATA / "uci_heart.toml")
    patients = pd.DataFrame({"site": table["hospital"], "disease": "absent"})
    patients.loc[table["num"] > 0, "disease"] = "present"
    if protocol == "flamby":
        test = flamby_test_patients(table)
    else:
        test = draw_stratified(patients, TEST_SHARE, numpy_generator(seed, "uci-heart", "test"))
    split = split_column(patients, test, validation, numpy_generator(seed, "uci-heart", "validation"))
    modalities = {
        modality.name: TabularData(
            table[[column.name for column in modality.columns]], MISSING.get(modality.name, {})
        )
        for modality in study.modalities
        if isinstance(modality, TabularModality)
    }
    return PooledPatients(study, patients.assign(split=split), modalities)


def read_table() -> pd.DataFrame:
    """The 920 patients as published (see data/ATTRIBUTION.md), indexed by ids like ``cleveland-0001``."""
    table = pd.read_csv(DATA / "uci_heart_disease.csv", dtype=dict.fromkeys(WHOLE_NUMBERS, "Int64"))
    number = table.groupby("hospital").cumcount() + 1
    table.index = pd.Index(table["hospital"] + "-" + number.map("{:04d}".format), name="patient")
    return table


def flamby_test_patients(table: pd.DataFrame) -> pd.Index:
    """FLamby's test patients: 104 of Cleveland, 89 of Hungary, 16 of Switzerland, 45 of V.A. Long Beach."""
    kept = table[table.drop(columns=FLAMBY_DROPS).notna().all(axis=1)]
    test: list[str] = []
    for _, hospital in kept.groupby("hospital", sort=False):
        present = (hospital["num"] > 0).astype(int)
        sizes = present.value_counts()
        stratified = len(sizes) > 1 and sizes.min() >= FLAMBY_MIN_CLASS
        _, drawn = train_test_split(
            np.arange(len(hospital)),
            train_size=FLAMBY_TRAIN,
            test_size=1.0 - FLAMBY_TRAIN,
            random_state=FLAMBY_SEED,
            shuffle=True,
            stratify=present if stratified else None,
        )
        test.extend(hospital.index[np.sort(drawn)])
    return pd.Index(test, name="patient")
