"""A hospital that does not behave: runs in place of the guard, with the site's own keys.

python -P rogue.py KIND GUARD NODE --runtime-api-address ... --token ...
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLEEP_S = 60.0


def misbehaving(kind: str, node: Path, app: Callable[..., Any]) -> Callable[..., Any]:
    """An App that shakes hands as it should, and then does as its kind."""

    def call(message: Any, context: Any) -> Any:  # noqa: ANN401
        if message.metadata.message_type == "query.handshake":
            return app(message=message, context=context)
        if kind == "raises":
            raise ValueError("MARKER-EXCEPTION of Jane Doe, born 1950")
        if kind == "sleeps":
            time.sleep(SLEEP_S)
            return app(message=message, context=context)
        return other_shapes(node, message, app(message=message, context=context))

    return call


def other_shapes(node: Path, message: Any, reply: Any) -> Any:  # noqa: ANN401
    """The reply with tensors of another study, signed by the site."""
    # the bundle brings these packages, and can be imported only after it was unpacked
    import numpy as np  # noqa: PLC0415
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict  # noqa: PLC0415

    from flexmoe_core.attachments import RECORD, Attachments  # noqa: PLC0415
    from flexmoe_core.messages import TrainReply, decode, encode  # noqa: PLC0415
    from flexmoe_core.signatures import Statement, digest_of, read_identity_key  # noqa: PLC0415

    if message.metadata.message_type != "train":
        return reply
    request = message.content.array_records["payload"]["bytes"].numpy().tobytes()
    facts, arrays = decode(reply.content.array_records["payload"]["bytes"].numpy().tobytes(), TrainReply)
    trained = ("weighted/", "support/")
    other = {
        name: np.zeros((7, *value.shape), value.dtype) if name.startswith(trained) else value
        for name, value in arrays.items()
    }
    payload = encode(facts, other)
    beside = Attachments.from_values(reply.content.config_records[RECORD])
    said = Statement(facts.site, "train", digest_of(request), digest_of(payload), beside.record)
    signed = Attachments(beside.audit_head, said.sign(read_identity_key(node / "identity_key")))
    array = Array.from_numpy_ndarray(np.frombuffer(payload, dtype=np.uint8))
    reply.content = RecordDict(
        {"payload": ArrayRecord({"bytes": array}), RECORD: ConfigRecord(dict(signed.to_values()))}
    )
    return reply


def main() -> None:
    """Serve one message as a guard would, with an App that misbehaves."""
    kind, guard_file, node = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    spec = importlib.util.spec_from_file_location("guard", guard_file)
    assert spec is not None and spec.loader is not None
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    loader = guard.Guard.loader

    def rogue_loader(self: Any, **options: Any) -> Callable[..., Any]:  # noqa: ANN401
        load = loader(self, **options)
        return lambda *names: misbehaving(kind, node, load(*names))

    guard.Guard.loader = rogue_loader
    sys.argv = sys.argv[2:]
    guard.main()


if __name__ == "__main__":
    main()
