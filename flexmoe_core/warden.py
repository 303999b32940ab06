"""The process that outlives a supervisor which was killed, and then ends what it had started.

A program of its own with the standard library alone. Its standard input names process groups, one a line: "+N" has
been started, "-N" has ended. The end of that input is the end of the supervisor, whatever ended it; whole groups
die, so that children of children do too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_S = 10.0


def watch() -> None:
    """Read until the supervisor is gone, then end the groups that are left: SIGTERM first, SIGKILL after a while."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a shell's Ctrl-C is the supervisor's to answer
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        groups = groups | {group} if line[0] == "+" else groups - {group}
    _send(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while groups and time.monotonic() < deadline:
        time.sleep(0.1)
        groups = _send(groups, 0)
    _send(groups, signal.SIGKILL)


def _send(groups: set[int], number: int) -> set[int]:
    """Signal the groups and answer those that still have a member."""
    left = set()
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            left.add(group)
    return left


if __name__ == "__main__":
    watch()
