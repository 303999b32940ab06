"""Which combinations of modalities does a hospital have? Attacks on one round's update, as the coordinator sees it.

An update says of each bank row how many patients stand behind it and how far it moved. A bank row belongs to a
combination, so that a row which nobody supports, or which did not move, is a combination that nobody has.

Shapes: C combinations of the table, U that patients may have, S numbers of patients in an update (its supports),
R rows, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import nnls

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.groups import shared_parameters, specs_of
from flexmoe_core.model import FlexMoe, encoder_key
from flexmoe_core.rehearsal import CHANCE
from flexmoe_core.scores import FloatArray
from flexmoe_core.settings import MethodSettings
from flexmoe_core.update import TensorSpec, Update

RESIDUAL = "bank.residual"
MOST_MODALITIES = 7


@dataclass(frozen=True)
class PublicModel:
    """What everybody knows: the shared model's layout, the table, and the settings."""

    model: FlexMoe
    table: CombinationTable
    settings: MethodSettings

    @cached_property
    def explained(self) -> tuple[int, ...]:
        """Combinations that patients may have: all of them, or the table's where all would be too many."""
        modalities = self.table.modalities
        return tuple(range(1, 1 << modalities)) if modalities <= MOST_MODALITIES else self.table.masks

    @cached_property
    def per_patient_SU(self) -> FloatArray:
        """What one patient of each explained combination adds to the supports, in the mean."""
        return np.stack([_expected(self, mask) for mask in self.explained], axis=1)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors that travel."""
        return specs_of(shared_parameters(self.model, ()))


def counts_from_supports(public: PublicModel, update: Update) -> FloatArray:
    """Patients of each combination (C,) that explain the supports best: non-negative least squares.

    Each patient adds to the supports of known rows, also in rehearsal and modality dropout, whose chances are public,
    and also where the table lacks their combination.
    """
    support_S = np.concatenate(list(_supports(public, update)))
    counts_U: FloatArray = nnls(public.per_patient_SU, support_S)[0]
    return counts_U[[public.explained.index(mask) for mask in public.table.masks]]


def movement_of_rows(public: PublicModel, update: Update) -> FloatArray:
    """Of each combination (C,), how far its bank rows moved, NaN for one that has none.

    Root mean square, in units of that of all bank rows: how loud a site is in all says nothing of one combination.
    """
    moved_C = np.full(len(public.table.masks), np.nan)
    residual = update.weighted.get(RESIDUAL, np.zeros((public.model.bank.slots, 1), np.float32)).astype(np.float64)
    unit = np.sqrt(np.square(residual).mean()) if residual.any() else 1.0
    for place, rows in _rows_of(public):
        if rows:
            moved_C[place] = np.sqrt(np.square(residual[list(rows)]).mean()) / unit
    return moved_C


ATTACKS = {"supports": counts_from_supports, "movement": movement_of_rows}
"""By name; a high score says that somebody has the combination."""


@dataclass(frozen=True)
class ZeroRows:
    """Of all rows that carry a weight of their own, how many are exactly zero, and the combinations that these name.

    Such a combination is one that no patient behind the update has.
    """

    rows: int
    zero: int
    absent: tuple[int, ...]


def zero_rows(public: PublicModel, update: Update) -> ZeroRows:
    """The exact-zero-row test: no statistics, only equality with zero."""
    rows = zero = 0
    silent_residuals: set[int] = set()
    for spec in public.specs:
        if spec.rows == 1:
            continue
        sent = update.weighted.get(spec.name, np.zeros(spec.shape, np.float32))
        silent_R = ~sent.reshape(spec.row_shape).any(axis=1)
        rows, zero = rows + spec.rows, zero + int(silent_R.sum())
        if spec.name == RESIDUAL:
            silent_residuals = set(np.flatnonzero(silent_R).tolist())
    named = [public.table.masks[c] for c, own in _rows_of(public) if silent_residuals.intersection(own)]
    return ZeroRows(rows, zero, tuple(named))


def _rows_of(public: PublicModel) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The place of each combination in the table, and the rows of the bank's residuals that its patients use."""
    for place, mask in enumerate(public.table.masks):
        yield place, tuple(np.flatnonzero(_bank_rows(public, mask)).tolist())


def _supports(public: PublicModel, update: Update) -> Iterator[FloatArray]:
    """Numbers of patients in the order of ``_expected``: everybody, the incomplete, by modality, by bank row."""
    model = public.model
    yield _support(update, "position", 1)
    yield _support(update, "imputed", 1)
    encoded = [_first_of_encoder(model, name) for name in model.modalities]
    yield np.concatenate([_support(update, name, 1) if name else np.zeros(1) for name in encoded])
    yield _support(update, "bank.default", len(model.modalities))
    yield _support(update, RESIDUAL, model.bank.slots)


def _support(update: Update, name: str, rows: int) -> FloatArray:
    return np.asarray(update.support.get(name, np.zeros(rows)), dtype=np.float64)


def _first_of_encoder(model: FlexMoe, modality: str) -> str | None:
    own = f"encoders.{encoder_key(modality)}."
    return next((name for name, _ in model.named_parameters() if name.startswith(own)), None)


def _expected(public: PublicModel, mask: int) -> FloatArray:
    """What one patient of a combination adds to each support in an epoch, in the mean over what they hide."""
    model, table = public.model, public.table
    shown = showings(mask, public.settings.training.modality_dropout)
    rehearses = public.settings.losses.rehearsal > 0 and model.bank.learns
    rehearsed = showings(mask, CHANCE) if rehearses else {}
    encoded_M = [_first_of_encoder(model, name) is not None for name in model.modalities]
    total_S = np.zeros(2 + 2 * table.modalities + model.bank.slots)
    for weights, in_training in ((shown, True), (rehearsed, False)):
        for seen, chance in weights.items():
            observed_M = np.array([bool(seen >> m & 1) for m in range(table.modalities)])
            whole = np.array([1.0, seen != table.full_mask, *(observed_M & encoded_M)]) * in_training
            total_S += chance * np.concatenate([whole, ~observed_M, _bank_rows(public, seen)])
    return total_S


def _bank_rows(public: PublicModel, seen: int) -> FloatArray:
    masks_B = torch.tensor([seen])
    observed_BM = (masks_B[:, None] >> torch.arange(public.table.modalities) & 1).bool()
    used: FloatArray = public.model.bank.users(public.table.place(masks_B).slots_BM, observed_BM).numpy()
    return used


def showings(mask: int, chance: float) -> Mapping[int, float]:
    """What a patient shows who hides each modality with that chance but always keeps one: chances by combination."""
    if chance == 0:
        return {mask: 1.0}
    observed = [m for m in range(mask.bit_length()) if mask >> m & 1]
    size = len(observed)
    shown: dict[int, float] = {}
    for choice in range(1, 1 << size):
        kept = choice.bit_count()
        likelihood = (1 - chance) ** kept * chance ** (size - kept)
        if kept == 1:
            likelihood += chance**size / size
        shown[sum(1 << m for place, m in enumerate(observed) if choice >> place & 1)] = likelihood
    return shown
