"""The patients that audits attack: real hospitals or generated ones, dealt into members and non-members.

Shapes: B patients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from flexmoe_core.randomness import numpy_generator
from simulations.audits.roc import BoolArray
from simulations.benchmark_data import Synthetic, UciHeart
from simulations.datasets.site_folders import PooledPatients

AuditData = Annotated[UciHeart | Synthetic, Field(discriminator="dataset")]


def halves(patients: pd.DataFrame, seed: int, shadow: int) -> BoolArray:
    """Who is a member (B,): a random half of each site's patients, drawn anew for each ``shadow``."""
    is_member_B = np.zeros(len(patients), dtype=np.bool_)
    for site in patients["site"].unique():
        places = np.flatnonzero(patients["site"] == site)
        generator = numpy_generator(seed, "membership", shadow, str(site))
        is_member_B[generator.permutation(places)[: len(places) // 2]] = True
    return is_member_B


def with_declared_combinations(pooled: PooledPatients) -> PooledPatients:
    """The same patients, their combinations listed in study.toml, so that all protections have the same table.

    Under patient-level privacy nobody may announce any.
    """
    observed = pooled.observed().drop_duplicates()
    names = [tuple(observed.columns[row]) for row in observed.to_numpy(dtype=bool)]
    listed = tuple(sorted((one for one in names if one), key=lambda one: (-len(one), one)))
    return replace(pooled, study=pooled.study.model_copy(update={"combinations": listed}))


def trained_on(pooled: PooledPatients, is_member_B: BoolArray) -> PooledPatients:
    """The same patients: members are for training, all others for nothing but the attack."""
    split = np.where(is_member_B, "train", "test")
    return replace(pooled, patients=pooled.patients.assign(split=split))
