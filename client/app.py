"""The Flower ClientApp of a hospital: unpack a message, let the site answer, pack its answer.

Every answer is in the site's audit record before it leaves.

Node configuration: ``site`` (folder with site.toml), ``state`` (folder for the site's own files), ``device``
(auto, cpu, cuda, cuda:1, ...), ``identity`` (file of the key that signs answers; without it they are unsigned),
``roster`` (file of the roster that its engineer pinned; without it there are no masked sums), ``audit-fsync`` and
``ledger-create`` (false and true in simulations alone: they need not survive a power cut, and their privacy ledger
begins by itself). In a simulation that only numbers its
nodes, the run configuration's ``study-folder`` and ``run-folder`` stand in for the first two.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import masked_answers
from client.egress import Outgoing
from client.keys import IDENTITY_KEY
from client.ledger_file import read_head_copy
from client.masking import Membership
from client.node_folder import ROSTER_FILE
from client.record import Question, SiteRecord
from client.site import Site
from flexmoe_core.attachments import RECORD, Attachments
from flexmoe_core.devices import AUTOMATIC, choose_device
from flexmoe_core.errors import AuditError
from flexmoe_core.signatures import Statement, digest_of, read_identity_key

LOG_FILE = "site.log"

app = ClientApp()


class SiteFailure(Exception):
    """All that a coordinator learns of an error at a site: an id to ask its engineers about."""


@app.query("handshake")
def handshake(message: Message, context: Context) -> Message:
    """Announce what this hospital has."""
    return _answer(message, context, "handshake", Site.handshake)


@app.query("keys")
def keys(message: Message, context: Context) -> Message:
    """Announce keys for a masked sum."""
    return _answer(message, context, "keys", masked_answers.keys)


@app.query("shares")
def shares(message: Message, context: Context) -> Message:
    """Deal shares for a masked sum."""
    return _answer(message, context, "shares", masked_answers.shares)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """Say under masks which rows this hospital's patients could train."""
    return _answer(message, context, "count", masked_answers.count)


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Give the shares that unmask a sum."""
    return _answer(message, context, "unmask", masked_answers.unmask)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return _answer(message, context, "train", Site.train)


@app.evaluate()
def finish(message: Message, context: Context) -> Message:
    """Score the final model and keep it."""
    return _answer(message, context, "finish", Site.finish)


def _answer(
    message: Message, context: Context, question: Question, answer: Callable[[Site, bytes], Outgoing]
) -> Message:
    # One thread: sums then have one order, and a site's bits do not depend on its number of cores.
    torch.set_num_threads(1)
    record, received = None, None
    try:
        folder, state = _folders(context)
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = SiteRecord(state, durable=bool(context.node_config.get("audit-fsync", True)))
        received = record.received(question, None)
        request = message.content.array_records["payload"]["bytes"].numpy().tobytes()
        received = record.received(question, request)
        membership = _membership(context, state)
        site = Site(
            folder,
            state,
            choose_device(str(context.node_config.get("device", AUTOMATIC))),
            membership,
            _came_beside(message).sealed,
            creates_ledger=_is_simulated(context),
        )
        payload = answer(site, request)
        copy = read_head_copy(state)
        ledger = copy.head if copy else None
        beside = Attachments(audit_head=record.answered(received, payload, ledger=ledger), ledger_head=ledger)
        if membership.identity is not None:
            key = read_identity_key(membership.identity)
            said = Statement(site.name, question, digest_of(request), digest_of(payload), beside.record)
            beside = replace(beside, signature=said.sign(key))
    except Exception as error:
        error_id = secrets.token_hex(4)
        _log(context, error_id, error)
        try:
            if record is not None and received is not None:
                record.failed(received, error_id)
        except AuditError as unrecorded:
            _log(context, error_id, unrecorded)
        raise SiteFailure(f"the site could not answer; its log has the details under {error_id}") from None
    return Message(_pack(payload, beside), reply_to=message)


def _came_beside(message: Message) -> Attachments:
    content = message.content
    return Attachments.from_values(content.config_records[RECORD]) if RECORD in content else Attachments()


def _membership(context: Context, state: Path) -> Membership:
    """Key and roster that the node was given; in a simulation those that were made for it, if any were."""
    node = context.node_config
    if "site" in node:
        identity, roster = (Path(str(node[name])) if name in node else None for name in ("identity", "roster"))
        return Membership(identity, roster)
    identity = state / IDENTITY_KEY
    return Membership(identity, state / ROSTER_FILE) if identity.exists() else Membership()


def _pack(payload: Outgoing, beside: Attachments) -> RecordDict:
    array = Array.from_numpy_ndarray(np.frombuffer(payload, dtype=np.uint8))
    return RecordDict({"payload": ArrayRecord({"bytes": array}), RECORD: ConfigRecord(dict(beside.to_values()))})


def _folders(context: Context) -> tuple[Path, Path]:
    """The site folder and the state folder."""
    node, run = context.node_config, context.run_config
    if "site" in node:
        return Path(str(node["site"])), Path(str(node["state"]))
    folders = sorted(file.parent for file in Path(str(run["study-folder"])).glob("*/site.toml"))
    folder = folders[int(node["partition-id"])]
    return folder, Path(str(run["run-folder"])) / "sites" / folder.name


def _is_simulated(context: Context) -> bool:
    """Whether this node is one of a simulation, whose privacy ledger begins by itself."""
    return bool(context.node_config.get("ledger-create", "site" not in context.node_config))


def _log(context: Context, error_id: str, error: Exception) -> None:
    """Append the full error to the site's own log, which never leaves it."""
    handler = _log_handler(context)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("flexmoe.site")
    log.propagate = False
    log.addHandler(handler)
    log.error("%s", error_id, exc_info=error)
    log.removeHandler(handler)
    handler.close()


def _log_handler(context: Context) -> logging.Handler:
    """site.log in the state folder, for its owner alone; the terminal where there can be no such file."""
    try:
        file = _folders(context)[1] / LOG_FILE
        file.touch(mode=0o600)
        return logging.FileHandler(file)
    except (OSError, LookupError, ValueError):
        return logging.StreamHandler()
