"""Patients as the flat rows that logistic regression takes.

Every column keeps its own missing flag, which is also set for patients who lack its whole modality.
Shapes: B patients, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from client.site_data import SiteData
from flexmoe_core.cohort import Cohort
from flexmoe_core.features import MISSING_CODE, encode
from flexmoe_core.scores import FloatArray
from flexmoe_core.study import Column, NumericColumn, Study


def flat_features(
    cohort: Cohort, study: Study, columns: Mapping[str, Sequence[Column]], modalities: Sequence[str]
) -> FloatArray:
    """(B, F) float64 of those of some modalities that the site has columns for."""
    observed_BM = cohort.observed_BM.numpy()
    parts = [np.zeros((len(cohort), 0))]
    for name in modalities:
        if name in cohort.inputs:
            observed_B1 = observed_BM[:, [study.modality_names.index(name)]]
            parts.append(np.where(observed_B1, cohort.inputs[name].double().numpy(), all_missing(columns[name])))
    return np.hstack(parts)


def all_missing(columns: Sequence[Column]) -> FloatArray:
    """(F,) what a modality's features are where every value is missing."""
    parts = [
        encode(column, torch.tensor([math.nan if isinstance(column, NumericColumn) else MISSING_CODE])).double()
        for column in columns
    ]
    missing_F: FloatArray = torch.cat(parts, dim=1)[0].numpy()
    return missing_F


def site_features(data: SiteData, study: Study, splits: Sequence[str]) -> FloatArray:
    """(B, F) of one hospital's patients, one split after the other: all modalities of the study."""
    return _features(data, study, splits, study.modality_names)


def pooled_features(sites: Mapping[str, SiteData], study: Study, splits: Sequence[str]) -> dict[str, FloatArray]:
    """(B, F) by hospital, the same F everywhere.

    A modality with a local encoder has other columns at each hospital, so it has a block for each, zero elsewhere.
    """
    shared = [modality.name for modality in study.modalities if modality.encoder == "shared"]
    local = [modality.name for modality in study.modalities if modality.encoder == "local"]
    shared_BF = {name: _features(data, study, splits, shared) for name, data in sites.items()}
    local_BF = {name: _features(data, study, splits, local) for name, data in sites.items()}
    width = sum(own_BF.shape[1] for own_BF in local_BF.values())
    pooled, begin = {}, 0
    for name, own_BF in local_BF.items():
        blocks_BF = np.zeros((len(own_BF), width))
        end = begin + own_BF.shape[1]
        blocks_BF[:, begin:end] = own_BF
        pooled[name], begin = np.hstack([shared_BF[name], blocks_BF]), end
    return pooled


def _features(data: SiteData, study: Study, splits: Sequence[str], modalities: Sequence[str]) -> FloatArray:
    return np.vstack([flat_features(data.cohorts[split], study, data.columns, modalities) for split in splits])
