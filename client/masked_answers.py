"""What a hospital answers to requests of masked sums beside training and finish. Bytes in, bytes out."""

from __future__ import annotations

from client.masking import Masker
from client.site import Site
from client.state import RunState
from flexmoe_core.errors import MaskingRefused
from flexmoe_core.masked_messages import (
    COUNTING,
    CountReply,
    CountRequest,
    KeysReply,
    KeysRequest,
    SharesReply,
    SharesRequest,
    UnmaskReply,
    UnmaskRequest,
)
from flexmoe_core.messages import Terms, decode, encode
from flexmoe_core.secure_aggregation.vector import layout_of_rows, votes


def keys(site: Site, request_bytes: bytes) -> bytes:
    """Announce keys."""
    request, _ = decode(request_bytes, KeysRequest)
    masker = _masker(site, request.terms)
    return encode(KeysReply(site=site.name, keys=masker.keys(request.round, request.attempt)))


def shares(site: Site, request_bytes: bytes) -> bytes:
    """Deal shares to those who announced keys."""
    request, _ = decode(request_bytes, SharesRequest)
    masker = _masker(site, request.terms)
    sealed = masker.shares(request.round, request.attempt, request.keys)
    return encode(SharesReply(site=site.name, sealed=sealed))


def count(site: Site, request_bytes: bytes) -> bytes:
    """A masked 1 for each row that this site's patients could train, and keys for the first round."""
    request, _ = decode(request_bytes, CountRequest)
    memory, masker = RunState(site.state, request.terms.run), _masker(site, request.terms)
    known = memory.answer_to(request_bytes)
    if known is not None:
        return known
    masker.require_uncounted()
    if not masker.joins(request.masking, COUNTING):
        return encode(CountReply(site=site.name, masked=masker.absent(request.masking, COUNTING + 1)))
    specs, rows = site.trainable_rows(request.terms, request.table)
    masked, arrays = masker.masked(
        request.masking, COUNTING, request_bytes, layout_of_rows(specs), votes(rows), COUNTING + 1
    )
    answer = encode(CountReply(site=site.name, masked=masked), arrays)
    memory.store_answer(request_bytes, answer)
    return answer


def unmask(site: Site, request_bytes: bytes) -> bytes:
    """The shares that unmask a sum, and shares for the next one."""
    request, _ = decode(request_bytes, UnmaskRequest)
    memory, masker = RunState(site.state, request.terms.run), _masker(site, request.terms)
    known = memory.answer_to(request_bytes)
    if known is not None:
        return known
    told, sealed = masker.unmask(request)
    if not request.keys:
        masker.forget()
    answer = encode(UnmaskReply(site=site.name, shares=told, sealed=sealed))
    memory.store_answer(request_bytes, answer)
    return answer


def _masker(site: Site, terms: Terms) -> Masker:
    masker = site.masker(terms)
    if masker is None:
        raise MaskingRefused("masks are asked for in a run whose terms have none")
    return masker
