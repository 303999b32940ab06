"""What the terminal shows of a site folder that is ready: patients by combination and modality, and fitted scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from client.check import CheckResult
from client.coverage import Coverage
from client.patients import SPLITS
from client.policy import study_hash
from flexmoe_core.study import Study


def print_coverage(result: CheckResult, min_cell: int) -> None:
    """Patients per combination and per modality, in each split; and which scales are fitted to patients."""
    study, counts = result.study, result.coverage
    assert study is not None
    console = Console()
    console.print(f"Site {result.site} is ready for the study {study.name}.", highlight=False)
    console.print(f'As policy.toml names it: {study.name} = "{study_hash(study)}"', highlight=False, soft_wrap=True)
    console.print(_combination_table(study, counts, min_cell))
    console.print(_modality_table(study, counts))
    console.print(_scales(result.fitted), highlight=False, markup=False)


def _combination_table(study: Study, counts: Mapping[str, Coverage], min_cell: int) -> Table:
    table = Table("Combination", title="Patients per combination of modalities")
    for split in SPLITS:
        table.add_column(split, justify="right")
    table.add_column(f"announced (train >= {min_cell})")
    masks = {mask for one in counts.values() for mask in one.combinations}
    for mask in sorted(masks, key=lambda mask: (-mask.bit_count(), mask)):
        patients = [counts[split].combinations.get(mask, 0) for split in SPLITS]
        announced = "yes" if patients[0] >= min_cell else "no"
        table.add_row(" + ".join(study.names_of(mask)) or "(none)", *map(str, patients), announced)
    table.add_section()
    table.add_row("all patients", *(str(counts[split].patients) for split in SPLITS), "")
    return table


def _modality_table(study: Study, counts: Mapping[str, Coverage]) -> Table:
    table = Table("Modality", title="Patients per modality")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name in study.modality_names:
        table.add_row(name, *(str(counts[split].modalities[name]) for split in SPLITS))
    return table


def _scales(fitted: Sequence[str]) -> str:
    if not fitted:
        return "No scale is fitted to your patients, as patient-level privacy requires."
    listed = "".join(f"\n  {place}" for place in fitted)
    return f"Fitted to training patients; declare these keys for patient-level privacy:{listed}"
