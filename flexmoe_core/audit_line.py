"""One line of an audit record: what happened, when, and the hashes that chain it to the line before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Fact: TypeAlias = "str | int | float | bool | Sequence[Fact] | Mapping[str, Fact] | None"

NO_HASH = "0" * 64
_HASH = re.compile("[0-9a-f]{64}")


def is_hash(text: object) -> bool:
    """Whether this is a SHA-256 in hexadecimal."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


@dataclass(frozen=True)
class Head:
    """Where a record ends: how many lines it has, and the hash of the last one."""

    count: int
    hash: str

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 0 or not is_hash(self.hash):
            raise ValueError("not the head of a record")


EMPTY = Head(0, NO_HASH)


@dataclass(frozen=True)
class Entry:
    """A line. ``previous`` is the hash of the line before; ``time`` is UTC, ISO 8601."""

    number: int
    time: str
    event: str
    facts: Mapping[str, Any]
    previous: str

    @property
    def hash(self) -> str:
        """SHA-256 of the line as it would be without the key ``hash``."""
        return hashlib.sha256(canonical(self._content())).hexdigest()

    @property
    def head(self) -> Head:
        """The head of a record that ends with this line."""
        return Head(self.number, self.hash)

    def to_bytes(self) -> bytes:
        """The only spelling of this line, with its end. Raises ValueError or TypeError for what is not JSON."""
        return canonical(self._content() | {"hash": self.hash}) + b"\n"

    def follows(self, head: Head) -> bool:
        """Whether this line continues the record that ends at ``head``."""
        return self.number == head.count + 1 and self.previous == head.hash

    def _content(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "time": self.time,
            "event": self.event,
            "facts": self.facts,
            "previous": self.previous,
        }


class LineError(ValueError):
    """What is wrong with a line by itself, in words."""


def parse_line(line: bytes) -> Entry:
    """The line's entry; ``line`` comes without its end. Raises LineError, also for any other spelling."""
    try:
        found = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise LineError("is not JSON") from None
    match found:
        case {
            "number": int() as number,
            "time": str() as time,
            "event": str() as event,
            "facts": dict() as facts,
            "previous": str() as previous,
            "hash": str(),
        }:
            entry = Entry(number, time, event, facts, previous)
        case _:
            raise LineError("is JSON, but not a line of an audit record")
    try:
        whole = entry.to_bytes() == line + b"\n" and type(number) is int and is_hash(previous)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise LineError("was changed: its content does not have the hash that it carries")
    return entry


def canonical(value: object) -> bytes:
    """The JSON of a value, in one spelling. Raises ValueError for a number that JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def require_facts(value: object) -> None:
    """Raise TypeError unless these are facts: text, numbers, truth values, None, lists and mappings of them."""
    match value:
        case None | str() | bool() | int() | float():
            return
        case list() | tuple():
            for one in value:
                require_facts(one)
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise TypeError("the keys of facts are text")
            for one in value.values():
                require_facts(one)
        case _:
            raise TypeError(f"{type(value).__name__} is no fact for an audit record")
