"""The log of a service: one line after another with its time, for its owner alone, and never beyond a bound."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

LIMIT_BYTES = 4 * 2**20
KEPT = 3  # older files beside the one that is written

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # colors, and what could move a cursor


def plain(line: str) -> str:
    """The line without colors and control characters."""
    return ESCAPES.sub("", line)


class ServiceLog:
    """Appends to ``path`` (mode 0600) and turns it into ``path``.1, .2, ... when it is full.

    Raises OSError when it cannot be written.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES, kept: int = KEPT) -> None:
        self._path, self._limit, self._kept = path, limit_bytes, kept
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, line: str) -> None:
        """Append one line, with the time (UTC) before it."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = f"{moment} {line}\n".encode(errors="replace")
        self._make_room(len(data))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def _make_room(self, size: int) -> None:
        try:
            full = self._path.stat().st_size + size > self._limit
        except FileNotFoundError:
            return
        if not full:
            return
        for number in range(self._kept, 0, -1):
            older = self._numbered(number - 1) if number > 1 else self._path
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
