"""Mean-fill: whoever lacks a modality gets a typical patient's, as if it had been measured. A control, no method.

Typical is, column by column, the mean of the site's training patients, of a categorical column their most frequent
category; where the site has measured nobody, the mean over the sites' means or shares.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from simulations.datasets.modality_files import EmbeddingData, ModalityData, TabularData
from simulations.datasets.site_folders import PooledPatients


def mean_filled(pooled: PooledPatients) -> PooledPatients:
    """The same patients, none of whom lacks a modality that any training patient has.

    Single cells that are empty in a measured modality stay empty.
    """
    modalities = {name: _filled(data, pooled.patients) for name, data in pooled.modalities.items()}
    return replace(pooled, modalities=modalities)


def _filled(data: ModalityData, patients: pd.DataFrame) -> ModalityData:
    if isinstance(data, TabularData):
        measured = data.table.copy()
        for column, values in data.missing.items():
            measured[column] = measured[column].mask(measured[column].isin(values))
        return replace(data, table=_filled_table(data.table, measured, data.observed(), patients))
    if isinstance(data, EmbeddingData):
        return EmbeddingData(_filled_table(data.vectors, data.vectors, data.observed(), patients))
    raise TypeError(f"{type(data).__name__} has no mean")


def _filled_table(
    table: pd.DataFrame, measured: pd.DataFrame, observed: pd.Series, patients: pd.DataFrame
) -> pd.DataFrame:
    """The table with whole rows filled where nothing was observed; ``measured`` is empty in every missing cell."""
    training = observed & (patients["split"] == "train")
    sites = patients["site"]
    columns = {}
    for name in table.columns:
        typical = _typical(measured.loc[training, name], sites[training], pd.Index(sites.unique()))
        values = table[name].astype("float64") if pd.api.types.is_numeric_dtype(table[name]) else table[name]
        columns[name] = values.where(observed, sites.map(typical))
    return pd.DataFrame(columns, index=table.index)


def _typical(values: pd.Series, sites: pd.Series, all_sites: pd.Index) -> pd.Series:
    """By site: the mean of numbers, or the most frequent category (the first in order, where two are)."""
    if pd.api.types.is_numeric_dtype(values):
        means = values.astype("float64").groupby(sites).mean()
        return means.reindex(all_sites).fillna(means.mean())
    if not values.notna().any():
        return pd.Series(None, index=all_sites, dtype=object)
    shares = pd.crosstab(sites, values, normalize="index")
    return shares.reindex(all_sites).fillna(shares.mean()).idxmax(axis=1)
