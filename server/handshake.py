"""The first message of a run: who takes part, what they announce, and the combination table made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.serverapp import Grid

from flexmoe_core.attachments import Attachments
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import MessageError, RunFailed
from flexmoe_core.messages import HandshakeReply, HandshakeRequest, Terms, decode, encode
from flexmoe_core.signatures import digest_of
from server.conversation import Answers, ask, in_short, wait_for_nodes
from server.identities import Identities
from server.record import HANDSHAKE, RunRecord


@dataclass(frozen=True)
class Participants:
    """Sites by name: their node, and what they announced. ``refused`` says of nodes why the run goes without them."""

    nodes: dict[str, int]
    replies: dict[str, HandshakeReply]
    refused: dict[str, str]

    def table(self, terms: Terms) -> CombinationTable:
        """The study's own table, or that of the announced combinations.

        Under patient-level privacy nobody announces any: then that of the sets of modalities that sites declare.
        """
        study = terms.study
        declared = [study.mask_of(names) for names in study.combinations]
        if terms.privacy.patient is not None and not declared:
            declared = [study.mask_of(reply.modalities) for reply in self.replies.values()]
        return CombinationTable.build(
            modalities=len(study.modalities),
            experts=terms.method.model.experts,
            announced={name: reply.announced for name, reply in self.replies.items()},
            min_full=terms.method.curriculum.min_full,
            declared=declared,
        )

    def facts(self) -> dict[str, Any]:
        """What the sites announced, for the run store and the report."""
        return {name: reply.model_dump(mode="json") for name, reply in sorted(self.replies.items())}


def shake_hands(
    grid: Grid,
    terms: Terms,
    quorum: int,
    expected: int,
    deadline_s: float,
    record: RunRecord,
    identities: Identities,
    sleep: Callable[[float], None] = time.sleep,
) -> Participants:
    """Wait for the expected sites, ask everybody online once, and raise RunFailed without a quorum of answers.

    When the deadline passes, a quorum is enough to begin.
    """
    online, _ = wait_for_nodes(grid, None, max(quorum, expected), deadline_s, sleep)
    if online < quorum:
        raise RunFailed(f"{online} sites came online within {deadline_s:g} s, {quorum} are needed")
    nodes = {f"node {node}": node for node in grid.get_node_ids()}
    request = encode(HandshakeRequest(terms=terms))
    record.asked(HANDSHAKE, nodes, request)
    answers = ask(grid, nodes, "query.handshake", request, deadline_s)
    admit = partial(identities.objection, HANDSHAKE, digest_of(request))
    names = _names(grid) if identities.known else {}
    participants = _admit(answers, nodes, names, terms, admit)
    record.answered(HANDSHAKE, answers, participants.refused, nodes=participants.nodes)
    if len(participants.nodes) < quorum:
        reasons = "; ".join(f"{node}: {why}" for node, why in sorted(participants.refused.items()))
        raise RunFailed(f"{len(participants.nodes)} of {quorum} needed sites answered the handshake. {reasons}")
    return participants


def _names(grid: Grid) -> dict[int, str]:
    """The names under which nodes were registered."""
    return {node.node_id: node.name for node in grid.get_nodes() if node.name}


def _admit(
    answers: Answers,
    nodes: Mapping[str, int],
    names: Mapping[int, str],
    terms: Terms,
    object_to: Callable[[str, bytes, Attachments], str | None],
) -> Participants:
    admitted: dict[str, int] = {}
    replies: dict[str, HandshakeReply] = {}
    refused = dict(answers.failed) | dict.fromkeys(answers.missing, "no answer")
    for node, payload in sorted(answers.payloads.items()):
        try:
            reply, _ = decode(payload, HandshakeReply)
        except MessageError as error:
            refused[node] = in_short(str(error))
            continue
        objection = object_to(reply.site, payload, answers.beside[node]) or _objection_to(reply, terms)
        registered = names.get(nodes[node], reply.site)
        if registered != reply.site:
            refused[node] = f"the node of {in_short(registered)} calls itself {reply.site}"
        elif objection:
            refused[node] = f"{reply.site} {objection}"
        elif reply.site in admitted:
            refused[node] = f"a second site calls itself {reply.site}"
        else:
            admitted[reply.site], replies[reply.site] = nodes[node], reply
    return Participants(admitted, replies, refused)


def _objection_to(reply: HandshakeReply, terms: Terms) -> str | None:
    study = terms.study
    if not all(0 < mask <= study.full_mask for mask in reply.announced):
        return "announces combinations that the study does not have"
    if not {*reply.modalities, *reply.observed} <= set(study.modality_names):
        return "announces modalities that the study does not have"
    if min([*reply.announced.values(), *reply.observed.values()], default=terms.min_cell) < terms.min_cell:
        return f"announces fewer than {terms.min_cell} patients"
    if terms.privacy.patient is not None:
        if reply.declared_patients is None or reply.declared_full_modality is None:
            return "declares no public facts, which patient-level privacy needs"
        if reply.announced or reply.observed or reply.patients:
            return "announces counts of patients, which patient-level privacy does not allow"
    return None
