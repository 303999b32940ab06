"""Which numbers of sites, drop-outs and colluders a masked sum is safe and exact for."""

from __future__ import annotations

from collections.abc import Iterator

from flexmoe_core.privacy.settings import SecureAggregation
from flexmoe_core.update import MAX_SITES
from flexmoe_core.validation import Finding

PLACE = "privacy.secure_aggregation"


def findings_of_parameters(settings: SecureAggregation, sites: int) -> Iterator[Finding]:
    """What is wrong with the settings for a roster of so many sites."""
    t, c = settings.threshold, settings.colluding
    if sites > MAX_SITES:
        what = f"cannot add {sites} sites: the sum of more than {MAX_SITES} updates would wrap around"
        yield Finding(what, "Split the federation.", PLACE)
    if t > sites:
        what = f"is {t}, and there are {sites} sites on the roster"
        yield Finding(what, f"Set it to {smallest_threshold(sites, c)} to {sites}.", f"{PLACE}.threshold")
    elif t < smallest_threshold(sites, c):
        what = (
            f"is {t}, which is not above half of the {sites} sites and {c} colluding ones: "
            "the coordinator could ask some for one share of a site and others for the other"
        )
        yield Finding(what, f"Set it to {smallest_threshold(sites, c)} or more.", f"{PLACE}.threshold")
    elif smallest_sum(settings, sites) < 2:
        what = f"leaves sums of a single honest site with {c} colluding ones"
        yield Finding(what, "More sites are needed.", f"{PLACE}.threshold")


def smallest_threshold(sites: int, colluding: int) -> int:
    """The smallest t > (n + c) / 2: two groups of t - c honest sites have one in common.

    An honest site hands out one kind of share of each site, so nobody ever has t shares of both kinds.
    """
    return (sites + colluding) // 2 + 1


def smallest_sum(settings: SecureAggregation, sites: int) -> int:
    """Honest sites in any sum that a coordinator can obtain, even one that tells different sites different stories.

    A site is in a sum if t - c honest sites give a share of its self-mask: they share its cohort of m sites (all
    survivors sign it), g honest sites in all. It is taken out of the sum if t - c honest sites call it dropped; each
    calls at most m - t of its cohort so, and n - t where it was told of another cohort, which fewer than t - c were.
    The least over all cohorts and groups; without such lies it is t - c.
    """
    n, t, c = sites, settings.threshold, settings.colluding
    return min(
        m - traitors - _most_taken_out(n, t, c, m, g)
        for m in range(t, n + 1)
        for traitors in range(c + 1)
        for g in range(t - c, min(m - traitors, n - c) + 1)
    )


def _most_taken_out(n: int, t: int, c: int, m: int, g: int) -> int:
    elsewhere = n - c - g
    by_votes = (g * (m - t) + elsewhere * (n - t)) // (t - c)
    needed_of_group = t - c - elsewhere  # votes for each that only the group can give
    return min(by_votes, g * (m - t) // needed_of_group) if needed_of_group > 0 else by_votes


def least_contributors(settings: SecureAggregation, sites: int) -> int:
    """k = (n - t) + 2 + c: drop-outs and colluders never leave a row with a single honest contributor."""
    return sites - settings.threshold + 2 + settings.colluding
