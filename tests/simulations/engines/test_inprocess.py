import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from simulations.engines.calls import load_client_app
from simulations.engines.inprocess import InProcessGrid, InProcessResult, Node, run_inprocess
from simulations.engines.wire import pack, unpack_message
from tests.simulations.engines.toy_app import NAME, app, instruction, weights

NODES = tuple(Node(f"site-{letter}", {"site": letter, "number": i + 1}) for i, letter in enumerate("abc"))


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[InProcessGrid]:
    with InProcessGrid(app, NODES, {"log": str(tmp_path / "log")}) as grid:
        yield grid


def rounds_of(orders: tuple[str, ...], seen: list[Any]) -> ServerApp:
    """A ServerApp that sends the orders, one a round, and keeps what it gets."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        for number, order in enumerate(orders):
            messages = [instruction(node_id, order, str(number)) for node_id in grid.get_node_ids()]
            for reply in grid.send_and_receive(messages, timeout=1.0):
                outcome = (
                    (reply.error.code, reply.error.reason)
                    if reply.has_error()
                    else (weights(reply).tobytes(), reply.content.metric_records["metrics"]["messages"])
                )
                seen.append((number, reply.metadata.src_node_id, outcome))

    return server_app


def test_sites_answer_in_order_with_their_own_config_and_state(grid: InProcessGrid) -> None:
    for step in (1, 2):
        replies = list(grid.send_and_receive([instruction(node) for node in grid.get_node_ids()]))
        assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
        assert [weights(reply)[0] for reply in replies] == [1 * step, 2 * step, 3 * step]


def test_nodes_have_names_and_fixed_ids(grid: InProcessGrid) -> None:
    assert [(node.node_id, node.name) for node in grid.get_nodes()] == [
        (1000, "site-a"),
        (1001, "site-b"),
        (1002, "site-c"),
    ]


def test_reply_belongs_to_its_message(grid: InProcessGrid) -> None:
    message = instruction(1001, group="4")
    (reply,) = grid.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id != ""
    assert (reply.metadata.group_id, reply.metadata.message_type) == ("4", "train")
    assert (reply.metadata.run_id, reply.metadata.dst_node_id) == (grid.run.run_id, 1)


def test_sender_and_site_share_no_memory(grid: InProcessGrid) -> None:
    sent = np.zeros(3, np.float32)
    message = Message(
        RecordDict({"model": ArrayRecord({"w": Array(sent)}), "config": instruction(1000).content["config"]}),
        1000,
        "train",
    )
    list(grid.send_and_receive([message]))
    assert not weights(message).any()


def test_packets_carry_equal_parts_once() -> None:
    InProcessGrid(app, NODES, {})
    message = instruction(1000, size=100_000)
    single = pack(message).size
    message.content["again"] = message.content["model"]
    packet = pack(message)
    assert 400_000 < single < packet.size < single + 1000
    assert weights(unpack_message(packet, "id")).nbytes == 400_000


def test_bytes_are_counted_in_each_direction(grid: InProcessGrid) -> None:
    messages = [instruction(node, size=10_000) for node in (1000, 1001)]
    down = sum(pack(message).size for message in messages)
    replies = list(grid.send_and_receive(messages))
    assert grid.bytes_down == down
    assert grid.bytes_up == sum(pack(reply).size for reply in replies)


def test_a_site_that_raises_gives_flowers_error_reply(grid: InProcessGrid, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        replies = list(grid.send_and_receive([instruction(node, "raise b") for node in grid.get_node_ids()]))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == 2
    assert replies[1].error.reason == "<class 'ValueError'>:<'a site went wrong'>"
    assert replies[1].metadata.src_node_id == 1001
    assert "site-b" in caplog.text
    assert "a site went wrong" in caplog.text
    (later,) = grid.send_and_receive([instruction(1001)])
    assert later.content.metric_records["metrics"]["messages"] == 2


def test_a_site_answers_two_messages_of_one_push_in_turn(grid: InProcessGrid) -> None:
    replies = list(grid.send_and_receive([instruction(1000), instruction(1001), instruction(1000)]))
    assert [weights(reply)[0] for reply in replies] == [1, 2, 2]


def test_a_reply_is_pulled_once(grid: InProcessGrid) -> None:
    ids = list(grid.push_messages([instruction(1000)]))
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []


def test_create_message_is_like_message(grid: InProcessGrid) -> None:
    message = grid.create_message(RecordDict(), "query", 1002, "1", ttl=5.0)
    (reply,) = grid.send_and_receive([message])
    assert reply.content.metric_records["seen"]["node"] == 1002


def test_what_is_no_reply_is_not_swallowed(grid: InProcessGrid) -> None:
    with pytest.raises(RuntimeError, match="other than a reply"):
        grid.send_and_receive([Message(RecordDict(), 1000, "evaluate")])


def test_unknown_node_and_equal_names_are_refused(grid: InProcessGrid) -> None:
    with pytest.raises(ValueError, match="node id 7"):
        grid.send_and_receive([instruction(7)])
    with pytest.raises(ValueError, match="same name"):
        InProcessGrid(app, [Node("x"), Node("x")], {})


def test_names_of_client_apps() -> None:
    assert load_client_app(NAME) is app
    for wrong in ("tests.simulations.engines.toy_app", "tests.simulations.engines.toy_app:not_an_app"):
        with pytest.raises(ValueError, match="does not name a ClientApp"):
            load_client_app(wrong)
    with pytest.raises(ValueError, match="module:attribute"):
        InProcessGrid(app, NODES, {}, processes=1)


def test_exceptions_of_the_server_app_propagate() -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        raise ArithmeticError(f"{context.run_config['rounds']} rounds, node {context.node_id}")

    with pytest.raises(ArithmeticError, match="3 rounds, node 1"):
        run_inprocess(server_app, app, NODES, {"rounds": 3})


def test_several_grids_may_live_at_once(tmp_path: Path) -> None:
    config = {"log": str(tmp_path / "log")}
    with InProcessGrid(app, NODES, config) as one, InProcessGrid(app, NODES[1:], config) as other:
        (first,) = one.send_and_receive([instruction(1000)])
        (second,) = other.send_and_receive([instruction(1000)])
    assert (weights(first)[0], weights(second)[0]) == (1, 2)


def test_worker_processes_change_no_result(tmp_path: Path) -> None:
    outcomes = []
    for processes in (0, 2):
        seen: list[Any] = []
        result = run_inprocess(
            rounds_of(("", "raise a", ""), seen),
            NAME,
            NODES,
            {"log": str(tmp_path / "log")},
            processes=processes,
        )
        outcomes.append((seen, result))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][0]) == 9
    assert isinstance(outcomes[0][1], InProcessResult)


def test_a_worker_that_dies_fails_its_site_alone(tmp_path: Path) -> None:
    seen: list[Any] = []
    run_inprocess(rounds_of(("", "die a", ""), seen), NAME, NODES, {"log": str(tmp_path / "log")}, processes=1)
    failed = [(number, node, outcome) for number, node, outcome in seen if outcome[0] == 8]
    assert failed == [(1, 1000, (8, "ClientApp stopped responding."))]
    assert len(seen) == 9
    # the state of the site is the one from before the message that killed its process
    assert [outcome[1] for number, _, outcome in seen if number == 2] == [2, 3, 3]
