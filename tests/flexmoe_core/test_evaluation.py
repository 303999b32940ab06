"""Predictions of a model, and the cells of scores that a site may send."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core import evaluation
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.errors import MessageError
from flexmoe_core.evaluation import (
    CellResult,
    Predictions,
    add_cells,
    cells_from_arrays,
    cells_to_arrays,
    predict,
    score_cells,
)
from flexmoe_core.settings import MethodSettings
from flexmoe_core.training import train_round
from tests.flexmoe_core.cohorts import TINY, random_cohort, random_model, snapshot, table_of, tiny

MODALITIES, CLASSES, EXPERTS, FULL = 3, 3, TINY["experts"], 0b111
MASKS = [0b111] * 6 + [0b011] * 5 + [0b101] * 3 + [0b001] * 2
TABLE = table_of([0b011, 0b101], MODALITIES)
COHORT = random_cohort(MASKS, MODALITIES, classes=CLASSES)


def predicted() -> Predictions:
    return predict(random_model(TABLE, classes=CLASSES), COHORT, TABLE, specialize=True)


def cells(min_cell: int = 4) -> dict[int | None, CellResult]:
    return score_cells(predicted(), COHORT, min_cell)


@pytest.mark.parametrize("specialize", [True, False])
def test_predictions_are_the_softmax_of_the_model(specialize: bool) -> None:
    model = random_model(TABLE, classes=CLASSES, layers=3, dropout=0.5)
    predictions = predict(model, COHORT, TABLE, specialize=specialize)
    output = model(COHORT, TABLE.place(COHORT.masks_B), specialize=specialize)
    expected = output.logits_BY.softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(predictions.probabilities_BY, expected)
    mean = (output.use[0].gates_BE + output.use[1].gates_BE) / 2
    np.testing.assert_allclose(predictions.gates_BE, mean.numpy())


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predicted()
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 3)
    parts = predicted()
    np.testing.assert_allclose(whole.probabilities_BY, parts.probabilities_BY, rtol=1e-9)
    np.testing.assert_allclose(whole.gates_BE, parts.gates_BE, rtol=1e-9)


def test_nobody_and_combinations_that_are_not_in_the_table() -> None:
    model = random_model(TABLE, classes=CLASSES)
    empty = predict(model, random_cohort([], MODALITIES), TABLE, specialize=True)
    assert (empty.probabilities_BY.shape, empty.gates_BE.shape) == ((0, CLASSES), (0, EXPERTS))
    unseen = predict(model, random_cohort([0b100, 0b010, 0b110], MODALITIES), TABLE, specialize=True)
    assert unseen.probabilities_BY.sum(axis=1) == pytest.approx([1, 1, 1])


def test_evaluation_between_rounds_changes_nothing() -> None:
    settings = MethodSettings(model=tiny(dropout=0.5))
    cohort = random_cohort(MASKS, MODALITIES, dtype=torch.float32, classes=CLASSES)
    ends = []
    for evaluates in (False, True):
        model = random_model(TABLE, dtype=torch.float32, classes=CLASSES, dropout=0.5)
        for number in (1, 2, 3):
            plan = RoundPlan(Stage.GENERALIZE if number == 1 else Stage.SPECIALIZE, ordered=number == 2)
            train_round(model, cohort, TABLE, plan, settings, 0, "a", number)
            if evaluates:
                before, state = snapshot(model), torch.random.get_rng_state()
                predict(model, cohort, TABLE, specialize=True)
                assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
                assert torch.equal(torch.random.get_rng_state(), state)
        ends.append(snapshot(model))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_cells_are_combinations_and_small_ones_are_merged() -> None:
    found = cells(min_cell=4)
    assert {mask: cell.scores.n for mask, cell in found.items()} == {0b111: 6, 0b011: 5, None: 5}
    gates_BE = predicted().gates_BE
    np.testing.assert_allclose(found[None].gates_E, gates_BE[11:].sum(axis=0))
    np.testing.assert_allclose(found[0b011].gates_E, gates_BE[6:11].sum(axis=0))
    for cell in found.values():
        assert cell.gates_E.sum() == pytest.approx(cell.scores.n)


@pytest.mark.parametrize("min_cell", [1, 3, 6, 100])
def test_whatever_is_merged_adds_up_to_the_whole_or_to_nothing(min_cell: int) -> None:
    everything, found = score_cells(predicted(), COHORT, len(MASKS))[None], cells(min_cell)
    if min_cell > len(MASKS):
        assert found == {}
        return
    whole = sum(list(found.values())[1:], start=next(iter(found.values())))
    assert whole.scores == everything.scores
    np.testing.assert_allclose(whole.gates_E, everything.gates_E)
    assert all(cell.scores.n >= min_cell for cell in found.values())


def test_cells_add_by_combination() -> None:
    first = cells()
    second: dict[int | None, CellResult] = {0b111: first[0b111], 0b101: first[0b011]}
    added = add_cells(first, second)
    assert {mask: cell.scores.n for mask, cell in added.items()} == {0b111: 12, 0b011: 5, 0b101: 5, None: 5}
    assert first[0b111].scores.n == 6


def test_arrays_round_trip() -> None:
    found = cells()
    arrays = cells_to_arrays(found)
    read = cells_from_arrays(arrays, CLASSES, EXPERTS, FULL)
    assert read.keys() == found.keys()
    for mask, cell in read.items():
        assert cell.scores == found[mask].scores
        assert np.array_equal(cell.gates_E, found[mask].gates_E)
    assert cells_from_arrays({}, CLASSES, EXPERTS, FULL) == {}


def renamed(old: str, new: str) -> dict[str, np.ndarray]:
    return {name.replace(f"{old}/", f"{new}/"): value for name, value in cells_to_arrays(cells()).items()}


@pytest.mark.parametrize("name", ["8", "-1", "007", "٣", "x", "", "None", "9" * 5000, " 3", "1e1", "3.0"])
def test_scores_of_no_combination_are_refused(name: str) -> None:
    with pytest.raises(MessageError):
        cells_from_arrays(renamed("3", name), CLASSES, EXPERTS, FULL)


def test_a_combination_has_one_spelling() -> None:
    assert cells_from_arrays(renamed("3", "6"), CLASSES, EXPERTS, FULL).keys() == {0b111, 0b110, None}
    with pytest.raises(MessageError):
        cells_from_arrays(renamed("3", "06"), CLASSES, EXPERTS, full_mask=63)


@pytest.mark.parametrize(
    "gates_E",
    [
        None,
        np.zeros(EXPERTS + 1),
        np.zeros((1, EXPERTS)),
        np.zeros(EXPERTS, np.float32),
        np.full(EXPERTS, np.nan),
        np.full(EXPERTS, np.inf),
    ],
)
def test_gates_must_be_a_finite_number_per_expert(gates_E: np.ndarray | None) -> None:
    arrays = cells_to_arrays(cells()) | ({"3/gates": gates_E} if gates_E is not None else {})
    if gates_E is None:
        del arrays["3/gates"]
    with pytest.raises(MessageError):
        cells_from_arrays(arrays, CLASSES, EXPERTS, FULL)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_damaged_arrays_are_read_or_refused(data: st.DataObject) -> None:
    arrays = dict(ARRAYS)
    name = data.draw(st.sampled_from(sorted(arrays)))
    value = arrays.pop(name)
    if data.draw(st.booleans()):
        shape = data.draw(st.sampled_from([value.shape, (0,), (*value.shape, 1), ()]))
        dtype = data.draw(st.sampled_from(["i8", "f8", "f4", "u1", "?"]))
        fill = data.draw(st.integers(0, 1) if dtype in ("u1", "?") else st.integers(-(2**62), 2**62))
        arrays[name] = np.full(shape, fill, dtype)
    if data.draw(st.booleans()):
        arrays[data.draw(st.text(max_size=4)) + data.draw(st.sampled_from(["", "/", "/gates"]))] = value
    try:
        cells_from_arrays(arrays, CLASSES, EXPERTS, FULL)
    except MessageError:
        return


ARRAYS = cells_to_arrays(cells())


def test_a_model_without_experts_has_scores_and_no_gates() -> None:
    model = random_model(TABLE, classes=CLASSES, feed_forward="dense")
    found = score_cells(predict(model, COHORT, TABLE, specialize=True), COHORT, min_cell=1)
    assert sum(cell.scores.n for cell in found.values()) == len(COHORT)
    assert {cell.gates_E.shape for cell in found.values()} == {(0,)}
    assert cells_from_arrays(cells_to_arrays(found), CLASSES, 0, TABLE.full_mask).keys() == found.keys()
