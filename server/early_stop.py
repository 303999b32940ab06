"""Early stopping on a pooled validation metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flexmoe_core.score_metrics import METRICS
from server.settings import EarlyStopSettings


class EarlyStop:
    """Says when ``patience`` rounds in a row have not improved the metric; a missing value is no improvement."""

    def __init__(self, settings: EarlyStopSettings) -> None:
        self._settings = settings
        self._best: float | None = None
        self._waited = 0

    def should_stop(self, value: float | None) -> bool:
        """Count one more round's metric."""
        if self._settings.patience == 0:
            return False
        if value is not None and (self._best is None or self._improves(value, self._best)):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        return self._waited >= self._settings.patience

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self._best, "waited": self._waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        self._best, self._waited = state["best"], state["waited"]

    def _improves(self, value: float, best: float) -> bool:
        higher_is_better = METRICS[self._settings.metric].higher_is_better
        return value > best if higher_is_better else value < best
