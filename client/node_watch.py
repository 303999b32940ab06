"""What the output of a node's processes means: whether it is connected, what is wrong in words, when to restart it.

Flower's SuperNode can give up and stay alive, so that neither its exit nor its health service tells. The texts below
are those of flwr 1.41, and the "fleet" lines are those of `client/supernode.py`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from client.node_refusals import TUNNEL_CLOSED, refusal, transport_trouble, tunnel_trouble

SILENCE_S = 90.0  # a living heartbeat says something every 50 s, in an outage too, and pulls every 40 s
RETRIED = ("502", "503", "504")  # by Flower itself
OLD_SESSION_S = 120.0  # the coordinator forgets a session 60 s after its last heartbeat
REFUSED_PULLS = 3
WARN_AHEAD_S, WARN_BEHIND_S = 3, 240  # the coordinator's Date header may itself be two seconds late

CLOCK = "this machine's clock is"

STARTED = "Starting Flower SuperNode"
FLEET = re.compile(r"fleet (\w+) (?:(\d{3})(?: clock ([+-]\d+))?(?: code (\d+))?|failed (\w+): ?(.*))")
RUN = re.compile(r"\[RUN (\d+)(?:, ROUND (.+))?\]")
RECEIVING = re.compile(r"Receiving: (\S+) message")
SENT = "Sent successfully"
DONE_WITH_MESSAGE = (SENT, "Failed to receive message", "Ignoring message", "Ignoring reply message")
GAVE_UP = (
    ("Giving up reconnection", "it gave up reconnecting to the coordinator"),
    ("SSL/TLS handshake error detected", "a TLS handshake failed, after which it gives up"),
    ("Heartbeat failed unexpectedly", "the coordinator no longer knows its session"),
    ("Exception in thread", "a part of it ended with an error, most often its heartbeat"),
    ("Failed to send message", "an answer could not be delivered, after which it may stop asking for messages"),
    ("RunNotRunningException", "it took a refusal (403) for the end of a run, and stopped"),
    ("Failed to initialize the connection to the SuperLink", "it could not connect to the coordinator"),
)
STOPPED_ASKING = re.compile(r"^ERROR\W+(Client|Server) error '\d{3}")
OTHER_PROGRAM = re.compile(r"No such file or directory: '(flwr-\w+)'")
GUARD_REFUSED = "refused a "


@dataclass(frozen=True)
class NodeFacts:
    """What is known of a node's connection and work; times are seconds since the epoch.

    ``trouble`` says in words why the node is not connected, or what will soon keep it from being so.
    """

    session: bool = False
    last_contact: float | None = None
    trouble: str = ""
    run: str = ""
    round: str = ""
    message: str = ""
    received: float | None = None
    answered: float | None = None


class NodeWatch:
    """Reads the lines of the node's processes; ``tell`` gets a sentence when something changes.

    ``tunneled``: the SuperNode reaches the coordinator by way of a tunnel, so that its own errors are those of this
    machine.
    """

    def __init__(
        self,
        address: str,
        tell: Callable[[str], None],
        last_contact: float | None = None,
        tunneled: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.facts = NodeFacts(last_contact=last_contact)
        self._address, self._tell, self._tunneled, self._clock = address, tell, tunneled, clock
        self._refused_pulls, self._works = 0, False
        self._last_heard = self._last_pull = clock()

    def judge_supernode(self, line: str) -> str | None:
        """Why the SuperNode must be restarted after this line of it, or None; an empty line asks about silence."""
        if not line.strip():
            return self._silence()
        if STARTED in line:
            self._begin()
        elif found := FLEET.match(line):
            return self._fleet(found)
        elif found := RUN.search(line):
            self._know(run=found[1], round=found[2] if (found[2] or "").isdecimal() else "")
        elif found := RECEIVING.search(line):
            self._works = True
            self._know(message=found[1], received=self._clock())
        elif SENT in line:
            self._know(answered=self._clock())
        if any(text in line for text in DONE_WITH_MESSAGE):
            self._works, self._last_pull = False, self._clock()
        if STOPPED_ASKING.search(line):
            return self.facts.trouble or "it stopped asking for messages after an answer that it does not know"
        words = next((words for text, words in GAVE_UP if text in line), None)
        return words and (self.facts.trouble or words)

    def judge_superexec(self, line: str) -> str | None:
        """Tell what the guard refused; SuperExec ends by itself when asked for another kind of program."""
        if line.startswith(GUARD_REFUSED):
            self._tell(line)
        if found := OTHER_PROGRAM.search(line):
            return f"the coordinator asked for {found[1]}, and only the app of a hospital may run here"
        return None

    def judge_tunnel(self, line: str) -> str | None:
        """Learn from the tunnel why the coordinator is not reached; it needs no restart, every connection is new."""
        if trouble := tunnel_trouble(line, self._address):
            self._trouble(trouble)
        return None

    def supernode_ended(self) -> None:
        """There is no SuperNode at present."""
        self._know(session=False)

    def _begin(self) -> None:
        self._refused_pulls, self._works = 0, False
        self._last_heard = self._last_pull = self._clock()
        self._know(session=False)

    def _silence(self) -> str | None:
        silent_s = self._clock() - self._last_heard
        if silent_s > SILENCE_S:
            return f"its heartbeat has been silent for {silent_s:.0f} s"
        silent_s = self._clock() - self._last_pull
        if self.facts.session and not self._works and silent_s > SILENCE_S:
            return f"it has not asked for messages for {silent_s:.0f} s"
        return None

    def _fleet(self, found: re.Match[str]) -> str | None:
        """A request to the coordinator and what became of it."""
        method, status, ahead, code, kind, text = found.groups()
        if method in ("SendNodeHeartbeat", "ActivateNode"):
            self._last_heard = self._clock()
        elif method == "PullMessages":
            self._last_pull = self._clock()
        if kind is not None:
            if not self._tunneled:
                self._trouble(transport_trouble(kind, text, self._address))
            elif not self.facts.trouble:  # the tunnel itself may know better
                self._trouble(TUNNEL_CLOSED)
            return None
        if status == "200":
            self._accepted(method, int(ahead or 0))
            return None
        old_session = self._clock() - (self.facts.last_contact or 0.0) < OLD_SESSION_S
        words = refusal(method, int(status), int(code or 0), int(ahead or 0), old_session)
        if words:
            self._trouble(words)
        if method == "ActivateNode" and status not in RETRIED:
            return words  # not every one of these ends the process
        if method == "PullMessages" and status == "403":
            self._refused_pulls += 1
            if self._refused_pulls >= REFUSED_PULLS:
                return "its requests are refused (403), which it takes for the end of a run"
        return None

    def _accepted(self, method: str, ahead_s: int) -> None:
        if method == "DeactivateNode":  # the coordinator has let the session go
            self._know(session=False, last_contact=None)
            return
        if method not in ("SendNodeHeartbeat", "ActivateNode"):
            return
        self._refused_pulls = 0
        clock_is_off = ahead_s > WARN_AHEAD_S or ahead_s < -WARN_BEHIND_S
        if not self.facts.session:
            self._tell(f"connected to the coordinator at {self._address}")
        elif self.facts.trouble and not clock_is_off:
            self._tell("the coordinator answers, and nothing is wrong any more")
        self._know(session=True, last_contact=self._clock())
        if not clock_is_off:
            self._know(trouble="")
        elif CLOCK not in self.facts.trouble:  # the seconds differ from time to time
            way = "ahead of" if ahead_s > 0 else "behind"
            self._trouble(
                f"{CLOCK} {abs(ahead_s)} s {way} the coordinator's; more than 5 s ahead or 300 s behind is refused. "
                "Set it by NTP"
            )

    def _trouble(self, words: str) -> None:
        if words != self.facts.trouble:
            self._tell(words)
            self._know(trouble=words)

    def _know(self, **changes: object) -> None:
        self.facts = replace(self.facts, **changes)  # type: ignore[arg-type]
