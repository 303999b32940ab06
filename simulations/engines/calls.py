"""One message answered by one site: what goes in, what comes out, and how the ClientApp is called."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from flwr.app import Context, Error, Message, UserConfigValue
from flwr.clientapp import ClientApp

from simulations.engines.faults import InjectedError
from simulations.engines.wire import Packet, pack, unpack_message, unpack_records

# Flower's codes for the errors that a site's runtime reports in place of a reply.
APP_RAISED = 2
APP_CRASHED = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SiteCall:
    """All that a site needs to answer a message, in any process: nothing of it is kept there.

    With ``raises``, an injected error takes the place of the ClientApp.
    """

    run_id: int
    node_id: int
    site: str
    node_config: Mapping[str, UserConfigValue]
    run_config: Mapping[str, UserConfigValue]
    state: Packet
    message_id: str
    message: Packet
    raises: bool = False

    def error_reply(self, code: int, reason: str) -> Packet:
        """Reply that Flower's runtime sends when the ClientApp gives none."""
        return pack(Message(Error(code, reason), reply_to=unpack_message(self.message, self.message_id)))


@dataclass(frozen=True, slots=True)
class SiteAnswer:
    """A site's reply, and its ``Context.state`` for the next message."""

    reply: Packet
    state: Packet


def load_client_app(reference: str) -> ClientApp:
    """Import a ClientApp by 'module:attribute'. Raises ValueError if the name is something else."""
    module, _, attribute = reference.partition(":")
    app = getattr(import_module(module), attribute) if module and attribute else None
    if not isinstance(app, ClientApp):
        raise ValueError(f"'{reference}' does not name a ClientApp as 'module:attribute'")
    return app


def answer(app: ClientApp, call: SiteCall) -> SiteAnswer:
    """Let the ClientApp answer; an exception in it becomes the error reply of Flower's runtime.

    As in deployment, what the app put into its state before it raised is kept.
    """
    message = unpack_message(call.message, call.message_id)
    context = Context(
        run_id=call.run_id,
        node_id=call.node_id,
        node_config=dict(call.node_config),
        state=unpack_records(call.state),
        run_config=dict(call.run_config),
    )
    try:
        if call.raises:
            raise InjectedError("injected fault")
        reply = app(message, context)
    except Exception as error:
        logger.error("The ClientApp of %s raised an exception", call.site, exc_info=error)
        reply_packet = call.error_reply(APP_RAISED, f"{type(error)}:<'{error}'>")
    else:
        if reply.metadata.reply_to_message_id != call.message_id:
            raise RuntimeError(f"the ClientApp of {call.site} returned something other than a reply")
        reply_packet = pack(reply)
    return SiteAnswer(reply_packet, pack(context.state))


def answer_by_reference(reference: str, call: SiteCall) -> SiteAnswer:
    """Like `answer`, for a worker process, which knows the ClientApp by its name."""
    return answer(load_client_app(reference), call)
