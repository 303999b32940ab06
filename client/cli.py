"""flexmoe-client: what a hospital's engineer types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.audit_commands import audit
from client.check import CheckResult, check_site
from client.coverage import Coverage
from client.key_commands import keygen
from client.node_commands import add_node_commands
from client.patients import SPLITS
from client.predict_command import predict
from flexmoe_core.command_line import WRONG_INPUT, run_command_line, tell
from flexmoe_core.errors import Problem
from flexmoe_core.study import Study

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
app.add_typer(audit, name="audit")


@app.callback()
def _commands() -> None:
    """Take part in a federated study. Your patients' data never leave this machine."""


app.command()(keygen)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    study: Annotated[
        Path | None,
        typer.Option(help="The coordinator's study.toml. By default the one in DIR, or else the one beside DIR."),
    ] = None,
    min_cell: Annotated[
        int,
        typer.Option(min=1, help="Smallest number of training patients of a combination that is announced."),
    ] = 5,
) -> None:
    """Check your files before training, and show which modalities your patients have.

    DIR is your site folder, which holds site.toml and your tables.

    Every problem is listed with its file, line and remedy, never with a patient's value.

    Nothing is written and nothing is sent.

    Exit code 0: you are ready to take part. Exit code 2: there are problems.
    """
    result = check_site(folder, study)
    if result.problems:
        print_problems(result.problems)
        raise typer.Exit(WRONG_INPUT)
    print_coverage(result, min_cell)


app.command()(predict)


def print_problems(problems: tuple[Problem, ...]) -> None:
    """Each problem on one line of stderr, control characters of file names and keys made visible."""
    tell(map(str, problems))


def print_coverage(result: CheckResult, min_cell: int) -> None:
    """Patients per combination and per modality, in each split."""
    study, counts = result.study, result.coverage
    assert study is not None
    console = Console()
    console.print(f"Site {result.site} is ready for the study {study.name}.", highlight=False)
    console.print(_combination_table(study, counts, min_cell))
    console.print(_modality_table(study, counts))


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


add_node_commands(app)


def main() -> None:
    """Entry point of the console script."""
    run_command_line("flexmoe-client", app)
