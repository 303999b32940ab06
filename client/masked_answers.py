"""What a hospital answers to requests of masked sums beside training and finish. Bytes in, bytes out."""

from __future__ import annotations

from client.egress import Outgoing, answer_again, answer_count, answer_masking
from client.masking import Masker
from client.site import Site
from client.state import RunState
from client.trainable_rows import trainable_rows
from flexmoe_core.errors import MaskingRefused
from flexmoe_core.masked_messages import (
    COUNTING,
    CountRequest,
    KeysReply,
    KeysRequest,
    SharesReply,
    SharesRequest,
    UnmaskReply,
    UnmaskRequest,
)
from flexmoe_core.messages import Terms, decode
from flexmoe_core.secure_aggregation.vector import layout_of_rows, votes


def keys(site: Site, request_bytes: bytes) -> Outgoing:
    """Announce keys."""
    request, _ = decode(request_bytes, KeysRequest)
    masker = _masker(site, request.terms)
    return answer_masking(KeysReply(site=site.name, keys=masker.keys(request.round, request.attempt)))


def shares(site: Site, request_bytes: bytes) -> Outgoing:
    """Deal shares to those who announced keys."""
    request, _ = decode(request_bytes, SharesRequest)
    masker = _masker(site, request.terms)
    sealed = masker.shares(request.round, request.attempt, request.keys)
    return answer_masking(SharesReply(site=site.name, sealed=sealed))


def count(site: Site, request_bytes: bytes) -> Outgoing:
    """A masked 1 for each row that this site's patients could train, and keys for the first round."""
    request, _ = decode(request_bytes, CountRequest)
    memory, masker = RunState(site.state, request.terms.run), _masker(site, request.terms)
    known = memory.answer_to(request_bytes)
    if known is not None:
        return answer_again(known)
    masker.require_uncounted()
    if not masker.joins(request.masking, COUNTING):
        return answer_count(site.name, masker.absent(request.masking, COUNTING + 1))
    specs, rows = trainable_rows(request.terms, request.table, site.read(request.terms, ("train",)))
    vector = masker.masked(request.masking, COUNTING, request_bytes, layout_of_rows(specs), votes(rows), COUNTING + 1)
    answer = answer_count(site.name, vector)
    memory.store_answer(request_bytes, answer)
    return answer


def unmask(site: Site, request_bytes: bytes) -> Outgoing:
    """The shares that unmask a sum, and shares for the next one."""
    request, _ = decode(request_bytes, UnmaskRequest)
    memory, masker = RunState(site.state, request.terms.run), _masker(site, request.terms)
    known = memory.answer_to(request_bytes)
    if known is not None:
        return answer_again(known)
    told, sealed = masker.unmask(request)
    if not request.keys:
        masker.forget()
    answer = answer_masking(UnmaskReply(site=site.name, shares=told, sealed=sealed))
    memory.store_answer(request_bytes, answer)
    return answer


def _masker(site: Site, terms: Terms) -> Masker:
    masker = site.masker(terms)
    if masker is None:
        raise MaskingRefused("masks are asked for in a run whose terms have none")
    return masker
