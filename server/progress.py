"""What the terminal shows of a federation: one bar, a step for each round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

BAR_WIDTH = 8  # with two figures of a round, a line is not wider than 80


@contextmanager
def round_progress(console: Console, rounds: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives the observer of a run: each round moves the bar and shows stage, loss and validation."""
    columns = (
        TextColumn("[bold]{task.fields[stage]:<10}"),
        BarColumn(bar_width=BAR_WIDTH),
        MofNCompleteColumn(),
        TextColumn("{task.fields[quality]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("rounds", total=rounds, stage="handshake", quality="")

        def observe(row: Mapping[str, Any]) -> None:
            for trouble in troubles(row):
                console.print(trouble, style="yellow", markup=False, highlight=False)
            if "round" in row:
                progress.update(
                    task, completed=row["round"], stage=row["stage"], quality="  ".join(_figures(row)[:2])
                )

        yield observe


def troubles(row: Mapping[str, Any]) -> list[str]:
    """Everything in a row that went wrong, a line each."""
    if "refused_checkpoint" in row:
        return [f"Passed over a broken checkpoint: {row['refused_checkpoint']}"]
    if "waited_s" in row:
        return [f"Waited {row['waited_s']:.0f} s: {row['online']} sites are online, {row['needed']} are needed"]
    if "refused_nodes" in row:
        return [f"Goes without {node}: {reason}" for node, reason in row["refused_nodes"].items()]
    reasons = (
        dict.fromkeys(row["missing"], "no answer before the deadline")
        | row["failed"]
        | {site: "; ".join(reasons) for site, reasons in row["dropped"].items()}
    )
    return [f"Round {row['round']}: {site}: {reason}" for site, reason in reasons.items()]


def quality(row: Mapping[str, Any]) -> str:
    """Training loss and validation metrics of a round, as far as there are any."""
    return "  ".join(_figures(row))


def _figures(row: Mapping[str, Any]) -> list[str]:
    losses = list(row["loss"].values())
    parts = [f"training loss {sum(losses) / len(losses):.3f}"] if losses else []
    pooled = row["validation"]["pooled"]
    for name, label in (("auroc", "validation AUROC"), ("accuracy", "accuracy")):
        if pooled and pooled[name] is not None:
            parts.append(f"{label} {pooled[name]:.3f}")
    return parts
