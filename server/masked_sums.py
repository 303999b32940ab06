"""The coordinator's side of masked sums: keys and shares in place, a vector of each site, and their sum unmasked.

It learns the sum alone. What it can check is the form of each vector, and that the unmasked vector is a sum of so
many sites' within its range: it cannot tell which of them sent a bad one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from flwr.serverapp import Grid

from flexmoe_core.attachments import Attachments
from flexmoe_core.errors import MaskingRefused, MessageError, RunFailed
from flexmoe_core.masked_messages import (
    KeysReply,
    KeysRequest,
    SharesReply,
    SharesRequest,
    UnmaskReply,
    UnmaskRequest,
    place_of,
)
from flexmoe_core.messages import Arrays, Masked, Masking, Terms, decode, encode
from flexmoe_core.secure_aggregation.keys import MaskedStatement, Place, PublicKeys, digest_of_cohort
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.streams import Vector
from flexmoe_core.secure_aggregation.unmasking import Unmasking
from flexmoe_core.secure_aggregation.vector import Layout
from flexmoe_core.signatures import digest_of
from flexmoe_core.validation import FrozenModel
from server.conversation import Answers, ask, in_short
from server.conversation import Question as FlowerQuestion
from server.identities import Identities
from server.record import Question, RunRecord
from server.run_store import RunStore

VECTOR: Final = "masked/vector"
SAT_OUT: Final = "sat out: its keys and shares were not in place"
ASKED_BY: Final[dict[Question, FlowerQuestion]] = {
    "keys": "query.keys",
    "shares": "query.shares",
    "count": "query.count",
    "unmask": "query.unmask",
    "train": "train",
    "finish": "evaluate",
}


Reply = TypeVar("Reply", bound=FrozenModel)
Read = dict[str, tuple[Any, dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Exchange:
    """Keys by site, and who dealt which sealed shares to whom (by sender, then recipient), for one sum."""

    place: Place
    keys: Mapping[str, PublicKeys]
    sealed: Mapping[str, Mapping[str, bytes]]

    @property
    def cohort(self) -> tuple[str, ...]:
        """Those whose keys and shares are in place."""
        return tuple(sorted(self.sealed))

    def beside(self, recipient: str) -> Attachments:
        """What the cohort sealed for one of it."""
        others = {sender: dealt for sender, dealt in self.sealed.items() if sender != recipient}
        return Attachments(sealed={sender: dealt[recipient] for sender, dealt in others.items()})


@dataclass
class MaskedSum:
    """How one sum went: ``blocks`` where it came out, else the ``problem``; the replies' facts by site."""

    cohort: tuple[str, ...]
    replies: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    blocks: dict[str, np.ndarray] | None = None
    problem: str | None = None
    survivors: tuple[str, ...] = ()
    answers: Answers = field(default_factory=lambda: Answers({}, {}, (), 0, 0))


@dataclass
class _Collected:
    """What has come in of one sum."""

    total_V: Vector
    statements: dict[str, MaskedStatement] = field(default_factory=dict)
    next_keys: dict[str, PublicKeys] = field(default_factory=dict)


