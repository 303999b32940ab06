"""Sequences: rows of columns over time, as many for each patient as were measured, at any times.

Shapes: R patients, N rows of all of them, T steps, F features of the columns, C channels of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flexmoe_core.modalities.base import Preprocessing
from flexmoe_core.modalities.scale import Range, scaled
from flexmoe_core.modalities.tabular import Column, ColumnsModality, NumericColumn
from flexmoe_core.validation import Finding

MOST_STEPS = 4096
PRESENT, TIME_CHANNELS = 0, 3
"""The channel that tells a step from padding, and the number of channels before the features of the columns."""

Longest = Annotated[int, Field(strict=True, ge=1, le=MOST_STEPS)]


class SequencePreprocessing(Preprocessing):
    """The columns, the scale of time and the number of steps; a local encoder's scales are those of its site."""

    kind: Literal["sequence"] = "sequence"
    columns: tuple[Column, ...]
    time: NumericColumn
    longest: Longest

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, C): the steps, and the channels of each."""
        return self.longest, TIME_CHANNELS + sum(column.width for column in self.columns)

    def encode(self, features_NF: Tensor, times_N: Tensor, patient_N: Tensor, patients: int) -> Tensor:
        """(R, T, C) float32 of rows in any order: each patient's last T by time, then zeros.

        A step's channels: 1, the scaled time, the time since the row before, the features. ``times_N`` is float64,
        ``patient_N`` int64. Rows of equal time keep their order.
        """
        order_N = times_N.argsort(stable=True)
        order_N = order_N[patient_N[order_N].argsort(stable=True)]
        features_NF, times_N, patient_N = features_NF[order_N], times_N[order_N], patient_N[order_N]
        count_R = patient_N.bincount(minlength=patients)
        place_N = torch.arange(len(times_N)) - (count_R.cumsum(0) - count_R)[patient_N]
        interval_N = times_N.diff(prepend=times_N[:1]).masked_fill(place_N == 0, 0.0)
        clock_N3 = torch.stack(
            [torch.ones(len(times_N)), self.scaled_time(times_N), self._scaled_interval(interval_N)], dim=1
        )
        rows_NC = torch.cat([clock_N3, features_NF], dim=1)
        step_N = place_N - (count_R - self.longest).clamp(min=0)[patient_N]
        x_RTC = torch.zeros(patients, *self.shape)
        kept_N = step_N >= 0
        x_RTC[patient_N[kept_N], step_N[kept_N]] = rows_NC[kept_N]
        return x_RTC

    def scaled_time(self, times_N: Tensor) -> Tensor:
        """(N,) float32, -2 and +2 at the limits of the range."""
        return scaled(times_N, self.time.range).float()

    def _scaled_interval(self, interval_N: Tensor) -> Tensor:
        """1 where T rows are spread evenly over the range of time; logarithmic, as minutes and months may mix."""
        low, high = self.time.range
        return torch.log2(1 + interval_N * (self.longest / (high - low))).float()


class SequenceModality(ColumnsModality):
    """A table with any number of rows per patient, each with its time.

    Only the last ``longest`` rows of a patient are kept: what was measured last is closest to what is predicted. So
    all patients have inputs of one shape, at every site.
    """

    kind: Literal["sequence"] = "sequence"
    longest: Longest = 64
    time_unit: Annotated[str, Field(min_length=1)] | None = None
    time_range: Range | None = None

    @property
    def contents(self) -> str:
        """The names of the columns, the number of rows and the unit of time."""
        if self.encoder == "local":
            return ""
        return f"{super().contents}, over {self.time_unit}, at most {self.longest} rows"

    @property
    def time(self) -> NumericColumn | None:
        """The study's scale of time; None for a local encoder."""
        if self.time_range is None:
            return None
        return NumericColumn(name="time", unit=self.time_unit or "", range=self.time_range)

    @property
    def preprocessing(self) -> SequencePreprocessing:
        """The study's columns and times. Raises ValueError for a local encoder."""
        if self.time is None:
            raise self._only_its_site_knows()
        return SequencePreprocessing(columns=self.columns, time=self.time, longest=self.longest)

    def _findings(self) -> Iterator[Finding]:
        yield from super()._findings()
        own = "Remove it: the unit is that of the site's own times. Or make the encoder shared."
        yield from self._key_findings("time_unit", self.time_unit is not None, own)
        remedy = "Move it to the site.toml of each hospital, or make the encoder shared."
        yield from self._key_findings("time_range", self.time_range is not None, remedy)
