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

from client.bundle import STEM, Bundle, read_bundle
from client.new_patients import NewPatients, read_folder
from client.prediction import predict_cohort
from client.predictions_file import NO_MODALITY, PredictionsFile, prediction_columns
from flexmoe_core.devices import AUTOMATIC, choose_device
from flexmoe_core.errors import CheckpointError


class SplitName(StrEnum):
    """The splits of a patients file."""

    train = "train"
    validation = "validation"
    test = "test"


def predict(
    bundle_folder: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", show_default=False),
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
    """Predict patients with the model that a run left at your site.

    BUNDLE is the folder 'bundle' of that run in your state folder.

    DIR is a folder like your site folder. Labels and splits are not needed; any modality may be missing.

    FILE gets a row per patient: id, probability of each class, predicted class, modalities used, model and run.

    The column combination_trained says whether the run knew a patient's combination of modalities.

    Nothing else is written and nothing is sent.

    Exit code 2: something that was given is wrong, and FILE is as it was.
    """
    file = PredictionsFile(output, force)
    file.require_writable()
    chosen = choose_device(device)
    bundle = _read_bundle(bundle_folder)
    patients = read_folder(folder, bundle.facts, split.value if split else None)
    file.require_writable(patients.files)
    bundle.model.to(chosen)
    probabilities_BY = predict_cohort(bundle, patients.cohort)
    file.write(prediction_columns(patients, probabilities_BY, bundle))
    print_summary(Console(), bundle, patients, output)


def _read_bundle(folder: Path) -> Bundle:
    """Raises CheckpointError for a damaged bundle, and for what is none."""
    if not any(folder.glob(f"{STEM}.*")):
        raise CheckpointError(f"{folder}: is no bundle. Name the folder 'bundle' of a run in your state folder.")
    return read_bundle(folder)


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
    console.print(f"Model of the site {facts.site} for the study {study.name}.", highlight=False)
    console.print(table)
    unknown = sum(count for mask, count in counts.items() if mask and mask not in facts.table.masks)
    lines = [f"Patients with a combination that was never trained: {unknown} of {len(patients.ids)}."]
    if counts[0]:
        lines.append(f"Patients without any modality: {counts[0]}. They get the class shares of the site's training.")
    lines.append(f"Predictions   {escape(str(output))}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
