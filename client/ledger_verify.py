"""Every problem of a privacy ledger: in itself, and against what was told of it when answers left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.ledger import STARTED
from client.ledger_file import is_signed_line
from client.ledger_place import LedgerPlace
from client.record import ANSWERED
from flexmoe_core.audit import AUDIT_FILE
from flexmoe_core.audit_line import EMPTY, Entry, Head, LineError, parse_line
from flexmoe_core.audit_verify import Verdict, record_path, verify
from flexmoe_core.errors import InputError, LedgerError, Problem

LOST = "An older or another ledger has taken its place: find out who could write here."


@dataclass(frozen=True)
class LedgerVerdict:
    """What the chain by itself shows, what it was compared with, and every further problem."""

    chain: Verdict
    compared: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Told:
    """A head of the ledger that a line of a record names."""

    record: Path
    line: int
    head: Head


def verify_ledger(place: LedgerPlace, server_record: Path | None) -> LedgerVerdict:
    """Check chain, signatures and head; then the heads that the site's own audit record names, and those in a copy
    of the coordinator's. Raises InputError where there is no ledger, or a file cannot be read."""
    if not place.path.exists():
        remedy = "Name the folder that holds it, or start one with 'flexmoe-client ledger init'."
        raise InputError([Problem(str(place.path), "", "there is no privacy ledger", remedy)])
    chain = replace(verify(place.path, is_copy=True), notes=())
    problems = [*_own_problems(place, chain)]
    own = place.state / AUDIT_FILE
    answers = [one for one in verify(own).entries if one.event == ANSWERED] if own.exists() else []
    told = [_Told(own, one.number, _head(one.facts["ledger"])) for one in answers if "ledger" in one.facts]
    if server_record is not None:
        record = verify(record_path(server_record), is_copy=True)
        problems += record.problems
        known = [*_told_by_coordinator(record, {str(one.facts.get("site")) for one in answers})]
        if not known:
            remedy = "Name the record of a run in which this site was charged."
            problems.append(Problem(str(record.path), "", "holds no head of this site's privacy ledger", remedy))
        told += known
    heads = {EMPTY, *(entry.head for entry in chain.entries), *_heads_put_aside(place, chain.entries)}
    for one in told:
        if one.head not in heads:
            what = f"names line {one.head.count} of the privacy ledger, which is not that line or not there"
            problems.append(Problem(str(one.record), f"line {one.line}", what, LOST))
    return LedgerVerdict(chain, len(told), tuple(problems))


def _own_problems(place: LedgerPlace, chain: Verdict) -> Iterator[Problem]:
    public, path = place.key.public_key(), str(place.path)
    unsigned = [entry.number for entry in chain.entries if not is_signed_line(entry, public)]
    for number in unsigned:
        yield Problem(path, f"line {number}", "is not signed with this site's key", "Only its owner can write lines.")
    if chain.unbroken and not unsigned:
        try:
            place.open()
        except LedgerError as error:
            what, _, remedy = str(error).removeprefix(f"{path}: ").partition(". ")
            yield Problem(path, "", what, remedy)


def _told_by_coordinator(record: Verdict, names: set[str]) -> Iterator[_Told]:
    """Handshakes know nodes by number, and say which site each of them is."""
    for entry in record.entries:
        if entry.event == ANSWERED:
            nodes = entry.facts.get("nodes") or {}
            for name in names:
                answer = entry.facts.get("answers", {}).get(f"node {nodes[name]}" if name in nodes else name)
                if answer and "ledger" in answer:
                    yield _Told(record.path, entry.number, _head(answer["ledger"]))


def _heads_put_aside(place: LedgerPlace, entries: Sequence[Entry]) -> Iterator[Head]:
    """Those of the ledgers that an operator's act has replaced, as far as their files are what they were then."""
    replaced = [one for entry in entries[:1] if entry.event == STARTED for one in entry.facts.get("replaced", ())]
    for named in [file for one in replaced for file in one["files"]]:
        file = place.state / Path(named["file"]).name
        data = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(data).hexdigest() != named["sha256"]:
            continue
        for line in data.split(b"\n"):
            try:
                entry = parse_line(line)
            except LineError:
                continue
            yield entry.head
            if entry.event == STARTED:
                yield from _heads_put_aside(place, [entry])


def _head(facts: dict[str, Any]) -> Head:
    return Head(facts["count"], facts["hash"])
