import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.datasets.splits import deal_to_sites, draw_stratified, split_column

SITES_AND_LABELS = st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("xy")), min_size=1, max_size=60)


def strata_of(rows: list[tuple[str, str]]) -> pd.DataFrame:
    ids = pd.Index([f"p{row}" for row in range(len(rows))], name="patient")
    return pd.DataFrame(rows, columns=["site", "label"], index=ids)


@settings(max_examples=40, deadline=None)
@given(rows=SITES_AND_LABELS, share=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_every_stratum_gives_its_share_and_no_patient_twice(
    rows: list[tuple[str, str]], share: float, seed: int
) -> None:
    strata = strata_of(rows)
    drawn = draw_stratified(strata, share, np.random.default_rng(seed))
    assert drawn.is_unique
    for _, stratum in strata.groupby(["site", "label"]):
        assert abs(len(stratum.index.intersection(drawn)) - share * len(stratum)) <= 0.5 + 1e-9


@settings(max_examples=20, deadline=None)
@given(rows=SITES_AND_LABELS, validation=st.floats(0, 0.99))
def test_test_patients_stay_and_nobody_is_lost(rows: list[tuple[str, str]], validation: float) -> None:
    strata = strata_of(rows)
    test = strata.index[::3]
    split = split_column(strata, test, validation, np.random.default_rng(0))
    assert list(split.index[split == "test"]) == list(test)
    assert list(split.index) == list(strata.index)
    assert set(split) <= {"train", "validation", "test"}


def test_no_share_draws_nobody() -> None:
    split = split_column(strata_of([("A", "x")] * 9), pd.Index([]), 0.0, np.random.default_rng(0))
    assert set(split) == {"train"}


@settings(max_examples=20, deadline=None)
@given(rows=SITES_AND_LABELS, sites=st.integers(1, 9), seed=st.integers(0, 99))
def test_sites_differ_by_one_patient_at_most(rows: list[tuple[str, str]], sites: int, seed: int) -> None:
    strata = strata_of(rows)
    dealt = deal_to_sites(strata, sites, np.random.default_rng(seed))
    assert list(dealt.index) == list(strata.index)
    names = [f"site-{place + 1}" for place in range(sites)]
    assert set(dealt) == set(names[: len(rows)])
    everyone = pd.Series("all", strata.index)
    for rows_of in (everyone, strata["site"], strata["site"] + strata["label"]):
        counts = pd.crosstab(rows_of, dealt).reindex(columns=names, fill_value=0)
        assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
