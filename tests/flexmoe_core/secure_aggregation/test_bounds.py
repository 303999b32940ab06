import pytest

from flexmoe_core.privacy.settings import SecureAggregation
from flexmoe_core.secure_aggregation.bounds import (
    findings_of_parameters,
    least_contributors,
    smallest_sum,
    smallest_threshold,
)
from flexmoe_core.update import MAGNITUDE_BITS, MAX_SITES, SCALE_BITS


def words(sites: int, threshold: int, colluding: int = 0) -> str:
    settings = SecureAggregation(threshold=threshold, colluding=colluding)
    return " ".join(finding.what for finding in findings_of_parameters(settings, sites))


@pytest.mark.parametrize("colluding", [0, 1, 3])
@pytest.mark.parametrize("sites", range(5, 25))
def test_the_smallest_threshold_is_the_first_above_half(sites: int, colluding: int) -> None:
    t = smallest_threshold(sites, colluding)
    assert 2 * t > sites + colluding >= 2 * (t - 1)
    if t <= sites:
        assert not words(sites, t, colluding)
    if t - 1 > max(colluding, 1):
        assert "not above half" in words(sites, t - 1, colluding)


def test_more_is_asked_than_there_are_sites() -> None:
    assert "there are 4 sites" in words(4, 5)


def test_a_sum_that_could_wrap_around_is_refused() -> None:
    assert MAX_SITES << (SCALE_BITS + MAGNITUDE_BITS) < 2**63
    assert not words(MAX_SITES, MAX_SITES)
    assert "wrap around" in words(MAX_SITES + 1, MAX_SITES)


def test_two_sites_of_which_one_colludes_hide_nothing() -> None:
    assert "single honest site" in words(2, 2, 1)


def test_sums_that_lies_can_reach_have_at_least_two_sites_and_at_most_the_survivors_without_colluders() -> None:
    for sites in range(2, 21):
        for colluding in range(3):
            for threshold in range(max(smallest_threshold(sites, colluding), 2), sites + 1):
                settings = SecureAggregation(threshold=threshold, colluding=colluding)
                if sites - colluding < 2 or threshold <= colluding:
                    continue
                assert 2 <= smallest_sum(settings, sites) <= threshold - colluding


@pytest.mark.parametrize(
    ("sites", "threshold", "colluding", "smallest", "contributors"),
    [(4, 3, 0, 3, 3), (4, 3, 1, 2, 4), (4, 4, 1, 3, 3), (5, 3, 0, 2, 4), (10, 7, 0, 6, 5), (10, 7, 2, 4, 7)],
)
def test_some_parameters(sites: int, threshold: int, colluding: int, smallest: int, contributors: int) -> None:
    settings = SecureAggregation(threshold=threshold, colluding=colluding)
    assert smallest_sum(settings, sites) == smallest
    assert least_contributors(settings, sites) == contributors
