"""The whole protocol: sums come back whole, whoever drops out; and what an onlooker has says nothing of a vector."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.secure_aggregation import participant as participant_module
from flexmoe_core.secure_aggregation.keys import self_mask_key
from flexmoe_core.secure_aggregation.streams import Vector, add_stream
from flexmoe_core.secure_aggregation.unmasking import Unmasking
from flexmoe_core.secure_aggregation.vector import Layout
from tests.flexmoe_core.secure_aggregation.sites import RECEIVED, Sites, make_sites, random_vectors

NUMBERS = 50
SUBSETS = st.sets(st.integers(0, 4), max_size=3)


def total(vectors: dict[str, Vector], names: list[str]) -> Vector:
    return np.sum([vectors[name] for name in names], axis=0, dtype=np.uint64)


@settings(max_examples=30, deadline=None)
@given(SUBSETS, SUBSETS, SUBSETS, SUBSETS, st.integers(4, 6))
def test_drop_outs_at_every_stage_are_recovered_down_to_the_threshold(
    no_keys: set[int], no_shares: set[int], silent: set[int], no_answer: set[int], threshold: int
) -> None:
    with tempfile.TemporaryDirectory() as path:
        sites = make_sites(Path(path), 6, threshold)
        vectors = random_vectors(sites.participants, NUMBERS)
        gone = [[f"site-{index:02d}" for index in part] for part in (no_keys, no_shares, silent, no_answer)]
        left = [6 - len(set().union(*gone[: part + 1])) for part in range(4)]
        place = sites.place()
        if left[0] < threshold:
            with pytest.raises(MaskingRefused, match="announced keys"):
                sites.exchange(place, gone[0])
            return
        sites.exchange(place, gone[0], gone[1])
        if left[1] < threshold:
            with pytest.raises(MaskingRefused, match="the cohort has"):
                sites.mask(place, vectors)
            return
        sites.mask(place, vectors, gone[2])
        if left[2] < threshold:
            with pytest.raises(MaskingRefused, match="sites masked"):
                sites.unmask(place)
            return
        if left[3] < threshold:
            with pytest.raises(MaskingRefused, match="right ones are needed"):
                sites.unmask(place, gone[3])
            return
        np.testing.assert_array_equal(sites.unmask(place, gone[3]), total(vectors, sites.survivors))


def test_a_site_that_sat_out_is_back_in_the_next_round(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, 4, 3)
    vectors = random_vectors(sites.participants, NUMBERS)
    for number, absent in ((1, ["site-02"]), (2, []), (3, ["site-00"])):
        place = sites.place(number)
        sites.exchange(place, no_shares=absent)
        sites.mask(place, vectors)
        np.testing.assert_array_equal(sites.unmask(place), total(vectors, sites.cohort))
        assert len(sites.cohort) == 4 - len(absent)


def test_one_wrong_share_does_not_cost_the_round(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, 5, 3)
    vectors, place = random_vectors(sites.participants, NUMBERS), sites.place()
    sites.exchange(place)
    sites.mask(place, vectors, ["site-04"])
    sites.unmask(place)
    liar = sites.answers["site-00"]
    wrong = dict.fromkeys(liar.seeds, "00" * 33)
    sites.answers["site-00"] = liar.model_copy(update={"seeds": wrong})
    total_V = total(sites.masked, sites.survivors)
    cohort = {name: sites.keys[name] for name in sites.cohort}
    Unmasking(cohort, sites.survivors, RECEIVED, 3, sites.roster).unmask(total_V, sites.answers)
    np.testing.assert_array_equal(total_V, total(vectors, sites.survivors))


def test_shares_that_cannot_be_opened_cost_their_sender_alone_nothing_to_others(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, 5, 3)
    vectors, place = random_vectors(sites.participants, NUMBERS), sites.place()
    sites.exchange(place)
    sites.sealed["site-01"]["site-00"] = bytes(94)
    sites.sealed["site-01"]["site-02"] = b"short"
    sites.mask(place, vectors)
    np.testing.assert_array_equal(sites.unmask(place), total(vectors, sites.cohort))
    assert "site-01" not in sites.answers["site-00"].seeds


def test_no_mask_repeats_over_rounds_attempts_pairs_and_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[bytes, str]] = []

    def noted(vector_V: Vector, key: bytes, sign: int) -> None:
        used.append((key, "adds" if sign > 0 else "subtracts"))
        add_stream(vector_V, key, sign)

    monkeypatch.setattr(participant_module, "add_stream", noted)
    sites = make_sites(tmp_path, 4, 3)
    vectors = random_vectors(sites.participants, 4)
    for attempt, number in ((1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)):
        place = sites.place(number, attempt)
        sites.exchange(place)
        sites.mask(place, vectors)
        sites.unmask(place)
    assert len(set(used)) == len(used)
    pairwise = {key for key, sign in used if sign == "subtracts"}
    assert len(pairwise) == 6 * 6  # 6 pairs in 6 places, each by one that adds and one that subtracts
    assert len({key for key, _ in used} - pairwise) == 6 * 4


def late_message(sites: Sites, place_number: int, vector_V: Vector) -> tuple[Vector, Vector]:
    """What the coordinator has of a dropped site's vector after it took off every mask that it can compute."""
    place = sites.place(place_number)
    sites.exchange(place)
    vectors = random_vectors(sites.participants, len(vector_V)) | {"site-01": vector_V}
    sites.mask(place, vectors, ["site-01"])
    sites.unmask(place)
    late = sites.masked["site-01"].copy()
    cohort = {name: sites.keys[name] for name in sites.cohort}
    unmasking = Unmasking(cohort, sites.survivors, RECEIVED, sites.threshold, sites.roster)
    private = unmasking._mask_key("site-01", sites.answers)
    for name in sites.survivors:
        key = participant_module.pair_mask_key(private, sites.keys["site-01"], sites.keys[name], RECEIVED)
        add_stream(late, key, -participant_module.pair_sign("site-01", name))
    return late, sites.masked["site-01"]


