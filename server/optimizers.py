"""The server's step on the mean delta: FedAvg and the adaptive rules of Reddi et al., "Adaptive Federated
Optimization" (ICLR 2021, arXiv 2003.00295, Algorithm 2), each row on its own clock.

Shapes: R rows of a tensor that carry a weight of their own, V of them with support in this round, F numbers in
each row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from flexmoe_core.errors import CheckpointError
from flexmoe_core.update import TensorSpec
from server.aggregation import Aggregate

Decay = Annotated[float, Field(ge=0, lt=1)]


class ServerOptimizerSettings(BaseModel):
    """Which rule, and its constants.

    ``learning_rate`` is 1 for ``avg`` and 0.01 for the adaptive rules unless set. ``epsilon`` is the paper's
    tau, the degree of adaptivity, in units of a delta. ``trust`` multiplies a row's step by W / (W + trust), W
    its summed support in patients, so that a row which few patients trained moves less; 0 turns it off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["avg", "adam", "yogi", "adagrad"] = "avg"
    learning_rate: PositiveFloat | None = None
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    epsilon: PositiveFloat = 1e-3
    trust: NonNegativeFloat = 0.0

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return self.learning_rate or (1.0 if self.name == "avg" else 0.01)

    def build(self, specs: Iterable[TensorSpec]) -> ServerOptimizer:
        """A fresh optimizer for these tensors."""
        return Averaging(specs, self) if self.name == "avg" else Adaptive(specs, self)


class ServerOptimizer(ABC):
    """Turns the state before a round and the round's mean delta into the state after it."""

    def __init__(self, specs: Iterable[TensorSpec], settings: ServerOptimizerSettings) -> None:
        self._specs = tuple(specs)
        self._settings = settings

    def step(self, state: Mapping[str, NDArray[np.float32]], aggregate: Aggregate) -> dict[str, NDArray[np.float32]]:
        """x + rate * trust * direction, in float64, for every row that has support; other rows keep their bits.

        Raises ``TypeError``, before anything moves, when a tensor of the state is not float32.
        """
        for spec in self._specs:
            if state[spec.name].dtype != np.float32:
                raise TypeError(f"{spec.name} is {state[spec.name].dtype}; shared tensors are float32")
        after: dict[str, NDArray[np.float32]] = {}
        for spec in self._specs:
            w_R = aggregate.support[spec.name]
            row_V = np.flatnonzero(w_R > 0)
            trust_V1 = (w_R[row_V] / (w_R[row_V] + self._settings.trust))[:, None]
            delta_VF = aggregate.delta[spec.name].reshape(spec.row_shape)[row_V]
            step_VF = self._settings.rate * trust_V1 * self._direction(spec, row_V, delta_VF)
            after[spec.name] = state[spec.name].copy()
            x_RF = after[spec.name].reshape(spec.row_shape)
            x_RF[row_V] = x_RF[row_V].astype(np.float64) + step_VF
        return after

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of all that the next step depends on, for a checkpoint."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what ``state_arrays`` gave.

        Raises ``CheckpointError`` when the arrays are those of another model or rule.
        """
        own = self._arrays()
        wrong = sorted(arrays.keys() ^ own.keys()) or [
            name
            for name, array in own.items()
            if (arrays[name].shape, arrays[name].dtype) != (array.shape, array.dtype)
        ]
        if wrong:
            raise CheckpointError(
                f"the server optimizer's state is that of another model or rule: {', '.join(wrong[:5])}"
            )
        for name, array in own.items():
            array[...] = arrays[name]

    @abstractmethod
    def _direction(
        self, spec: TensorSpec, row_V: NDArray[np.intp], delta_VF: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Where the given rows go (V, F); moves the optimizer's own state of these rows only."""

    @abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The optimizer's own state, to be read or overwritten in place."""


class Averaging(ServerOptimizer):
    """FedAvg: the direction is the mean delta, and there is no state."""

    def _direction(
        self, spec: TensorSpec, row_V: NDArray[np.intp], delta_VF: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return delta_VF

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}


class Adaptive(ServerOptimizer):
    """FedAdam, FedYogi and FedAdagrad with lazy rows: moments and count t of a row move when it has support.

    m = beta_1 m + (1 - beta_1) delta, v by the rule, direction m' / (sqrt(v') + epsilon). Moments start at zero
    and m' = m / (1 - beta_1^t), v' = v / (1 - beta_2^t), Adam's own bias correction. The paper has none: its
    m grows faster than sqrt(v), so its early steps reach twice the rate. A bank row first seen in round 50 would
    take those steps alone in a settled model; corrected, the scale of a step does not depend on a row's age.
    Adagrad's v is a sum, not a mean, so only its m is corrected. Yogi's v grows by addition, so the correction
    leaves its first 1 / (1 - beta_2) steps slightly short.
    Moments are float32, computed in float64 and rounded once a round.
    """

    def __init__(self, specs: Iterable[TensorSpec], settings: ServerOptimizerSettings) -> None:
        super().__init__(specs, settings)
        self._first = {spec.name: np.zeros(spec.shape, np.float32) for spec in self._specs}
        self._second = {spec.name: np.zeros(spec.shape, np.float32) for spec in self._specs}
        self._steps = {spec.name: np.zeros(spec.rows, np.int64) for spec in self._specs}

    def _direction(
        self, spec: TensorSpec, row_V: NDArray[np.intp], delta_VF: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        beta_1, beta_2 = self._settings.beta_1, self._settings.beta_2
        m_RF = self._first[spec.name].reshape(spec.row_shape)
        v_RF = self._second[spec.name].reshape(spec.row_shape)
        t_R = self._steps[spec.name]
        m_RF[row_V] = beta_1 * m_RF[row_V].astype(np.float64) + (1 - beta_1) * delta_VF
        v_RF[row_V] = self._second_moment(v_RF[row_V].astype(np.float64), np.square(delta_VF))
        t_R[row_V] += 1

        t_V1 = t_R[row_V, None].astype(np.float64)
        first_VF = m_RF[row_V] / (1 - beta_1**t_V1)
        second_VF = v_RF[row_V] / (1.0 if self._settings.name == "adagrad" else 1 - beta_2**t_V1)
        direction_VF: NDArray[np.float64] = first_VF / (np.sqrt(second_VF) + self._settings.epsilon)
        return direction_VF

    def _second_moment(self, v_VF: NDArray[np.float64], square_VF: NDArray[np.float64]) -> NDArray[np.float64]:
        decay = self._settings.beta_2
        match self._settings.name:
            case "adam":
                return decay * v_VF + (1 - decay) * square_VF
            case "yogi":
                return v_VF - (1 - decay) * square_VF * np.sign(v_VF - square_VF)
            case _:
                return v_VF + square_VF

    def _arrays(self) -> dict[str, NDArray[Any]]:
        parts: tuple[tuple[str, Mapping[str, NDArray[Any]]], ...] = (
            ("first_moment", self._first),
            ("second_moment", self._second),
            ("steps", self._steps),
        )
        return {f"{part}.{name}": array for part, held in parts for name, array in held.items()}
