from __future__ import annotations

from server.settings import RunSettings, settings_with
from simulations.audits.protection import protection_of, titles_of

PRIVATE = ("method.losses.balance=0", "method.site.intercept=0", "method.site.regression=[]")


def settings(*changes: str) -> RunSettings:
    return settings_with([*PRIVATE, *changes])


def test_protections_have_names() -> None:
    masked = ("privacy.secure_aggregation.threshold=3", "privacy.secure_aggregation.rows=declared")
    both = settings("privacy.patient.epsilon=8", *masked)
    assert protection_of(settings().privacy) == "no protection"
    assert protection_of(both.privacy) == "patient DP, epsilon 8, secure aggregation"
    assert protection_of(settings("privacy.site.epsilon=3", "privacy.site.cohort=4").privacy) == "site DP, epsilon 3"


def test_runs_of_the_same_protection_are_told_apart_by_what_differs() -> None:
    runs = [
        settings(),
        settings("method.losses.rehearsal=0", "federation.rounds=9"),
        settings("privacy.patient.epsilon=1"),
    ]
    assert titles_of(runs) == [
        "no protection, rehearsal 1.0, rounds 40",
        "no protection, rehearsal 0.0, rounds 9",
        "patient DP, epsilon 1",
    ]
    assert titles_of([settings("seed=1")]) == ["no protection"]
