"""A whole federation inside one program: the ServerApp calls the ClientApp through bytes alone.

The same two Apps run unmodified under Flower's own engines. Here the run, node and message ids are fixed,
sites answer in the order of their messages, and time does not pass: what is late is late by a `FaultPlan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from types import TracebackType
from typing import Self

from flwr.app import Context, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from simulations.engines.calls import SiteAnswer, SiteCall, answer, load_client_app
from simulations.engines.faults import Fault, FaultPlan, corrupt
from simulations.engines.wire import Packet, pack, unpack_message
from simulations.engines.workers import Workers

RUN_ID = 1
Overhear = Callable[[str, Message], None]
"""Told of every reply, and the name of the site that it is from, as the coordinator gets it."""
SERVER_NODE_ID = 1  # Flower's own number for the coordinator
FIRST_SITE_NODE_ID = 1000


@dataclass(frozen=True)
class Node:
    """A site: its name and what its operator gave it at start (``Context.node_config``)."""

    name: str
    node_config: Mapping[str, UserConfigValue] = field(default_factory=dict)


@dataclass(frozen=True)
class InProcessResult:
    """Serialized bytes that sites sent (up) and were sent (down) in a run."""

    bytes_up: int
    bytes_down: int


@dataclass
class _Site:
    node_id: int
    node: Node
    state: Packet
    received: int = 0


@dataclass(frozen=True)
class _Reply:
    message: Message
    late: bool


class InProcessGrid(Grid):
    """Grid that lets one ClientApp answer for every site; use it in a ``with`` block.

    ``client_app`` is a ClientApp or its 'module:attribute' name; with ``processes`` > 0, sites are answered
    in that many spawned processes, which need the name. Results do not depend on the number of processes.
    Flower's identity of the task is one per process and the same for every such grid, so several may live.

    Raises ValueError for two sites of one name, a fault at an unknown site, or processes without a name.
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        nodes: Sequence[Node],
        run_config: Mapping[str, UserConfigValue],
        *,
        faults: FaultPlan | None = None,
        processes: int = 0,
        overhear: Overhear | None = None,
    ) -> None:
        names = [node.name for node in nodes]
        if len(set(names)) < len(names):
            raise ValueError(f"two sites have the same name: {sorted(names)}")
        self._faults = faults or FaultPlan()
        if unknown := self._faults.sites - set(names):
            raise ValueError(f"faults at unknown sites {sorted(unknown)}; the sites are {sorted(names)}")
        self._overhear = overhear
        self._run_config = dict(run_config)
        self._run = Run.create_empty(RUN_ID)
        self._sites = {
            node_id: _Site(node_id, node, pack(RecordDict()))
            for node_id, node in enumerate(nodes, start=FIRST_SITE_NODE_ID)
        }
        self._replies: dict[str, _Reply] = {}
        self._pushed = 0
        self.bytes_up = 0
        self.bytes_down = 0
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE_ID
        self._workers: Workers | None = None
        if processes:
            if not isinstance(client_app, str):
                raise ValueError("processes import the ClientApp: give its 'module:attribute' name")
            self._workers = Workers(client_app, processes)
        else:
            self._app = load_client_app(client_app) if isinstance(client_app, str) else client_app

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        if self._workers:
            self._workers.close()

    def set_run(self, run: Run) -> None:
        """Replace what `run` tells; the ids of messages stay."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Like ``Message(...)``, which newer code uses."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all sites, in the order of the nodes given."""
        return list(self._sites)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All sites, with their names."""
        return [NodeInfo(node_id=site.node_id, name=site.node.name) for site in self._sites.values()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have all messages answered; a site that gets several works on one after the other."""
        sent = list(messages)
        for message in sent:
            self._pushed += 1
            message_id = sha256(f"message {self._pushed} of run {RUN_ID}".encode()).hexdigest()
            message.metadata.__dict__["_message_id"] = message_id
        for wave in _waves(sent):
            self._deliver(wave)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages that are there; a late one is there at the second time of asking."""
        there: list[Message] = []
        for message_id in message_ids:
            reply = self._replies.pop(message_id, None)
            if reply and reply.late:
                self._replies[message_id] = _Reply(reply.message, late=False)
            elif reply:
                there.append(reply.message)
        return there

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies in the order of the messages, without dropped and late ones, whatever the timeout."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, messages: Sequence[Message]) -> None:
        struck = [(message, self._strike(message)) for message in messages]
        arriving = [(message, fault) for message, fault in struck if not _drops(fault)]
        # a strict zip runs the calls to their end, so that messages dropped last are counted too
        for (message, fault), given in zip(arriving, self._answers(self._calls(struck)), strict=True):
            self._receive(message, fault, given)

    def _strike(self, message: Message) -> Fault | None:
        site = self._site(message)
        nth, site.received = site.received, site.received + 1
        return self._faults.strike(site.node.name, message, nth)

    def _calls(self, struck: Iterable[tuple[Message, Fault | None]]) -> Iterator[SiteCall]:
        """Calls of the messages that arrive; one at a time, for each holds a whole model."""
        for message, fault in struck:
            site = self._site(message)
            packet = pack(message)
            self.bytes_down += packet.size
            if not _drops(fault):
                yield SiteCall(
                    run_id=RUN_ID,
                    node_id=site.node_id,
                    site=site.node.name,
                    node_config=dict(site.node.node_config),
                    run_config=self._run_config,
                    state=site.state,
                    message_id=message.metadata.message_id,
                    message=packet,
                    raises=bool(fault and fault.kind == "raise"),
                )

    def _answers(self, calls: Iterable[SiteCall]) -> Iterable[SiteAnswer]:
        if self._workers:
            return self._workers.answer_all(calls)
        return (answer(self._app, call) for call in calls)

    def _receive(self, message: Message, fault: Fault | None, given: SiteAnswer) -> None:
        site = self._site(message)
        site.state = given.state
        self.bytes_up += given.reply.size
        message_id = message.metadata.message_id
        reply = unpack_message(given.reply, sha256(f"reply to {message_id}".encode()).hexdigest())
        if fault and fault.kind == "corrupt":
            corrupt(reply, fault)
        self._replies[message_id] = _Reply(reply, late=bool(fault and fault.kind == "delay"))
        if self._overhear:
            self._overhear(site.node.name, reply)

    def _site(self, message: Message) -> _Site:
        node_id = message.metadata.dst_node_id
        if node_id not in self._sites:
            raise ValueError(f"no site has node id {node_id}")
        return self._sites[node_id]


def run_inprocess(
    server_app: ServerApp,
    client_app: ClientApp | str,
    nodes: Sequence[Node],
    run_config: Mapping[str, UserConfigValue],
    *,
    faults: FaultPlan | None = None,
    processes: int = 0,
    overhear: Overhear | None = None,
) -> InProcessResult:
    """Run a ServerApp to its end with one site for each node; see `InProcessGrid`.

    What the ServerApp raises is raised here.
    """
    with InProcessGrid(client_app, nodes, run_config, faults=faults, processes=processes, overhear=overhear) as grid:
        context = Context(
            run_id=RUN_ID,
            node_id=SERVER_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(run_config),
        )
        server_app(grid, context)
        return InProcessResult(bytes_up=grid.bytes_up, bytes_down=grid.bytes_down)


def _drops(fault: Fault | None) -> bool:
    return fault is not None and fault.kind == "drop"


def _waves(messages: Sequence[Message]) -> list[list[Message]]:
    """Split messages so that no site gets two in one wave, keeping each site's order."""
    waves: list[list[Message]] = []
    counts: dict[int, int] = {}
    for message in messages:
        node_id = message.metadata.dst_node_id
        place = counts.get(node_id, 0)
        counts[node_id] = place + 1
        if place == len(waves):
            waves.append([])
        waves[place].append(message)
    return waves
