"""Whether an audit record is whole, and every problem that it has, in words."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexmoe_core.audit import AUDIT_FILE, CUT_LINE, cut_file, head_file, read_head
from flexmoe_core.audit_line import EMPTY, Entry, Head, LineError, parse_line
from flexmoe_core.errors import InputError, Problem

REMEDY = "Find out who could write to this file, and compare it with a copy."


@dataclass(frozen=True)
class Verdict:
    """What ``verify`` found. ``notes`` are what a killed process may leave behind; only ``problems`` are a break.

    ``entries`` are the lines that are whole by themselves, in the order of the file, ``lines`` counts all of them.
    """

    path: Path
    lines: int
    entries: tuple[Entry, ...]
    head: Head
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def unbroken(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def record_path(place: Path) -> Path:
    """The record in a folder, or the file itself. Raises InputError where there is none."""
    path = place / AUDIT_FILE if place.is_dir() else place
    if not path.is_file() and not head_file(path).is_file():
        remedy = "Name a record, or the folder that holds it."
        raise InputError([Problem(str(path), "", "there is no audit record", remedy)])
    return path


def verify(path: Path, is_copy: bool = False) -> Verdict:
    """Check every line, the chain, the head and the cut lines of the record at ``path``.

    A copy may come without its head and its cut lines. Raises InputError when the file cannot be read.
    """
    data, head = _read(path)
    *lines, fragment = data.split(b"\n")
    chain = _Chain(path, lines)
    if fragment:
        chain.notes.append(f"what stands after line {len(lines)} was cut short; the next line will tell of it")
    if head is not None or not is_copy:
        chain.compare(head)
    if not is_copy:
        chain.look_for_cut_lines()
    return Verdict(path, len(lines), tuple(chain.entries), chain.head, tuple(chain.problems), tuple(chain.notes))


def _read(path: Path) -> tuple[bytes, Head | None]:
    """The record and its head, while nobody appends."""
    try:
        if not path.exists():
            return b"", read_head(path)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file.read(), read_head(path)
    except OSError as error:
        remedy = "Correct the path or its permissions."
        raise InputError([Problem(str(path), "", f"cannot be read: {error.strerror or error}", remedy)]) from None


class _Chain:
    """The lines that were looked at: ``head`` is that of the last one in order, ``unread`` counts those since."""

    def __init__(self, path: Path, lines: Sequence[bytes]) -> None:
        self.path = path
        self.head = EMPTY
        self.unread = 0
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._lines = lines
        self._first_places: dict[bytes, int] = {}
        parsed = [_parsed(line) for line in lines]
        self._numbers = {one.number for one in parsed if isinstance(one, Entry)}
        for place, one in enumerate(parsed, start=1):
            if isinstance(one, Entry):
                self._add(place, one)
            else:
                self._problem(place, str(one))
                self.unread += 1

    def compare(self, head: Head | None) -> None:
        """Look at the head that stands beside the record."""
        count, last = self.head.count, len(self._lines)
        name = head_file(self.path).name
        if head is None and (head_file(self.path).exists() or count > 1):
            self._problem(0, f"its head {name} is missing or not readable: lines may be missing at the end")
        elif self.entries and self.entries[-1].head == self.head and self.entries[-1].follows(head or EMPTY):
            self.notes.append("the head is one line behind: a process ended in between; the next line repairs it")
        elif head is None or head == self.head or count < head.count <= count + self.unread:
            return
        elif head.count > count:
            what = f"ends the record, but its head counts {head.count} lines"
            self._problem(last, f"{what}: {_range(count + 1, head.count)} missing at the end")
        else:
            self._problem(last, f"is not the end that the head names, which is number {head.count}")

    def look_for_cut_lines(self) -> None:
        """Compare what was cut short with what the record says of it."""
        for entry in self.entries:
            if entry.event != CUT_LINE:
                continue
            place, aside = self._first_places[entry.to_bytes()], cut_file(self.path, entry.number)
            if not aside.is_file():
                self._problem(place, f"tells of {aside.name}, which is missing")
            elif hashlib.sha256(aside.read_bytes()).hexdigest() != entry.facts.get("sha256"):
                self._problem(place, f"tells of {aside.name}, which was changed")

    def _add(self, place: int, entry: Entry) -> None:
        first, count = self._first_places.setdefault(entry.to_bytes(), place), self.head.count
        self.entries.append(entry)
        if first < place:
            self._problem(place, f"is a copy of line {first}")
            return
        if entry.number == count + 1:
            if entry.previous != self.head.hash:
                self._problem(place, "does not continue the line before it: one of the two was replaced")
        elif entry.follows(EMPTY):
            self._problem(place, "begins the record anew: its head was missing or could not be read")
        elif entry.number <= count or any(count < number < entry.number for number in self._numbers):
            self._problem(place, f"has number {entry.number} and stands after number {count}: out of order")
            if entry.number <= count:
                return
        elif entry.number > count + 1 + self.unread:
            self._problem(place, f"comes after a gap: {_range(count + 1, entry.number - 1)} missing")
        self.head, self.unread = entry.head, 0

    def _problem(self, place: int, what: str) -> None:
        line = f"line {place}" if place else ""
        self.problems.append(Problem(str(self.path), line, what, REMEDY))


def _parsed(line: bytes) -> Entry | LineError:
    try:
        return parse_line(line)
    except LineError as error:
        return error


def _range(first: int, last: int) -> str:
    return f"number {first}" if first == last else f"numbers {first} to {last}"
