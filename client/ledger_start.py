"""How a ledger begins: by an operator's explicit act, or in a simulation by itself.

What was spent before is never taken to be nothing: an operator says so, or names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import Field, ValidationError

from client.ledger import Charge, PrivacyLedger, charges_of
from client.ledger_file import HEAD_FILE, LEDGER_FILE, is_started, locked
from flexmoe_core.audit import Clock, utc_now
from flexmoe_core.audit_line import Fact, LineError, parse_line
from flexmoe_core.checkpoint import sync_folder, write_atomic
from flexmoe_core.errors import InputError, LedgerError, Problem
from flexmoe_core.privacy.events import PrivacyEvent
from flexmoe_core.signatures import read_identity_key
from flexmoe_core.validation import FrozenModel, read_toml

KEY_FILE = "ledger_key"


class _Declared(FrozenModel):
    study: str
    event: PrivacyEvent
    delta: float | None = Field(default=None, gt=0, lt=1)


class _Declaration(FrozenModel):
    """What an operator knows of earlier spending."""

    charge: Annotated[tuple[_Declared, ...], Field(min_length=1)]


def node_ledger(state: Path, identity: Path | None, create: bool) -> PrivacyLedger:
    """The ledger of a node. ``identity`` is the file of its key; a node of a simulation has none.

    With ``create``, for simulations alone, a ledger that was never started begins, and a key is made for it. Raises
    LedgerError or InputError.
    """
    if identity is not None:
        key = read_identity_key(identity)
    elif create or (state / KEY_FILE).exists():
        key = simulation_key(state)
    else:
        raise LedgerError(f"{state}: this node has no identity key to sign its privacy ledger with")
    return PrivacyLedger.open_or_create(state, key) if create else PrivacyLedger.open(state, key)


def simulation_key(state: Path) -> Ed25519PrivateKey:
    """The key in the state folder, made once."""
    file = state / KEY_FILE
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(state):
        if not file.exists():
            key = Ed25519PrivateKey.generate()
            write_atomic(file, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return read_identity_key(file)


def begin(
    state: Path, key: Ed25519PrivateKey, reason: str, before: Sequence[Charge] | None, clock: Clock = utc_now
) -> PrivacyLedger:
    """Start a ledger by an operator's act; ``before`` is None where nothing was spent, as far as is known.

    A ledger that is not whole is kept aside, and the first line names it. Raises InputError where there is one that
    is whole, or where nothing can be written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        what = f"cannot hold a ledger: {error.strerror or error}"
        raise InputError([Problem(str(state), "", what, "Correct the path or its permissions.")]) from None
    replaced: list[Fact] = []
    if is_started(state):
        try:
            PrivacyLedger.open(state, key)
        except LedgerError as error:
            replaced = _put_aside(state, str(error), clock)
        else:
            remedy = "Go on with it. 'flexmoe-client privacy status' shows what was spent."
            raise InputError([Problem(str(state / LEDGER_FILE), "", "is a whole privacy ledger already", remedy)])
    before_is = "carried over" if before is not None else "assumed to be nothing"
    return PrivacyLedger.start(state, key, reason, before or (), {"before_is": before_is, "replaced": replaced})


def _put_aside(state: Path, problem: str, clock: Clock) -> list[Fact]:
    """Rename what there is, and tell of it."""
    stamp, told = clock().astimezone(UTC).strftime("%Y%m%dT%H%M%S%f"), []
    for name in (LEDGER_FILE, HEAD_FILE):
        file = state / name
        if file.exists():
            aside = file.with_name(f"{name}.broken-{stamp}")
            file.rename(aside)
            told.append({"file": aside.name, "sha256": hashlib.sha256(aside.read_bytes()).hexdigest()})
    sync_folder(state)
    return [{"problem": problem, "files": told}]


def earlier_charges(file: Path) -> list[Charge]:
    """What was spent before: from another ledger (.jsonl), or from a list of charges that an operator wrote (.toml).

    Raises InputError with every problem.
    """
    if file.suffix == ".toml":
        return [Charge(one.study, one.event, one.delta) for one in read_toml(file, _Declaration).charge]
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        remedy = "Correct the path or its permissions."
        raise InputError([Problem(str(file), "", f"cannot be read: {error.strerror or error}", remedy)]) from None
    charges, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            charges += charges_of(parse_line(line))
        except (LineError, ValidationError, LookupError, TypeError):
            remedy = "Write all that was spent in a .toml file instead; see docs/privacy.md."
            problems.append(Problem(str(file), f"line {number}", "is not a whole line of a ledger", remedy))
    if problems:
        raise InputError(problems)
    return charges
