"""The mean of the global state over rounds, later ones counting more: what a run ends with.

Small cohorts make single rounds noisy; their mean is a better model than the last one (Polyak averaging).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]


class RoundAverage:
    """Exponentially weighted mean, exact from the first round on: weights decay^age, divided by their sum."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._weight = 0.0
        self._sum: dict[str, np.ndarray] = {}

    def add(self, state: State) -> None:
        """Count one more round's state."""
        self._weight = self._decay * self._weight + 1.0
        for name, value in state.items():
            self._sum[name] = self._decay * self._sum.get(name, np.float64(0.0)) + value.astype(np.float64)

    def mean(self) -> dict[str, np.ndarray]:
        """The mean so far, float32; at least one round must have been added."""
        return {name: (value / self._weight).astype(np.float32) for name, value in self._sum.items()}

    def state_arrays(self) -> dict[str, np.ndarray]:
        """All that the next call depends on, for a checkpoint."""
        return {"weight": np.array(self._weight)} | {f"sum.{name}": value for name, value in self._sum.items()}

    def load_state_arrays(self, arrays: State) -> None:
        """Continue from what ``state_arrays`` gave."""
        self._weight = float(arrays["weight"])
        self._sum = {
            name.removeprefix("sum."): value.copy() for name, value in arrays.items() if name.startswith("sum.")
        }
