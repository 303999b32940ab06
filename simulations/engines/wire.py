"""Flower objects as the bytes that a wire would carry, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents


@dataclass(frozen=True, slots=True)
class Packet:
    """A Flower object taken apart: content-addressed parts, of which ``root`` is the outermost.

    Equal parts travel once, as on Flower's own wire.
    """

    root: str
    parts: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for part in self.parts.values())


def pack(thing: InflatableObject) -> Packet:
    """Serialize a message or a record dictionary."""
    with no_object_id_recompute():
        nested = get_all_nested_objects(thing)
        return Packet(thing.object_id, {name: part.deflate() for name, part in nested.items()})


def unpack_message(packet: Packet, message_id: str) -> Message:
    """Rebuild a message; Flower keeps its id outside the serialized form."""
    message = _unpack(packet)
    assert isinstance(message, Message)
    message.metadata.__dict__["_message_id"] = message_id
    return message


def unpack_records(packet: Packet) -> RecordDict:
    """Rebuild a record dictionary."""
    records = _unpack(packet)
    assert isinstance(records, RecordDict)
    return records


def _unpack(packet: Packet) -> InflatableObject:
    return inflate_object_from_contents(packet.root, dict(packet.parts))
