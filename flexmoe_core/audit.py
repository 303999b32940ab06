"""An append-only record in which every line carries the hash of the line before.

``<name>`` holds the lines, ``<name>.head`` how many there are and the hash of the last one. Several processes may
append to one record. A process that is killed leaves a record that the next append completes; what a kill cut short
is kept in ``<name>.cut-<number>``, and a line of the record says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from flexmoe_core.audit_line import EMPTY, Entry, Fact, Head, LineError, canonical, parse_line, require_facts
from flexmoe_core.checkpoint import sync_folder, write_atomic
from flexmoe_core.errors import AuditError

AUDIT_FILE = "audit.jsonl"
CUT_LINE = "cut line"
FIRST_BLOCK = 4096

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The machine's own time."""
    return datetime.now(UTC)


class AuditLog:
    """One record. Without ``durable`` a power cut may lose the last lines, a killed process none."""

    def __init__(self, path: Path, clock: Clock = utc_now, durable: bool = True) -> None:
        self.path, self._clock, self._durable = path, clock, durable

    def append(self, event: str, **facts: Fact) -> Head:
        """Write one line, and give the head that it continues.

        A record that was damaged is continued at the head it had, so that the damage stays visible. Raises
        AuditError when the line could not be written, TypeError or ValueError for what are no facts.
        """
        require_facts(facts)
        try:
            with self._locked() as log:
                before = self._mend(log)
                self._write(log, before, event, facts)
        except OSError as error:
            raise AuditError(
                f"{self.path}: the audit record cannot be written: {error.strerror or error}. Free space or correct "
                "the permissions; until then nothing goes on, because nothing may happen unrecorded."
            ) from None
        return before

    def holds(self, event: str, **facts: Fact) -> bool:
        """Whether some line has this event, and at least these facts."""
        start = b'{"event":' + canonical(event) + b","
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            if not line.startswith(start):
                continue
            try:
                found = parse_line(line).facts
            except LineError:
                continue
            if all(key in found and found[key] == value for key, value in facts.items()):
                return True
        return False

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The record's file, which nobody else writes meanwhile."""
        is_new = not self.path.exists()
        log = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(log, fcntl.LOCK_EX)
            if is_new and self._durable:
                sync_folder(self.path.parent)
            yield log
        finally:
            os.close(log)

    def _mend(self, log: int) -> Head:
        """Complete what a kill interrupted, and give the head to continue at."""
        last, fragment, size = _tail(log)
        head = read_head(self.path) or EMPTY
        try:
            entry = parse_line(last)
        except LineError:
            pass
        else:
            if entry.follows(head):  # the line was written, its head was not
                head = entry.head
        aside = cut_file(self.path, head.count + 1)
        if fragment:
            write_atomic(aside, fragment)
            os.ftruncate(log, size)
        if not aside.exists():
            return head
        cut = aside.read_bytes()
        facts: dict[str, Fact] = {"file": aside.name, "bytes": len(cut), "sha256": hashlib.sha256(cut).hexdigest()}
        return self._write(log, head, CUT_LINE, facts)

    def _write(self, log: int, before: Head, event: str, facts: dict[str, Fact]) -> Head:
        time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        entry = Entry(before.count + 1, time, event, facts, before.hash)
        rest = entry.to_bytes()
        while rest:
            rest = rest[os.write(log, rest) :]
        if self._durable:
            os.fsync(log)
        head = entry.head
        replace = write_atomic if self._durable else _overwrite
        replace(head_file(self.path), canonical(asdict(head)) + b"\n")
        return head


def head_file(path: Path) -> Path:
    """Where a record's head stands."""
    return path.with_name(f"{path.name}.head")


def cut_file(path: Path, number: int) -> Path:
    """Where the beginning of a line is kept that a kill cut short, by the number that it would have had."""
    return path.with_name(f"{path.name}.cut-{number}")


def read_head(path: Path) -> Head | None:
    """The head of the record at ``path``; None where there is none that can be read."""
    try:
        found = json.loads(head_file(path).read_bytes())
        return Head(found["count"], found["hash"]) if len(found) == 2 else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _tail(log: int) -> tuple[bytes, bytes, int]:
    """The last whole line, what stands after it, and the size of the file up to there."""
    size, block = os.fstat(log).st_size, FIRST_BLOCK
    while True:
        start = max(0, size - block)
        data = os.pread(log, size - start, start)
        if start == 0 or data.count(b"\n") >= 2:
            break
        block *= 4
    *lines, fragment = data.split(b"\n")
    return (lines[-1] if lines else b""), fragment, size - len(fragment)


def _overwrite(path: Path, data: bytes) -> None:
    """Write a few bytes in one call, which no kill divides; replacing the file would wait for some disks."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(handle, data, 0)
        os.ftruncate(handle, len(data))
    finally:
        os.close(handle)
