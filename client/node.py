"""A hospital's node from its start to its end: checks, then the processes under a supervisor, and what they tell."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.allowed_bundles import listed
from client.check import check_site
from client.node_folder import NodeFolder
from client.node_services import STANDBY, SUPEREXEC, SUPERNODE, TUNNEL, Judge, free_ports, node_services
from client.node_status import NodeStatus, read_status, running_once, write_status
from client.node_watch import NodeWatch
from flexmoe_core.command_line import tell
from flexmoe_core.devices import choose_device
from flexmoe_core.enrollment import Welcome
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.service_log import ServiceLog
from flexmoe_core.supervision import ServiceState, Supervisor

NODE_LOG = "node.log"


@dataclass(frozen=True)
class StartOptions:
    """What an engineer may choose at a start; a port that is None is a free one."""

    data: Path
    device: str
    study: Path | None = None
    runtime_port: int | None = None
    health_port: int | None = None


def start_node(node: NodeFolder, options: StartOptions) -> int:
    """Run the node until SIGTERM or SIGINT; 0 when it was stopped in order.

    Raises InputError, before anything is started, with every problem of the node folder and of the site's data.
    """
    welcome = node.welcome()
    listed(node.path)
    choose_device(options.device)
    _check_data(options, welcome)
    node.prepare()
    with running_once(node):
        return _Running(node, welcome, options).run()


def _check_data(options: StartOptions, welcome: Welcome) -> None:
    """What ``flexmoe-client check`` does, and that data, study and welcome belong together. Raises InputError."""
    result = check_site(options.data, options.study)
    problems = list(result.problems)
    if not problems and result.site != welcome.site:
        what = f"is of the site '{result.site}', and the welcome is for '{welcome.site}'"
        problems.append(Problem(str(options.data), "", what, "Name the folder of this site with --data."))
    if not problems and result.study is not None and result.study.name != welcome.study:
        what = f"is for the study '{result.study.name}', and the welcome is for '{welcome.study}'"
        problems.append(Problem(str(options.data), "", what, "Use the study.toml that the coordinator sent."))
    if problems:
        raise InputError(problems)


class _Running:
    """One life of a node: its watch, its status file and its supervisor."""

    def __init__(self, node: NodeFolder, welcome: Welcome, options: StartOptions) -> None:
        self._node, self._welcome = node, welcome
        self._log = ServiceLog(node.logs / NODE_LOG)
        self._ports = free_ports(options.runtime_port, options.health_port)
        before = read_status(node)
        last_contact = before.facts.last_contact if before else None
        tunneled = welcome.client_certificate is not None
        self._watch = NodeWatch(welcome.address, self._tell, last_contact, tunneled)
        self._states: tuple[ServiceState, ...] = ()
        self._written: NodeStatus | None = None
        judges: dict[str, Judge] = {
            SUPERNODE: self._judge_supernode,
            SUPEREXEC: self._watch.judge_superexec,
            STANDBY: self._watch.judge_superexec,
            TUNNEL: self._watch.judge_tunnel,
        }
        services = node_services(node, options.data.resolve(), options.device, welcome, self._ports, judges)
        self._supervisor = Supervisor(services, self._tell, self._changed)

    def run(self) -> int:
        """Run until told to stop."""
        self._tell(f"node of {self._welcome.site} starts; logs are in {self._node.logs}")
        if not listed(self._node.path):
            self._tell(
                "no bundle of code is allowed yet, so that no request of the coordinator will be answered. If you "
                f"trust this installed version, run: flexmoe-client allow {self._node.path}"
            )
        code = self._supervisor.run()
        self._tell("node stopped")
        return code

    def _tell(self, words: str) -> None:
        with suppress(OSError):  # neither a full disk nor a closed terminal must end a node that works
            self._log.write(words)
        with suppress(OSError):
            tell([f"flexmoe-client: {words}"])

    def _judge_supernode(self, line: str) -> str | None:
        finding = self._watch.judge_supernode(line)
        self._write()
        return finding

    def _changed(self, states: tuple[ServiceState, ...]) -> None:
        self._states = states
        if any(one.name == SUPERNODE and one.pid is None for one in states):
            self._watch.supernode_ended()
        self._write()

    def _write(self) -> None:
        status = NodeStatus(
            site=self._welcome.site,
            study=self._welcome.study,
            address=self._welcome.address,
            health_port=self._ports.health,
            facts=self._watch.facts,
            services=self._states,
        )
        if status != self._written:
            with suppress(OSError):
                write_status(self._node, status)
                self._written = status
