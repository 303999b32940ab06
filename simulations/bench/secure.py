"""What masking costs one site in one round, in computation and in bytes, beside the plain update."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flexmoe_core.attachments import Attachments
from flexmoe_core.masked_messages import SharesReply, UnmaskReply
from flexmoe_core.messages import Masked, TrainReply, encode
from flexmoe_core.naming import with_prefix
from flexmoe_core.privacy.settings import SecureAggregation
from flexmoe_core.secure_aggregation.bounds import smallest_threshold
from flexmoe_core.secure_aggregation.keys import MaskedStatement, Place, PublicKeys
from flexmoe_core.secure_aggregation.memory import MemoryFolder
from flexmoe_core.secure_aggregation.participant import Participant, UnmaskingShares
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.streams import Vector
from flexmoe_core.secure_aggregation.unmasking import Unmasking
from flexmoe_core.secure_aggregation.vector import Layout, codes_of_update, layout_of_update
from flexmoe_core.update import TensorSpec, Update
from flexmoe_core.validation import FrozenModel
from simulations.bench.machine import Machine

EXPERTS = 16
RECEIVED = "e" * 64
CONFIG = "c" * 64
RUN = "0" * 32
T = TypeVar("T")


class SecureBench(FrozenModel):
    """Figures of one site and one round, medians. ``added_s`` is what masking costs beyond the plain update.

    ``coordinator_s`` is the unmasking with one site dropped. ``bytes_plain`` is the plain update as it travels,
    ``bytes_masked`` all that the site sends in a round under masks, ``bytes_beside`` what it gets more.
    """

    machine: Machine
    sites: int
    threshold: int
    parameters: int
    plain_s: float
    masked_s: float
    added_s: float
    coordinator_s: float
    bytes_plain: int
    bytes_masked: int
    bytes_beside: int
    ratio: float


@dataclass
class _Clock:
    """Seconds of computation, by what was done."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds.setdefault(what, []).append(time.process_time() - started)


def measure(machine: Machine, sites: int, parameters: int, repetitions: int) -> SecureBench:
    """Time the first of so many sites, on one core, with updates of random numbers."""
    specs = _specs(parameters)
    layout, clock = layout_of_update(specs), _Clock()
    settings = SecureAggregation(threshold=smallest_threshold(sites, 0))
    bytes_plain, bytes_masked, bytes_beside = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        participants = _participants(Path(folder), sites, settings)
        for number in range(1, repetitions + 1):
            one = _Round(participants, number, specs, layout, clock)
            bytes_plain = one.plain()
            bytes_masked, bytes_beside = one.masked()
    plain_s, masked_s, coordinator_s = (median(clock.seconds[name]) for name in ("plain", "masked", "coordinator"))
    return SecureBench(
        machine=machine,
        sites=sites,
        threshold=settings.threshold,
        parameters=parameters,
        plain_s=plain_s,
        masked_s=masked_s,
        added_s=masked_s - plain_s,
        coordinator_s=coordinator_s,
        bytes_plain=bytes_plain,
        bytes_masked=bytes_masked,
        bytes_beside=bytes_beside,
        ratio=bytes_masked / bytes_plain,
    )


