"""Patients as the flat rows that logistic regression takes.

Every column of a table keeps its own missing flag, which is also set for patients who lack the whole table; a vector
has one flag, and so have the mean intensities of a volume's 4 x 4 x 4 cells. Each kind of modality has a function in
``FLATTENERS``.
Shapes: B patients, F features, D, H, W voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from client.site_data import SiteData
from flexmoe_core.cohort import Cohort
from flexmoe_core.encoders.volume import coarse_means
from flexmoe_core.features import MISSING_CODE, encode
from flexmoe_core.modalities.base import Preprocessing
from flexmoe_core.modalities.sequence import PRESENT, TIME_CHANNELS, SequencePreprocessing
from flexmoe_core.modalities.tabular import Column, NumericColumn, TabularPreprocessing
from flexmoe_core.scores import FloatArray
from flexmoe_core.study import Study

Flattener = Callable[[Preprocessing, Tensor, Tensor], Tensor]
"""Of one modality: its preprocessing, its (B, ...) inputs and (B,) bool who has it, to (B, F) float64."""


def flat_features(
    cohort: Cohort, study: Study, preprocessing: Mapping[str, Preprocessing], modalities: Sequence[str]
) -> FloatArray:
    """(B, F) float64 of those of some modalities that the site has inputs for."""
    parts = [np.zeros((len(cohort), 0))]
    for name in modalities:
        if name in cohort.inputs:
            observed_B = cohort.observed_BM[:, study.modality_names.index(name)]
            flatten = FLATTENERS[preprocessing[name].kind]
            parts.append(flatten(preprocessing[name], cohort.inputs[name], observed_B).numpy())
    return np.hstack(parts)


def all_missing(columns: Sequence[Column]) -> Tensor:
    """(F,) what a table's features are where every value is missing."""
    parts = [
        encode(column, torch.tensor([math.nan if isinstance(column, NumericColumn) else MISSING_CODE])).double()
        for column in columns
    ]
    return torch.cat(parts, dim=1)[0]


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
    return np.vstack([flat_features(data.cohorts[split], study, data.preprocessing, modalities) for split in splits])


def _flat_table(preprocessing: Preprocessing, x_BF: Tensor, observed_B: Tensor) -> Tensor:
    assert isinstance(preprocessing, TabularPreprocessing)
    return x_BF.double().where(observed_B[:, None], all_missing(preprocessing.columns))


def _flat_vector(_: Preprocessing, x_BF: Tensor, observed_B: Tensor) -> Tensor:
    seen_BF = x_BF.double().masked_fill(~observed_B[:, None], 0.0)
    return torch.cat([seen_BF, (~observed_B)[:, None].double()], dim=1)


def _flat_volume(preprocessing: Preprocessing, x_BDHW: Tensor, observed_B: Tensor) -> Tensor:
    return _flat_vector(preprocessing, coarse_means(x_BDHW), observed_B)


def _flat_sequence(preprocessing: Preprocessing, x_BTC: Tensor, observed_B: Tensor) -> Tensor:
    """Of each column: the mean and the last of its values, their number, and a missing flag."""
    assert isinstance(preprocessing, SequencePreprocessing)
    step_BT = (x_BTC[..., PRESENT] == 1) & observed_B[:, None]
    parts = []
    for own_BTF in x_BTC[..., TIME_CHANNELS:].double().split([c.width for c in preprocessing.columns], dim=2):
        value_BTV, missing_BT1 = own_BTF[..., :-1], own_BTF[..., -1:]
        seen_BT1 = step_BT[..., None] & (missing_BT1 == 0)
        value_BTV = value_BTV.masked_fill(~seen_BT1, 0.0)
        count_B1 = seen_BT1.sum(dim=1).double()
        last_B = (seen_BT1[..., 0] * torch.arange(1, seen_BT1.shape[1] + 1)).argmax(dim=1)
        last_BV = value_BTV[torch.arange(len(last_B)), last_B]
        mean_BV = value_BTV.sum(dim=1) / count_B1.clamp(min=1)
        parts += [mean_BV, last_BV, count_B1, (count_B1 == 0).double()]
    return torch.cat(parts, dim=1)


FLATTENERS: Mapping[str, Flattener] = MappingProxyType(
    {"tabular": _flat_table, "embedding": _flat_vector, "volume": _flat_volume, "sequence": _flat_sequence}
)
