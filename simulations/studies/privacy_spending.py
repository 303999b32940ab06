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
    """None where the run guarantees nothing."""
    privacy = store.settings.privacy
    if privacy.patient is None and privacy.site is None:
        return None
    raise NotImplementedError
