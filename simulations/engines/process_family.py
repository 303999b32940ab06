"""Processes known by a mark in their environment, with all their children, and their end.

Flower and Ray detach what they start: a SIGTERM to Flower's SuperLink leaves the simulation and Ray running.
Children inherit the environment, so that a folder named nowhere else finds them all.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class _Process:
    """A process that lives; its start time tells it from a later one of the same pid."""

    pid: int
    started: str
    parent: int = field(compare=False)  # changes when the parent dies
    marked: bool = field(compare=False)


def find_family(mark: str) -> set[int]:
    """Pids whose environment holds ``mark`` ("NAME=value"), and those of all their children.

    Children count because Ray's agents overwrite their environment. Empty where there is no /proc.
    """
    return {process.pid for process in _family(mark)}


def end_family(mark: str, patience_s: float = 5.0) -> None:
    """Send SIGTERM to the family of ``mark``, SIGKILL to what lives after ``patience_s``, and await its end."""
    members = _signal(_family(mark), signal.SIGTERM)
    members = _signal(_outlive(members, mark, patience_s), signal.SIGKILL)
    _outlive(members, mark, patience_s)


def _outlive(members: set[_Process], mark: str, patience_s: float) -> set[_Process]:
    """Wait until all members have ended; return those that have not, and any that joined them."""
    deadline = time.monotonic() + patience_s
    while members and time.monotonic() < deadline:
        time.sleep(0.1)
        members = (members & set(_all_processes(mark))) | _family(mark)
    return members


def _family(mark: str) -> set[_Process]:
    everyone = _all_processes(mark)
    family = {process for process in everyone if process.marked}
    while True:
        pids = {process.pid for process in family}
        grown = family | {process for process in everyone if process.parent in pids}
        if grown == family:
            return family
        family = grown


def _all_processes(mark: str) -> list[_Process]:
    if not PROC.is_dir():
        return []
    found = (_read(int(entry.name), mark) for entry in PROC.iterdir() if entry.name.isdecimal())
    return [process for process in found if process is not None and process.pid != os.getpid()]


def _read(pid: int, mark: str) -> _Process | None:
    """Read one process; None if it is gone, a zombie, or somebody else's."""
    try:
        # the command's name, in parentheses, may itself hold spaces
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        environment = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except (OSError, UnicodeDecodeError):
        return None
    if fields[0] == "Z":
        return None
    return _Process(pid, fields[19], int(fields[1]), mark.encode() in environment)


def _signal(processes: set[_Process], number: signal.Signals) -> set[_Process]:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
    return processes