class MaskedSums:
    """The sums of one run, one after the other."""

    def __init__(
        self, grid: Grid, store: RunStore, terms: Terms, record: RunRecord, identities: Identities, deadline_s: float
    ) -> None:
        settings, roster = terms.privacy.secure_aggregation, store.roster
        if settings is None or roster is None:
            raise RunFailed("masked sums need settings, and a roster of the sites' keys")
        self._grid, self._store, self._terms = grid, store, terms
        self._record, self._identities, self._deadline_s = record, identities, deadline_s
        self.threshold, self.roster = settings.threshold, PinnedRoster.of(roster)
        self._exchange: Exchange | None = None

    def masking(
        self, nodes: Mapping[str, int], round_number: int, held: Mapping[str, tuple[int, ...]] | None = None
    ) -> Masking:
        """The cohort of a sum. Where the chain is broken, keys and shares are exchanged anew, as a new attempt.

        Raises MaskingRefused where they are in place for fewer sites than the threshold.
        """
        if not self._is_ready(round_number):
            self._set_up(nodes, round_number)
        exchange = self._exchange
        if exchange is None or not self._is_ready(round_number):
            found = 0 if exchange is None else len(exchange.cohort)
            raise MaskingRefused(f"keys and shares of {found} sites are in place, {self.threshold} are needed")
        return Masking(attempt=exchange.place.attempt, cohort=exchange.cohort, held=dict(held or {}))

    def take(
        self,
        question: Question,
        nodes: Mapping[str, int],
        request: FrozenModel,
        arrays: Arrays | None,
        reply_kind: type[Reply],
        layout: Layout,
        needed: int,
        goes_on: bool = True,
    ) -> MaskedSum:
        """Ask for masked vectors and, if enough came, for what unmasks their sum; never raises MaskingRefused.

        ``needed`` survivors are asked for, at least the threshold. ``goes_on``: another sum follows.
        """
        exchange, self._exchange = self._exchange, None
        assert exchange is not None, "masking comes first"
        payload = encode(request, arrays)
        beside = {name: exchange.beside(name) for name in exchange.cohort if name in nodes}
        answers = self._ask(question, nodes, payload, exchange.place, beside)
        read, dropped = _read(answers, reply_kind)
        result = MaskedSum(exchange.cohort, dropped=dropped, answers=answers)
        collected = _Collected(np.zeros(layout.numbers, np.uint64))
        for site, (reply, sent) in read.items():
            try:
                self._collect(collected, exchange, digest_of(payload), site, reply.masked, sent)
                result.replies[site] = reply
            except MaskingRefused as error:
                dropped[site] = [in_short(str(error))]
        self._record.answered(question, answers, dropped, exchange.place.round, exchange.place.attempt)
        dropped |= {site: [SAT_OUT] for site in result.replies if site not in collected.statements}
        result.survivors = tuple(sorted(collected.statements))
        if len(result.survivors) < max(needed, self.threshold):
            result.problem = f"{len(result.survivors)} masked vectors came, {max(needed, self.threshold)} are needed"
            return result
        present = {site: nodes[site] for site in result.replies}
        try:
            self._unmask(result, collected, exchange, digest_of(payload), present, goes_on)
            result.blocks = layout.decode(collected.total_V, len(result.survivors))
        except MaskingRefused as error:
            result.problem = in_short(str(error))
        return result

    def _is_ready(self, round_number: int) -> bool:
        exchange = self._exchange
        return (
            exchange is not None and exchange.place.round == round_number and len(exchange.cohort) >= self.threshold
        )

    def _set_up(self, nodes: Mapping[str, int], round_number: int) -> None:
        place = place_of(self._terms, round_number, self._store.next_attempt(), self.roster)
        facts = {"terms": self._terms, "round": place.round, "attempt": place.attempt}
        answers = self._ask("keys", nodes, encode(KeysRequest(**facts)), place)
        read, dropped = _read(answers, KeysReply)
        keys = self._sound_keys({site: reply.keys for site, (reply, _) in read.items()}, place, dropped)
        self._record.answered("keys", answers, dropped, place.round, place.attempt)
        if len(keys) < self.threshold:
            self._exchange = Exchange(place, keys, {})
            return
        request = SharesRequest(**facts, keys=tuple(keys[site] for site in sorted(keys)))
        answers = self._ask("shares", {site: nodes[site] for site in keys}, encode(request), place)
        dealt, dropped = _read(answers, SharesReply)
        self._record.answered("shares", answers, dropped, place.round, place.attempt)
        self._exchange = _exchange(place, keys, {site: reply.sealed for site, (reply, _) in dealt.items()})

    def _sound_keys(
        self, keys: Mapping[str, PublicKeys], place: Place, dropped: dict[str, list[str]]
    ) -> dict[str, PublicKeys]:
        """Those that the site itself signed for this place: others would make every site refuse the list."""
        sound: dict[str, PublicKeys] = {}
        for site, one in keys.items():
            try:
                one.require_signature(self.roster, place)
                if one.site != site:
                    raise MaskingRefused("the keys are another site's")
                sound[site] = one
            except MaskingRefused as error:
                dropped[site] = [in_short(str(error))]
        return sound

    def _collect(
        self, collected: _Collected, exchange: Exchange, received: str, site: str, masked: Masked | None, sent: Arrays
    ) -> None:
        """Add one site's vector, all of it or nothing; raises MaskingRefused."""
        if masked is None:
            raise MaskingRefused("the reply is not masked")
        next_place = exchange.place.model_copy(update={"round": exchange.place.round + 1})
        if masked.keys is not None:
            refused: dict[str, list[str]] = {}
            collected.next_keys |= self._sound_keys({site: masked.keys}, next_place, refused)
        if masked.statement is None:
            return
        statement = masked.statement
        statement.require_signature(self.roster, exchange.place)
        expected = (site, digest_of_cohort(exchange.cohort, exchange.place), received)
        if (statement.site, statement.cohort, statement.received) != expected or site not in exchange.cohort:
            raise MaskingRefused("it masked for another cohort or request")
        vector_V = sent.get(VECTOR)
        if len(sent) != 1 or vector_V is None or vector_V.dtype != np.uint64:
            raise MaskingRefused("the reply does not hold one masked vector")
        if vector_V.shape != collected.total_V.shape:
            raise MaskingRefused("the masked vector has another length")
        collected.total_V += vector_V
        collected.statements[site] = statement

    def _unmask(
        self,
        result: MaskedSum,
        collected: _Collected,
        exchange: Exchange,
        received: str,
        nodes: Mapping[str, int],
        goes_on: bool,
    ) -> None:
        place, next_keys = exchange.place, collected.next_keys if goes_on else {}
        request = UnmaskRequest(
            terms=self._terms,
            round=place.round,
            attempt=place.attempt,
            statements=tuple(collected.statements[site] for site in result.survivors),
            keys=tuple(next_keys[site] for site in sorted(next_keys)) if len(next_keys) >= self.threshold else (),
        )
        answers = self._ask("unmask", nodes, encode(request), place)
        read, refused = _read(answers, UnmaskReply)
        self._record.answered("unmask", answers, refused, place.round, place.attempt)
        result.answers = result.answers.counting(answers)
        if request.keys:
            next_place = place.model_copy(update={"round": place.round + 1})
            sealed = {site: reply.sealed for site, (reply, _) in read.items() if site in next_keys}
            self._exchange = _exchange(next_place, next_keys, sealed)
        shares = {site: reply.shares for site, (reply, _) in read.items() if reply.shares is not None}
        cohort = {site: exchange.keys[site] for site in exchange.cohort}
        unmasking = Unmasking(cohort, result.survivors, received, self.threshold, self.roster)
        unmasking.unmask(collected.total_V, {site: one for site, one in shares.items() if site in exchange.cohort})

    def _ask(
        self,
        question: Question,
        nodes: Mapping[str, int],
        payload: bytes,
        place: Place,
        beside: Mapping[str, Attachments] | None = None,
    ) -> Answers:
        self._record.asked(question, nodes, payload, place.round, place.attempt)
        answers = ask(self._grid, nodes, ASKED_BY[question], payload, self._deadline_s, beside)
        return self._identities.checked(question, payload, answers)


def _exchange(place: Place, keys: Mapping[str, PublicKeys], dealt: Mapping[str, Mapping[str, str]]) -> Exchange:
    """The cohort: those who dealt a share to every other one."""
    whole = {site: sealed for site, sealed in dealt.items() if sealed.keys() == keys.keys() - {site}}
    as_bytes = {site: {name: bytes.fromhex(one) for name, one in sealed.items()} for site, sealed in whole.items()}
    return Exchange(place, keys, as_bytes)


def _read(answers: Answers, kind: type[Reply]) -> tuple[Read, dict[str, list[str]]]:
    """Replies with their arrays, and what is wrong with the others, by site."""
    read: Read = {}
    dropped: dict[str, list[str]] = {}
    for site, payload in sorted(answers.payloads.items()):
        try:
            reply, arrays = decode(payload, kind)
        except MessageError as error:
            dropped[site] = [in_short(str(error))]
            continue
        if getattr(reply, "site", None) == site:
            read[site] = reply, arrays
        else:
            dropped[site] = ["the reply calls itself by another site's name"]
    return read, dropped
