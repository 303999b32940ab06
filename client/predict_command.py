"""The command ``flexmoe-client predict``."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.bundle import Bundle, read_bundle
from client.new_patients import NewPatients, read_folder
from client.prediction import predict_cohort
from client.predictions_file import NO_MODALITY, PredictionsFile, prediction_columns
from flexmoe_core.devices import AUTOMATIC, choose_device


class SplitName(StrEnum):
    """The splits of a patients file."""

    train = "train"
    validation = "validation"
    test = "test"


def predict(
    bundle_folder: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE", show_default=False, help="The folder 'bundle' that a run left in your state folder."
        ),
    ],
    folder: Annotated[
        Path,
        typer.Option("--input", metavar="DIR", help="Folder of the patients: site.toml and tables."),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="File to write; its name ends in .csv or .parquet.")],
    split: Annotated[
        SplitName | None, typer.Option(help="Predict only the patients of this split. Without it: all patients.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1: where the model computes.")] = AUTOMATIC,
) -> None:
    """Predict patients with the model that a run left at your site. Nothing is sent.

    DIR is described as for training: its site.toml says which modalities the patients have and where. It needs
    neither labels nor splits, and none of the modalities need be complete: patients may lack any of them, or all.

    FILE has one row per patient: the id, the probability of each class, the predicted class, the modalities that
    were used, whether the run knew this combination of them, and which model and run answered.

    Exit code 2: something that was given is wrong; nothing was written.
    """
    file = PredictionsFile(output, force)
    file.require_writable()
    chosen = choose_device(device)
    bundle = read_bundle(bundle_folder)
    patients = read_folder(folder, bundle.facts, split.value if split else None)
    file.require_writable(patients.files)
    bundle.model.to(chosen)
    probabilities_BY = predict_cohort(bundle, patients.cohort)
    file.write(prediction_columns(patients, probabilities_BY, bundle))
    print_summary(Console(), bundle, patients, output)


def print_summary(console: Console, bundle: Bundle, patients: NewPatients, output: Path) -> None:
    """Patients by combination, how many had one that the run did not know, and where the predictions are."""
    facts = bundle.facts
    study, counts = facts.terms.study, Counter(patients.cohort.masks_B.tolist())
    table = Table("Combination", title="Patients per combination of modalities")
    table.add_column("patients", justify="right")
    table.add_column("trained")
    for mask in sorted(counts, key=lambda mask: (-mask.bit_count(), mask)):
        trained = "yes" if mask in facts.table.masks else "no"
        table.add_row(" + ".join(study.names_of(mask)) or NO_MODALITY, str(counts[mask]), trained)
    table.add_section()
    table.add_row("all patients", str(len(patients.ids)), "")
    console.print(
        f"Model of the site {facts.site} for the study {study.name}, run {facts.terms.run}.", highlight=False
    )
    console.print(table)
    unknown = sum(count for mask, count in counts.items() if mask and mask not in facts.table.masks)
    lines = [f"{unknown} of {len(patients.ids)} patients have a combination that was never trained."]
    if counts[0]:
        lines.append(f"{counts[0]} have no modality: they get the shares of the classes at the site's training.")
    lines.append(f"Predictions   {escape(str(output))}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
