import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from client.node_commands import status_lines
from client.node_folder import NodeFolder
from client.node_status import (
    NodeStatus,
    ill_health,
    latest_run,
    read_status,
    running_once,
    running_pid,
    write_status,
)
from client.node_watch import NodeFacts
from flexmoe_core.errors import InputError
from flexmoe_core.supervision import ServiceState


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    folder = NodeFolder(tmp_path)
    folder.prepare()
    return folder


def status(**facts: object) -> NodeStatus:
    known = replace(NodeFacts(session=True, last_contact=time.time()), **facts)  # type: ignore[arg-type]
    services = (ServiceState("supernode", pid=7, restarts=2, reason="it gave up"),)
    return NodeStatus(site="basel", study="heart", address="c:1", health_port=9, facts=known, services=services)


def test_a_status_is_read_as_it_was_written(node: NodeFolder) -> None:
    assert read_status(node) is None
    write_status(node, status())
    assert read_status(node) == status(last_contact=read_status(node).facts.last_contact)  # type: ignore[union-attr]
    assert node.status_file.stat().st_mode & 0o777 == 0o600


def test_contact_grows_old() -> None:
    one, now = status(), time.time()
    assert one.is_connected(now) and not one.is_connected(now + 70)
    assert not status(session=False).is_connected(now)


def test_a_node_runs_once(node: NodeFolder) -> None:
    assert running_pid(node) is None
    program = (
        "import sys, time; from pathlib import Path; from client.node_folder import NodeFolder;"
        "from client.node_status import running_once\n"
        "with running_once(NodeFolder(Path(sys.argv[1]))):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(node.path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert running_pid(node) == other.pid
        with pytest.raises(InputError, match="already runs"), running_once(node):
            pass
        assert running_pid(node) == other.pid, "the number of the first is kept"
        other.kill()
    assert running_pid(node) is None


def test_health_is_more_than_a_process(node: NodeFolder) -> None:
    assert ill_health(node) == "the node does not run"


def test_what_an_engineer_is_shown(node: NodeFolder) -> None:
    write_status(node, status(message="train", received=time.time() - 300, answered=time.time() - 5, trouble="clock"))
    shown = dict(status_lines(node))
    assert shown["running"] == "no" and shown["connected"] == "no"
    assert shown["last message"] == "train, received 5 minutes ago"
    assert shown["last answer"] == "sent 5 s ago"
    assert shown["supernode again"] == "2 times, the last because it gave up"
    assert shown["allowed bundles"].startswith("none")


def test_the_latest_run_of_the_state_folder(node: NodeFolder) -> None:
    assert latest_run(node.state) is None
    run = node.state / "0a1b"
    run.mkdir()
    (run / "answer.bin").touch()
    assert latest_run(node.state) == ("0a1b", None)
    for number in (2, 11):
        (run / f"local-{number:05d}.json").touch()
    assert latest_run(node.state) == ("0a1b", 11)