def test_the_seed_of_a_dropped_sites_self_mask_is_never_told(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, 4, 3)
    late_message(sites, 1, np.zeros(8, np.uint64))
    for answer in sites.answers.values():
        assert answer.seeds.keys() == {"site-00", "site-02", "site-03"}
        assert answer.mask_keys.keys() == {"site-01"}


def test_a_late_message_is_its_vector_under_a_self_mask_that_nobody_knows(tmp_path: Path) -> None:
    """All pairwise masks taken off, what is left is the vector and the self-mask; without that it is uniform."""
    sites = make_sites(tmp_path, 4, 3)
    seed = None
    original = participant_module.self_mask_key

    def noted(secret: bytes, site: str, place: object) -> bytes:
        nonlocal seed
        seed = secret if site == "site-01" else seed
        return original(secret, site, place)  # type: ignore[arg-type]

    participant_module.self_mask_key = noted
    try:
        zeros = np.zeros(20_000, np.uint64)
        late, _ = late_message(sites, 1, zeros)
    finally:
        participant_module.self_mask_key = original
    assert seed is not None
    by_byte = np.bincount(late.view(np.uint8), minlength=256)
    expected = late.nbytes / 256
    chi_squared = float(((by_byte - expected) ** 2 / expected).sum())
    assert chi_squared < 400  # 255 degrees of freedom: above 400 once in 10^8
    bits = np.unpackbits(late.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.02
    add_stream(late, self_mask_key(seed, "site-01", sites.place(1)), -1)
    np.testing.assert_array_equal(late, zeros)


def test_unequal_models_give_refusals_and_garbage(tmp_path: Path) -> None:
    sites, layout = make_sites(tmp_path, 4, 3), Layout((("x", (NUMBERS,)),))
    codes = np.arange(NUMBERS)
    vectors, place = {name: layout.encode({"x": codes}) for name in sites.participants}, sites.place()
    sites.exchange(place)
    sites.mask(place, vectors, received={"site-02": "d" * 64})
    with pytest.raises(MaskingRefused, match="another request"):
        sites.unmask(place)
    # even with every self-mask off, the masks with the odd site do not cancel, and the sum is seen to be none
    masked_V = total(sites.masked, sites.cohort)
    for name in sites.cohort:
        known = sites.participants[name].memory.find(place)
        assert known is not None and known.secrets is not None
        add_stream(masked_V, self_mask_key(bytes.fromhex(known.secrets.seed), name, place), -1)
    with pytest.raises(MaskingRefused, match="not a sum"):
        layout.decode(masked_V, 4)
