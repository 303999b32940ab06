"""Which patients are for training, which for validation, which for the test, and at which site they are."""

from __future__ import annotations

import numpy as np
import pandas as pd

from flexmoe_core.errors import InputError, Problem


def draw_stratified(strata: pd.DataFrame, share: float, generator: np.random.Generator) -> pd.Index:
    """A share of the patients, drawn from every stratum alike.

    ``strata`` has one row per patient; patients who agree in all columns form a stratum. Each gives its share
    rounded to whole patients, so a stratum of one or two may give none.
    """
    drawn: list[str] = []
    for _, stratum in strata.groupby(list(strata.columns), sort=True, observed=True):
        count = int(share * len(stratum) + 0.5)
        drawn.extend(stratum.index[np.sort(generator.permutation(len(stratum))[:count])])
    return pd.Index(drawn, name=strata.index.name)


def split_column(
    strata: pd.DataFrame, test: pd.Index, validation: float, generator: np.random.Generator
) -> pd.Series:
    """``train``, ``validation`` or ``test`` per patient: the given test patients, and a share of all others.

    InputError: a share outside [0, 1).
    """
    if not 0 <= validation < 1:
        what = f"should be at least 0 and below 1, not {validation:g}"
        raise InputError([Problem("settings", "validation", what, "0.15 is usual; 0 takes none.")])
    split = pd.Series("train", index=strata.index)
    others = strata.drop(index=test)
    split[test] = "test"
    split[draw_stratified(others, validation, generator)] = "validation"
    return split


def deal_to_sites(strata: pd.DataFrame, sites: int, generator: np.random.Generator) -> pd.Series:
    """``site-1`` to ``site-<sites>`` per patient: shuffled, and dealt in turn through one stratum after the other.

    The strata come in the order of their columns, so the sites differ by one patient at most in every stratum, in
    every value of the first column, and in all.
    """
    shuffled = strata.iloc[generator.permutation(len(strata))]
    dealt = shuffled.sort_values(list(strata.columns), kind="stable").index
    names = [f"site-{place % sites + 1}" for place in range(len(dealt))]
    return pd.Series(names, dealt).reindex(strata.index)
