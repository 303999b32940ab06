"""Faults that a simulated federation suffers at fixed moments, the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, Message

FaultKind = Literal["drop", "delay", "raise", "corrupt"]


class InjectedError(Exception):
    """Raised at a site in place of its ClientApp."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong between the coordinator and ``site``.

    - ``drop``: the message is lost on its way; the site never works on it and no reply ever comes.
    - ``delay``: the site does its work, but the reply misses the first pull, as after a round's timeout.
    - ``raise``: the site answers with an error and its ClientApp does not run.
    - ``corrupt``: one bit of the reply is flipped: number ``bit`` (negative: from the end, None: the middle
      one) of the array or bytes named ``payload``, as "record/key" (None: the largest one of the reply).

    The fault strikes message number ``nth`` to the site (counted from 0) and those for which
    ``when(message type, round)`` is true, the round being the message's group id if that is a number.
    With both, both must hold; with neither, every message is struck.
    """

    site: str
    kind: FaultKind
    nth: int | None = None
    when: Callable[[str, int | None], bool] | None = None
    payload: str | None = None
    bit: int | None = None

    def __post_init__(self) -> None:
        if self.nth is not None and self.nth < 0:
            raise ValueError(f"Fault.nth counts messages from 0, got {self.nth}")
        if self.kind != "corrupt" and (self.payload is not None or self.bit is not None):
            raise ValueError(f"a fault of kind '{self.kind}' has no payload and no bit")

    def strikes(self, message: Message, nth: int) -> bool:
        """Whether this fault meets ``message``, the ``nth`` one to the fault's site."""
        if self.nth is not None and self.nth != nth:
            return False
        group = message.metadata.group_id
        round_number = int(group) if group.isdecimal() else None
        return self.when is None or self.when(message.metadata.message_type, round_number)


@dataclass(frozen=True)
class FaultPlan:
    """All faults of a run; where several strike the same message, the first one counts."""

    faults: tuple[Fault, ...] = ()

    @property
    def sites(self) -> frozenset[str]:
        """Sites that the plan names."""
        return frozenset(fault.site for fault in self.faults)

    def strike(self, site: str, message: Message, nth: int) -> Fault | None:
        """Return the fault that meets the ``nth`` message to ``site``, if any."""
        for fault in self.faults:
            if fault.site == site and fault.strikes(message, nth):
                return fault
        return None


def corrupt(reply: Message, fault: Fault) -> None:
    """Flip the bit that ``fault`` names, in place. Raises ValueError if the reply has no such bit."""
    payloads = _payloads(reply)
    if not payloads:
        raise ValueError(f"the reply of {fault.site} holds no array and no bytes to corrupt")
    name = fault.payload or max(payloads, key=lambda name: len(payloads[name]))
    if name not in payloads:
        raise ValueError(f"the reply of {fault.site} has no '{name}', only {sorted(payloads)}")
    _store(reply, name, _flip(payloads[name], fault.bit))


def _payloads(reply: Message) -> dict[str, bytes]:
    """Arrays and byte strings of a reply, by "record/key"."""
    found: dict[str, bytes] = {}
    for record_name, record in (reply.content if reply.has_content() else {}).items():
        for key, value in record.items():
            if isinstance(value, Array):
                found[f"{record_name}/{key}"] = value.data
            elif isinstance(value, bytes):
                found[f"{record_name}/{key}"] = value
    return {name: data for name, data in found.items() if data}


def _flip(data: bytes, bit: int | None) -> bytes:
    bits = 8 * len(data)
    place = bits // 2 if bit is None else bit
    if not -bits <= place < bits:
        raise ValueError(f"bit {place} is outside a payload of {bits} bits")
    index, offset = divmod(place % bits, 8)
    return data[:index] + bytes([data[index] ^ (1 << offset)]) + data[index + 1 :]


def _store(reply: Message, name: str, data: bytes) -> None:
    record_name, key = name.split("/", maxsplit=1)
    record = reply.content[record_name]
    if isinstance(record, ArrayRecord):
        record[key] = replace(record[key], data=data)
    elif isinstance(record, ConfigRecord):
        record[key] = data
