"""What a run's models say when test patients lack more than they do: every combination, also those never trained.

Shapes: B patients, M modalities, Y classes, C combinations.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.bundle import Bundle, read_bundle
from client.prediction import predict_cohort
from client.site_data import read_site
from flexmoe_core.bank import CompositionalBank, TableBank
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.intervals import auroc_of
from flexmoe_core.scores import FloatArray, IntArray
from server.run_store import RunStore
from simulations.runs import site_bundle, site_folders

MOST_MODALITIES = 10  # 1023 combinations


@dataclass(frozen=True, eq=False)
class HiddenPredictions:
    """Test patients of all hospitals under every non-empty combination ``masks``.

    ``probabilities_BCY`` is NaN where a patient does not have the combination's modalities to show.
    ``table`` has the combinations of the run.
    """

    table: CombinationTable
    masks: tuple[int, ...]
    labels_B: IntArray
    probabilities_BCY: FloatArray

    @property
    def never_trained(self) -> tuple[int, ...]:
        """The combinations that the run's table does not have."""
        return tuple(mask for mask in self.masks if mask not in self.table.masks)

    @property
    def pairs(self) -> int:
        """Pairs of a patient and a combination that the patient can show."""
        return int((~np.isnan(self.probabilities_BCY[:, :, 0])).sum())

    def of(self, masks: Collection[int]) -> FloatArray:
        """(B, C, Y) of some combinations only."""
        chosen = [place for place, mask in enumerate(self.masks) if mask in masks]
        return self.probabilities_BCY[:, chosen]


def predict_hidden(study_folder: Path, store: RunStore) -> HiddenPredictions:
    """Hide modalities from every test patient in every way, and ask the patient's own hospital's bundle.

    Raises CheckpointError without bundles, InputError for a study of too many modalities or classes.
    """
    study = store.study
    if len(study.modalities) > MOST_MODALITIES or len(study.label.classes) > 2:
        what = f"has more than {MOST_MODALITIES} modalities or two classes"
        raise InputError([Problem(str(study_folder), "", what, "Use a smaller study.")])
    masks = tuple(range(1, study.full_mask + 1))
    labels, probabilities = [], []
    for name, folder in site_folders(study_folder).items():
        bundle = read_bundle(site_bundle(store, name))
        cohort = read_site(folder, study, ("train", "test")).cohorts["test"]
        labels.append(cohort.labels_B.numpy())
        probabilities.append(np.stack([_predict_hiding(bundle, cohort, mask) for mask in masks], axis=1))
    return HiddenPredictions(bundle.facts.table, masks, np.concatenate(labels), np.concatenate(probabilities))


def hide(cohort: Cohort, names: tuple[str, ...], mask: int) -> Cohort:
    """The same patients as if they had been measured in the combination's modalities only."""
    shown_M = torch.tensor([bool(mask >> place & 1) for place in range(len(names))])
    inputs = {name: x_BF * float(shown_M[names.index(name)]) for name, x_BF in cohort.inputs.items()}
    return Cohort(inputs, cohort.observed_BM & shown_M, cohort.labels_B)


def pooled_auroc(probabilities_BCY: FloatArray, labels_B: IntArray) -> float | None:
    """AUROC of class 1 over all pairs of a patient and a combination that the patient can show.

    It falls when combinations as such are believed to be sicker or healthier than they are.
    """
    positive_BC = probabilities_BCY[:, :, 1]
    labels_BC = np.broadcast_to(labels_B[:, None], positive_BC.shape)
    shown_BC = ~np.isnan(positive_BC)
    return auroc_of(positive_BC[shown_BC], labels_BC[shown_BC])


def mean_auroc(probabilities_BCY: FloatArray, labels_B: IntArray) -> float | None:
    """The mean over combinations of the AUROC among the patients who can show it; None if one is undefined."""
    each = [pooled_auroc(probabilities_BCY[:, [place]], labels_B) for place in range(probabilities_BCY.shape[1])]
    defined = [one for one in each if one is not None]
    return sum(defined) / len(defined) if defined and len(defined) == len(each) else None


def untrained_tokens(bundle: Bundle) -> list[tuple[int, int]]:
    """(combination, missing modality) of all combinations whose bank token has a part that never moved from zero.

    A token is its modality's default plus, where the table has one to back off to, a residual row; in a composed
    bank, plus a row for each observed modality. Empty where the bank is not learned.
    """
    facts, bank = bundle.facts, bundle.model.bank
    if not isinstance(bank, TableBank | CompositionalBank):
        return []
    moved_M, moved_S = (part.flatten(1).any(dim=1) for part in (bank.default, bank.residual))
    masks_C = torch.arange(1, facts.table.full_mask + 1)
    lacks_CM = (masks_C[:, None] >> torch.arange(facts.table.modalities) & 1) == 0
    if isinstance(bank, CompositionalBank):
        still_MM = (~moved_S).reshape(len(moved_M), -1)
        rows_moved_CM = (~lacks_CM).float() @ still_MM.float() == 0
    else:
        moved_or_none_S = torch.cat([moved_S, moved_S.new_ones(1)])  # the last stands for NO_SLOT
        rows_moved_CM = moved_or_none_S[facts.table.place(masks_C).slots_BM]
    return [(int(masks_C[place]), int(m)) for place, m in (lacks_CM & ~(moved_M & rows_moved_CM)).nonzero()]


def _predict_hiding(bundle: Bundle, cohort: Cohort, mask: int) -> FloatArray:
    """(B, Y), NaN for patients who lack one of the combination's modalities."""
    able_B = (cohort.masks_B & mask) == mask
    names = bundle.facts.terms.study.modality_names
    probabilities_BY = np.full((len(cohort), len(bundle.facts.prior)), np.nan)
    if able_B.any():
        hidden = hide(cohort.select(able_B.nonzero().squeeze(1)), names, mask)
        probabilities_BY[able_B.numpy()] = predict_cohort(bundle, hidden)
    return probabilities_BY
