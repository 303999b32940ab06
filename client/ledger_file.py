"""The file of the privacy ledger: lines that are chained by hashes and signed, and a signed copy of the head.

A line is written before the head, so a process that is killed in between leaves a ledger that is one line ahead of
its head. That line was charged and counts. A ledger behind its head has lost lines and is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from flexmoe_core.audit import Clock, utc_now
from flexmoe_core.audit_line import EMPTY, Entry, Fact, Head, LineError, canonical, parse_line
from flexmoe_core.checkpoint import sync_folder, write_atomic
from flexmoe_core.errors import LedgerError

LEDGER_FILE, HEAD_FILE, LOCK_FILE = "privacy_ledger.jsonl", "privacy_ledger.head", "privacy_ledger.lock"
LINE_PURPOSE, HEAD_PURPOSE = b"flexmoe privacy ledger line 1\n", b"flexmoe privacy ledger head 1\n"
SIGNATURE = "signature"


@dataclass(frozen=True)
class LedgerHead:
    """Where a ledger ends: its number of lines, the hash of the last one, and the site's signature of both."""

    count: int
    hash: str
    signature: str

    @property
    def head(self) -> Head:
        """Without the signature."""
        return Head(self.count, self.hash)


def signed_head(head: Head, key: Ed25519PrivateKey) -> LedgerHead:
    """The head with the key's signature."""
    return LedgerHead(head.count, head.hash, key.sign(HEAD_PURPOSE + canonical(asdict(head))).hex())


def is_signed_head(head: LedgerHead, key: Ed25519PublicKey) -> bool:
    """Whether the owner of the key signed this head."""
    return _is_signed(head.signature, HEAD_PURPOSE + canonical(asdict(head.head)), key)


def signed_line(unsigned: Entry, key: Ed25519PrivateKey) -> Entry:
    """The line with the key's signature among its facts."""
    signature = key.sign(_line_text(unsigned)).hex()
    return Entry(
        unsigned.number, unsigned.time, unsigned.event, {**unsigned.facts, SIGNATURE: signature}, unsigned.previous
    )


def is_signed_line(entry: Entry, key: Ed25519PublicKey) -> bool:
    """Whether the owner of the key signed this line, and with it every line before."""
    return _is_signed(entry.facts.get(SIGNATURE), _line_text(entry), key)


def _line_text(entry: Entry) -> bytes:
    facts = {name: fact for name, fact in entry.facts.items() if name != SIGNATURE}
    return LINE_PURPOSE + canonical([entry.number, entry.time, entry.event, facts, entry.previous])


def _is_signed(signature: object, text: bytes, key: Ed25519PublicKey) -> bool:
    try:
        key.verify(bytes.fromhex(str(signature)), text)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_head_copy(state: Path) -> LedgerHead | None:
    """The head that stands beside the ledger in a state folder; None where there is none that can be read."""
    try:
        found = json.loads((state / HEAD_FILE).read_bytes())
        head = Head(found["count"], found["hash"])
        return LedgerHead(head.count, head.hash, str(found[SIGNATURE]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Nobody else reads or writes this folder's ledger meanwhile. Raises LedgerError for any error of the disk."""
    try:
        lock = os.open(state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise LedgerError(
            f"{state / LEDGER_FILE}: the privacy ledger cannot be read or written: {error.strerror or error}. Free "
            "space or correct the permissions; until then nobody trains here."
        ) from None


def is_started(state: Path) -> bool:
    """Whether there is a ledger, or what is left of one."""
    return (state / LEDGER_FILE).exists() or (state / HEAD_FILE).exists()


class LedgerFile:
    """What has been read of a ledger, which other processes may append to meanwhile."""

    def __init__(self, state: Path, key: Ed25519PrivateKey, clock: Clock = utc_now) -> None:
        self.path = state / LEDGER_FILE
        self._state, self._key, self._clock = state, key, clock
        self._size = 0
        self._last: Entry | None = None
        self._copy_is_behind = False

    @property
    def head(self) -> LedgerHead:
        """Of the lines that have been read or written."""
        return signed_head(self._head, self._key)

    @property
    def _head(self) -> Head:
        return self._last.head if self._last else EMPTY

    def read_on(self) -> list[Entry]:
        """The lines that have been added since the last call, all of them at first; call it while ``locked``.

        Raises LedgerError unless they continue what was read, are signed, and end where the copy of the head says.
        """
        if not self.path.exists():
            raise self.error("is missing" if self._state.joinpath(HEAD_FILE).exists() else "was never started")
        *lines, fragment = self._rest().split(b"\n")
        found, last = [], self._last
        for line in lines:
            last = self._follower(last, line)
            found.append(last)
        if last is None:
            raise self.error("has no line")
        if not is_signed_line(last, self._key.public_key()):
            raise self.error(f"line {last.number} is not signed with this site's key")
        self._compare_with_copy(last, fragment)
        self._size += sum(len(line) + 1 for line in lines)
        self._last = last
        return found

    def append(self, event: str, facts: Mapping[str, Fact]) -> LedgerHead:
        """Add a line, which is on the disk when this returns; call it while ``locked``, after ``read_on``."""
        if self._copy_is_behind:
            self._write_copy()
        time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        entry = signed_line(Entry(self._head.count + 1, time, event, dict(facts), self._head.hash), self._key)
        ledger = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(ledger, self._size)  # a line that was cut short was never charged
            written = 0
            line = entry.to_bytes()
            while written < len(line):
                written += os.pwrite(ledger, line[written:], self._size + written)
            os.fsync(ledger)
        finally:
            os.close(ledger)
        sync_folder(self._state)
        self._size += len(line)
        self._last, self._copy_is_behind = entry, True
        self._write_copy()
        return self.head

    def error(self, what: str) -> LedgerError:
        """What is wrong with the ledger, and what to do about it."""
        return LedgerError(
            f"{self.path}: the privacy ledger {what}. Nobody trains here until the cause is known and an operator "
            "has started a new one with 'flexmoe-client ledger init', which carries over what was spent before."
        )

    def _rest(self) -> bytes:
        with self.path.open("rb") as ledger:
            if os.fstat(ledger.fileno()).st_size < self._size:
                raise self.error("has become shorter")
            ledger.seek(self._size)
            return ledger.read()

    def _follower(self, last: Entry | None, line: bytes) -> Entry:
        head = last.head if last else EMPTY
        try:
            entry = parse_line(line)
        except LineError as error:
            raise self.error(f"was changed: line {head.count + 1} {error}") from None
        if not entry.follows(head):
            raise self.error(f"was changed: line {head.count + 1} does not continue the line before it")
        return entry

    def _compare_with_copy(self, last: Entry, fragment: bytes) -> None:
        copy = read_head_copy(self._state)
        if copy is None:
            raise self.error(f"has no copy of its head: {HEAD_FILE} is missing or not readable")
        if not is_signed_head(copy, self._key.public_key()):
            raise self.error(f"has a copy of its head, {HEAD_FILE}, that is not signed with this site's key")
        self._copy_is_behind = last.follows(copy.head)
        if copy.head == last.head or (self._copy_is_behind and not fragment):
            return
        lost = f"has {last.number} lines, and the copy of its head counts {copy.count}"
        raise self.error(lost if copy.count > last.number else "is not the one that the copy of its head names")

    def _write_copy(self) -> None:
        write_atomic(self._state / HEAD_FILE, canonical(asdict(self.head)) + b"\n")
        self._copy_is_behind = False
