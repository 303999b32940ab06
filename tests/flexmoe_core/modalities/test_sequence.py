import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.modalities.sequence import SequenceModality, SequencePreprocessing
from flexmoe_core.modalities.tabular import NumericColumn

VALUE = NumericColumn(name="value", range=(0, 4))
MODALITY = SequenceModality(
    name="labs", encoder="shared", columns=(VALUE,), longest=3, time_unit="days", time_range=(0, 12)
)


def encode(features_NF: list[list[float]], times: list[float], patients: list[int], count: int) -> torch.Tensor:
    x_RTC = MODALITY.preprocessing.encode(
        torch.tensor(features_NF).reshape(-1, 2),
        torch.tensor(times, dtype=torch.float64),
        torch.tensor(patients, dtype=torch.int64),
        count,
    )
    assert x_RTC.dtype == torch.float32
    return x_RTC


def test_steps_follow_time_each_with_its_clock_and_padding_follows_them() -> None:
    assert MODALITY.shape == (3, 5)
    x_RTC = encode([[7, 0], [8, 0], [9, 1]], [12, 6, 0], [1, 0, 1], 3)
    log = math.log2(1 + 12 * 3 / 12)
    assert x_RTC.tolist() == [
        [[1, 0, 0, 8, 0], [0] * 5, [0] * 5],
        [[1, -2, 0, 9, 1], [1, 2, log, 7, 0], [0] * 5],
        [[0] * 5] * 3,
    ]


def test_the_last_rows_are_kept_and_equal_times_keep_their_order() -> None:
    x_RTC = encode([[1, 0], [2, 0], [3, 0], [4, 0], [5, 0]], [8, 4, 4, 0, 4], [0] * 5, 1)
    assert x_RTC[0, :, 3].tolist() == [3, 5, 1]  # the last two at time 4, then time 8
    assert x_RTC[0, :, 2].tolist() == [0, 0, 1]  # at even distances of 12 / 3 days the interval is 1
    x_RTC = encode([[float(row), 0] for row in range(4)], [0, 4, 8, 12], [0] * 4, 1)
    assert x_RTC[0, :, 2].tolist() == [1, 1, 1]  # the first kept row knows when the one before it was


def test_nobody_has_a_tensor_too() -> None:
    assert encode([], [], [], 0).shape == (0, 3, 5)
    assert not encode([], [], [], 2).any()


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.floats(-2, 2, width=32)), max_size=20)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_encoding_equals_sorting_patient_by_patient(rows: list[tuple[int, int, float]]) -> None:
    x_RTC = encode([[value, 0] for *_, value in rows], [t for _, t, _ in rows], [p for p, *_ in rows], 4)
    for patient in range(4):
        own = sorted(((time, value) for who, time, value in rows if who == patient), key=lambda row: row[0])[-3:]
        assert x_RTC[patient, :, 0].tolist() == [1.0] * len(own) + [0.0] * (3 - len(own))
        assert x_RTC[patient, : len(own), 3].tolist() == [value for _, value in own]
        assert x_RTC[patient, : len(own), 1].tolist() == pytest.approx([time / 3 - 2 for time, _ in own])


def test_the_inputs_of_a_local_encoder_are_known_at_its_site_only() -> None:
    local = SequenceModality(name="labs", encoder="local", longest=9)
    assert (local.contents, local.time) == ("", None)
    with pytest.raises(ValueError, match="at its site only"):
        _ = local.preprocessing


def test_preprocessing_survives_json() -> None:
    made = MODALITY.preprocessing
    assert SequencePreprocessing.model_validate_json(made.model_dump_json()) == made
