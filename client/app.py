"""The Flower ClientApp of a hospital: unpack a message, let the site answer, pack its answer.

Node configuration: ``site`` (folder with site.toml), ``state`` (folder for the site's own files), ``device``
(auto, cpu, cuda, cuda:1, ...). In a simulation that only numbers its nodes, the run configuration's
``study-folder`` and ``run-folder`` stand in for the first two.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.site import Site

app = ClientApp()


class SiteFailure(Exception):
    """All that a coordinator learns of an error at a site: an id to ask its engineers about."""


@app.query("handshake")
def handshake(message: Message, context: Context) -> Message:
    """Announce what this hospital has."""
    return _answer(message, context, Site.handshake)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return _answer(message, context, Site.train)


@app.evaluate()
def finish(message: Message, context: Context) -> Message:
    """Score the final model and keep it."""
    return _answer(message, context, Site.finish)


def _answer(message: Message, context: Context, answer: Callable[[Site, bytes], bytes]) -> Message:
    # One thread: sums then have one order, and a site's bits do not depend on its number of cores.
    torch.set_num_threads(1)
    site = _site(context)
    site.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        request = message.content.array_records["payload"]["bytes"].numpy().tobytes()
        payload = answer(site, request)
    except Exception as error:
        error_id = secrets.token_hex(4)
        _log(site.state / "site.log", error_id, error)
        raise SiteFailure(f"the site could not answer; its log has the details under {error_id}") from None
    array = Array.from_numpy_ndarray(np.frombuffer(payload, dtype=np.uint8))
    return Message(RecordDict({"payload": ArrayRecord({"bytes": array})}), reply_to=message)


def _site(context: Context) -> Site:
    node, run = context.node_config, context.run_config
    device = str(node.get("device", "auto"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if "site" in node:
        return Site(Path(str(node["site"])), Path(str(node["state"])), torch.device(device))
    folders = sorted(file.parent for file in Path(str(run["study-folder"])).glob("*/site.toml"))
    folder = folders[int(node["partition-id"])]
    return Site(folder, Path(str(run["run-folder"])) / "sites" / folder.name, torch.device(device))


def _log(file: Path, error_id: str, error: Exception) -> None:
    """Append the full error to the site's own log, which never leaves it."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger(f"flexmoe.site.{file.parent.name}")
    log.propagate = False
    log.addHandler(handler)
    log.error("%s", error_id, exc_info=error)
    log.removeHandler(handler)
    handler.close()
