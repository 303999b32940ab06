from itertools import pairwise

import pytest

from server.report.learning import _apart
from server.report.records import duration, size
from server.report.tables import interval, number
from server.report.theme import SITE_COLORS, shortened, site_looks


def test_numbers_have_three_digits_and_a_true_minus() -> None:
    assert number(0.8894) == "0.889"
    assert number(-0.05) == "\N{MINUS SIGN}0.050"
    assert number(None) == "n/a"


def test_an_interval_below_zero_is_not_joined_by_a_dash() -> None:
    assert interval((0.1, 0.25)) == "0.100\N{EN DASH}0.250"
    assert interval((-0.1, 0.25)) == "\N{MINUS SIGN}0.100 to 0.250"


@pytest.mark.parametrize(("count", "shown"), [(999, "999 B"), (6_320_000, "6.32 MB"), (2 * 10**12, "2 TB")])
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.25, "0.25 s"), (59.99, "60 s"), (100, "1 min 40 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_hospitals_look_different_until_nobody_could_tell() -> None:
    few = site_looks([f"site-{place}" for place in range(len(SITE_COLORS))])
    assert len(set(few.values())) == len(SITE_COLORS)
    many = site_looks([f"site-{place}" for place in range(len(SITE_COLORS) + 1)])
    assert len(set(many.values())) == 1


def test_long_or_unprintable_names_fit_beside_a_plot() -> None:
    assert shortened("a" * 50, 10) == "a" * 9 + "\N{HORIZONTAL ELLIPSIS}"
    assert shortened("a\x00\nb") == "a  b"


def test_direct_labels_keep_their_order_and_distance() -> None:
    placed = _apart([0.0, 0.5, 0.5, 0.98, 0.99], 0.1)
    gaps = [high - low for low, high in pairwise(placed)]
    assert min(gaps) >= 0.1 - 1e-9
    assert placed[-1] <= 1.05
    assert placed[:2] == [0.0, 0.5]
