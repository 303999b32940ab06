"""What a run has spent, as its own records say."""

from __future__ import annotations

from dataclasses import dataclass

from server.run_store import RunStore


@dataclass(frozen=True)
class Spending:
    """The guarantee that holds: (epsilon, delta) of the site that has spent most."""

    epsilon: float
    delta: float


def spent_by(store: RunStore) -> Spending | None:
    """None where the run guarantees nothing. Raises CheckpointError where its metrics cannot be read."""
    privacy, facts = store.settings.privacy, store.metrics().get("privacy", {})
    if privacy.patient is not None:
        return Spending(max(facts["patient"]["spent"].values()), privacy.patient.delta)
    if privacy.site is not None:
        return Spending(facts["site"]["spent"], privacy.site.delta)
    return None
