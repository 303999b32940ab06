"""What the terminal shows of many jobs: one bar, a step for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def job_progress(console: Console, jobs: int) -> Iterator[Callable[[str], None]]:
    """Gives what to call at the end of each job, with its name."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("jobs", total=jobs, last="")
        yield lambda name: progress.update(task, advance=1, last=name)
