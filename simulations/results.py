"""Long work in many pieces: a line of results.jsonl for each, kept when the work is stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from rich.console import Console

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import FrozenModel
from server.run_store import PUBLIC_MODE

RESULTS = "results.jsonl"

Line = TypeVar("Line", bound=FrozenModel)
Piece = TypeVar("Piece")
Found = TypeVar("Found")


def read_lines(file: Path, model: type[Line]) -> list[Line]:
    """All whole lines; a last one that a kill cut short is removed. Raises InputError for any other bad line."""
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with file.open("r+b") as opened:
            opened.truncate(len(whole))
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            lines.append(model.model_validate_json(line))
        except ValidationError:
            remedy = "Remove the line to run its part again, or choose another --out folder."
            raise InputError(
                [Problem(str(file), f"line {number}", "is no result of this benchmark", remedy)]
            ) from None
    return lines


def append_line(file: Path, result: FrozenModel) -> None:
    """Add a result, on the disk when this returns."""
    line = json.dumps(result.model_dump(mode="json"), sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.write(line + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def write_summary(console: Console, out: Path, summary: str) -> None:
    """Keep what all results say together (Markdown) as summary.md, and show it."""
    write_atomic(out / "summary.md", summary.encode(), PUBLIC_MODE)
    console.print(summary, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Summary   {out / 'summary.md'}", highlight=False)


def run_kept(
    file: Path,
    work: Callable[[Piece], Line],
    pieces: Sequence[Piece],
    model: type[Line],
    piece_of: Callable[[Line], Piece],
    processes: int,
) -> Iterator[tuple[Line, bool]]:
    """The result of every piece, and whether it is new: what has its line is not worked on again, and comes first.

    ``work``, ``pieces`` and ``processes`` as of ``run_each``. Raises InputError for a bad
    line, and what the work raises.
    """
    stored = {piece_of(line): line for line in read_lines(file, model)}
    yield from ((stored[piece], False) for piece in pieces if piece in stored)
    for result in run_each(work, [piece for piece in pieces if piece not in stored], processes):
        append_line(file, result)
        yield result, True


def run_each(work: Callable[[Piece], Found], pieces: Sequence[Piece], processes: int) -> Iterator[Found]:
    """The result of every piece as soon as it is there; with ``processes`` that many run beside each other.

    A piece that fails costs only itself: the first error is raised once the others are done. Each process has one
    thread.
    """
    if processes < 2 or len(pieces) < 2:
        yield from _one_after_the_other(work, pieces)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(pieces)), context, torch.set_num_threads, (1,)) as pool:
        running = [pool.submit(work, piece) for piece in pieces]
        for future in as_completed(running):
            if future.exception() is None:
                yield future.result()
        for future in running:
            future.result()


def _one_after_the_other(work: Callable[[Piece], Found], pieces: Sequence[Piece]) -> Iterator[Found]:
    first: Exception | None = None
    for piece in pieces:
        try:
            result = work(piece)
        except Exception as error:
            first = first or error
        else:
            yield result
    if first is not None:
        raise first
