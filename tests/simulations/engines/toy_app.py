"""A ClientApp whose sites add their number to an array, and misbehave when they are told to."""

import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    arrays = message.content.array_records["model"]
    if "seen" not in context.state:
        context.state["seen"] = MetricRecord({"messages": 0})
    seen = context.state.metric_records["seen"]
    seen["messages"] = int(str(seen["messages"])) + 1
    order = str(message.content.config_records["config"]["order"])
    site = str(context.node_config["site"])
    if order == f"raise {site}":
        raise ValueError("a site went wrong")
    if order == f"die {site}":
        os._exit(1)
    values = arrays["w"].numpy()
    values += float(context.node_config["number"]) * int(str(seen["messages"]))
    log = Path(str(context.run_config["log"]))
    with log.open("a") as lines:
        lines.write(f"{site}\n")
    content = RecordDict(
        {
            "model": ArrayRecord({"w": Array(values)}),
            "notes": ConfigRecord({"site": site, "blob": b"\x00\x01"}),
            "metrics": seen,
        }
    )
    return Message(content, reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    return Message(RecordDict({"seen": MetricRecord({"node": context.node_id})}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return message


def instruction(node_id: int, order: str = "", group: str = "0", size: int = 3) -> Message:
    """A train message of one round."""
    content = RecordDict(
        {
            "model": ArrayRecord({"w": Array(np.zeros(size, np.float32))}),
            "config": ConfigRecord({"order": order}),
        }
    )
    return Message(content, node_id, "train", group_id=group)


def weights(reply: Message) -> np.ndarray:
    """The array of a reply."""
    return reply.content.array_records["model"]["w"].numpy()


not_an_app = 7
NAME = "tests.simulations.engines.toy_app:app"