class _Round:
    """One round: everybody takes part, the site that is timed is the first, and the last one is lost."""

    def __init__(
        self,
        participants: dict[str, Participant],
        number: int,
        specs: tuple[TensorSpec, ...],
        layout: Layout,
        clock: _Clock,
    ) -> None:
        self.participants, self.specs, self.layout, self.clock = participants, specs, layout, clock
        self.timed, self.lost = min(participants), max(participants)
        self.roster = participants[self.timed].roster
        self.place = Place(run=RUN, round=number, attempt=1, roster=self.roster.digest, config=CONFIG)
        self.update = _update(specs, number)

    def plain(self) -> int:
        """The plain update as bytes; their number."""
        with self.clock.timing("plain"):
            arrays = with_prefix("weighted", self.update.weighted) | with_prefix("support", self.update.support)
            return len(encode(TrainReply(site=self.timed, round=1, attempt=1, loss=0.5, seconds=1.0), arrays))

    def masked(self) -> tuple[int, int]:
        """A round under masks: bytes that the site sends, and that it gets beside the plain request."""
        before = sum(self.clock.seconds.setdefault("step", []))
        keys = self._each(lambda one: one.announce(self.place))
        sealed = self._each(lambda one: one.deal(self.place, keys.values()))
        said = self._mask(keys, sealed)
        told = self._each(lambda one: one.unmask(self.place, said.values()), without=self.lost)
        self.clock.seconds.setdefault("masked", []).append(sum(self.clock.seconds["step"]) - before)
        self._unmask(keys, said, told)
        up = sum(map(len, self._sent(keys, sealed, said, told)))
        inbox = Attachments(sealed={name: dealt[self.timed] for name, dealt in sealed.items() if name != self.timed})
        statements = sum(len(one.model_dump_json()) for one in (*said.values(), *keys.values()))
        return up, sum(map(len, inbox.sealed.values())) + statements

    def _each(self, step: Callable[[Participant], T], without: str = "") -> dict[str, T]:
        done: dict[str, T] = {}
        for name, one in self.participants.items():
            if name == self.timed:
                with self.clock.timing("step"):
                    done[name] = step(one)
            elif name != without:
                done[name] = step(one)
        return done

    def _mask(self, keys: dict[str, PublicKeys], sealed: dict[str, dict[str, bytes]]) -> dict[str, MaskedStatement]:
        released = {spec.name: np.ones(spec.rows, bool) for spec in self.specs}
        self.total_V = np.zeros(self.layout.numbers, np.uint64)

        def step(one: Participant) -> tuple[Vector, MaskedStatement]:
            vector_V = self.layout.encode(codes_of_update(self.update, self.specs, released))
            shares = {name: dealt[one.site] for name, dealt in sealed.items() if name != one.site}
            statement = one.mask(self.place, list(keys), shares, RECEIVED, vector_V)
            if one.site == self.timed:
                self.reply = encode(_reply(statement, keys[one.site]), {"masked/vector": vector_V})
            return vector_V, statement

        said: dict[str, MaskedStatement] = {}
        for name, (vector_V, statement) in self._each(step, without=self.lost).items():
            self.total_V += vector_V
            said[name] = statement
        return said

    def _unmask(
        self,
        keys: dict[str, PublicKeys],
        said: dict[str, MaskedStatement],
        told: dict[str, UnmaskingShares],
    ) -> None:
        threshold = self.participants[self.timed].settings.threshold
        with self.clock.timing("coordinator"):
            Unmasking(keys, said.keys(), RECEIVED, threshold, self.roster).unmask(self.total_V, told)
        self.layout.decode(self.total_V, len(said))

    def _sent(
        self,
        keys: dict[str, PublicKeys],
        sealed: dict[str, dict[str, bytes]],
        said: dict[str, MaskedStatement],
        told: dict[str, UnmaskingShares],
    ) -> Iterator[bytes]:
        """The two messages of a round: the vector with keys, the shares with those for the next sum."""
        yield self.reply
        hexadecimal = {name: body.hex() for name, body in sealed[self.timed].items()}
        dealt = SharesReply(site=self.timed, sealed=hexadecimal)
        yield encode(UnmaskReply(site=self.timed, shares=told[self.timed], sealed=dealt.sealed))


def _reply(statement: MaskedStatement, keys: PublicKeys) -> TrainReply:
    masked = Masked(statement=statement, keys=keys)
    return TrainReply(site=statement.site, round=statement.place.round, attempt=1, seconds=1.0, masked=masked)


def _specs(parameters: int) -> tuple[TensorSpec, ...]:
    """Three quarters in stacked experts, the rest in one tensor."""
    per_expert = parameters * 3 // 4 // EXPERTS
    rest = parameters - per_expert * EXPERTS
    return TensorSpec("experts", (EXPERTS, per_expert), EXPERTS), TensorSpec("trunk", (rest,), 1)


def _update(specs: tuple[TensorSpec, ...], seed: int) -> Update:
    rng = np.random.default_rng(seed)
    return Update(
        {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in specs},
        {spec.name: rng.uniform(1, 50, spec.rows) for spec in specs},
    )


def _participants(folder: Path, sites: int, settings: SecureAggregation) -> dict[str, Participant]:
    identities = {f"site-{index:04d}": Ed25519PrivateKey.generate() for index in range(sites)}
    roster = PinnedRoster(
        {
            name: key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            for name, key in identities.items()
        }
    )
    return {
        name: Participant(name, key, roster, settings, MemoryFolder(folder / name))
        for name, key in identities.items()
    }
