"""``flexmoe-sim``: federations of hospitals on one machine."""

from __future__ import annotations

import typer

from flexmoe_core.command_line import run_command_line
from simulations.audits.commands import audit
from simulations.bench.commands import bench
from simulations.benchmark_commands import benchmark
from simulations.datasets.commands import prepare
from simulations.demo import demo
from simulations.run_commands import run
from simulations.studies.commands import study

app = typer.Typer(
    name="flexmoe-sim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Simulate federations of Flex-MoE on one machine: prepare data, run, compare.",
)
app.add_typer(prepare, name="prepare")
app.add_typer(benchmark, name="benchmark")
app.add_typer(bench, name="bench")
app.add_typer(audit, name="audit")
app.add_typer(study, name="study")
app.command(name="run")(run)
app.command(name="demo")(demo)


def main() -> None:
    """Entry point of the console script."""
    run_command_line("flexmoe-sim", app)
