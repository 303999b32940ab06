"""Processes that are kept running: started in order, restarted when they end or are found sick, stopped in reverse.

Nothing is left behind: every service leads a process group that ends with it, and a warden ends the groups when the
supervisor itself is killed.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from flexmoe_core import warden
from flexmoe_core.service_log import ServiceLog, plain

STABLE_S = 60.0  # a service that ran so long starts again without a longer pause
GRACE_S = 10.0
STEP_S = 0.2
LONGEST_LINE = 16 * 1024

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """A process that is to run all the time.

    ``judge`` reads every line of its output, and an empty one at least once a second so that it may judge silence;
    it answers in words why the service must be restarted, or None. ``restart_after_s`` is the pause before the next
    start; it doubles, up to ``longest_pause_s``, for as long as the service does not stay up.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    restart_after_s: float = 5.0
    longest_pause_s: float = 60.0
    judge: Callable[[str], str | None] | None = None


@dataclass(frozen=True)
class ServiceState:
    """What became of a service: times are seconds since the epoch, ``reason`` is that of the last restart."""

    name: str
    pid: int | None = None
    started: float | None = None
    next_start: float | None = None
    restarts: int = 0
    reason: str = ""


class Supervisor:
    """Runs services until it is told to stop.

    ``tell`` gets a sentence for everything that a person should know; ``changed`` the state of all services after
    each change.
    """

    def __init__(
        self,
        services: Sequence[Service],
        tell: Tell,
        changed: Callable[[tuple[ServiceState, ...]], None] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._tell, self._changed = tell, changed
        self._stopping = threading.Event()
        self._children = [_Child(service, grace_s) for service in services]

    def stop(self) -> None:
        """Let ``run`` stop everything and return; may be called from a signal handler or another thread."""
        self._stopping.set()

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or ``stop``; 0 when everything has been stopped."""
        with _warden() as announce, self._signals():
            states: tuple[ServiceState, ...] = ()
            try:
                while not self._stopping.is_set():
                    for child in self._children:
                        child.step(announce, self._tell)
                    states = self._report(states)
                    _wait_for_output(self._children)
            finally:
                for child in reversed(self._children):
                    child.stop(announce)
                self._report(states)
        return 0

    def _report(self, before: tuple[ServiceState, ...]) -> tuple[ServiceState, ...]:
        states = tuple(child.state for child in self._children)
        if self._changed is not None and states != before:
            self._changed(states)
        return states

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may catch signals
            return

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Child:
    """One service, its process while it has one, and when it starts next."""

    def __init__(self, service: Service, grace_s: float) -> None:
        self.service, self._grace_s = service, grace_s
        self.process: subprocess.Popen[bytes] | None = None
        self.state = ServiceState(service.name)
        self._log = ServiceLog(service.log)
        self._unfinished = b""
        self._pause_s = service.restart_after_s
        self._next_start = self._started = self._last_judged = 0.0
        self._sick = ""

    def step(self, announce: Tell, tell: Tell) -> None:
        """Start what is due, read what was said, and see whether it must be restarted."""
        if self.process is None:
            if time.monotonic() >= self._next_start:
                self._start(announce, tell)
            return
        self._read()
        if self._sick:
            self._end(announce)
            self._plan_restart(self._sick, tell)
        elif (code := self._exit_code()) is not None:
            self._end(announce)
            self._plan_restart(self._sick or f"it ended with {_in_words(code)}", tell)

    def stop(self, announce: Tell) -> None:
        """End it for good."""
        if self.process is not None:
            self._end(announce)
        self.state = ServiceState(self.service.name, restarts=self.state.restarts, reason=self.state.reason)

    def _start(self, announce: Tell, tell: Tell) -> None:
        self._sick, self._unfinished = "", b""
        self._started = self._last_judged = time.monotonic()
        try:
            self.process = subprocess.Popen(
                self.service.command,
                env=dict(self.service.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its group can be ended as one
                umask=0o077,
            )
        except OSError as error:
            self._plan_restart(f"it cannot be started ({error.strerror}: {self.service.command[0]})", tell)
            return
        announce(f"+{self.process.pid}")
        os.set_blocking(self._output, False)
        self.state = ServiceState(
            self.service.name, self.process.pid, time.time(), None, self.state.restarts, self.state.reason
        )

    def _plan_restart(self, reason: str, tell: Tell) -> None:
        ran_s = time.monotonic() - self._started
        if ran_s > STABLE_S:
            self._pause_s = self.service.restart_after_s
        pause_s = self._pause_s
        self._pause_s = max(min(2 * pause_s, self.service.longest_pause_s), self.service.restart_after_s)
        self._next_start = time.monotonic() + pause_s
        self.state = ServiceState(
            self.service.name, None, None, time.time() + pause_s, self.state.restarts + 1, reason
        )
        tell(f"{self.service.name} is restarted: {reason}; next try in {pause_s:.0f} s")

    @property
    def _output(self) -> int:
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.fileno()

    def _exit_code(self) -> int | None:
        """How the process ended, or None; it stays unreaped, so that nobody else gets its number."""
        assert self.process is not None
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _read(self) -> None:
        """Log and judge the lines that have come."""
        try:
            data = os.read(self._output, 2**18)
        except BlockingIOError:
            data = b""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if len(self._unfinished) > LONGEST_LINE:
            lines, self._unfinished = [*lines, self._unfinished], b""
        if not lines and time.monotonic() - self._last_judged >= 1.0:
            self._judge("")
        for line in lines:
            text = plain(line.decode(errors="replace"))
            with suppress(OSError):  # a full disk must not end what still works
                self._log.write(text)
            self._judge(text)

    def _judge(self, line: str) -> None:
        self._last_judged = time.monotonic()
        finding = self.service.judge(line) if self.service.judge else None
        self._sick = self._sick or finding or ""

    def _end(self, announce: Tell) -> None:
        """End the process in order, or else by force, and with it whatever is left of its group."""
        process = self.process
        assert process is not None and process.stdout is not None
        deadline = time.monotonic() + self._grace_s
        os.kill(process.pid, signal.SIGTERM)  # Popen.terminate would reap a process that has ended
        while self._exit_code() is None and time.monotonic() < deadline:
            self._read()
            time.sleep(0.05)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        announce(f"-{process.pid}")
        self._read()
        process.stdout.close()
        self.process = None


def _wait_for_output(children: Sequence[_Child]) -> None:
    with selectors.DefaultSelector() as selector:
        for child in children:
            if child.process is not None and child.process.stdout is not None:
                selector.register(child.process.stdout, selectors.EVENT_READ)
        started = time.monotonic()
        selector.select(STEP_S)
    # the output of a process that has ended is always ready
    time.sleep(max(0.0, min(0.02, STEP_S - (time.monotonic() - started))))


def _in_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


@contextmanager
def _warden() -> Iterator[Tell]:
    """A warden, and how to announce process groups to it."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", warden.__file__],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    pipe = process.stdin

    def announce(group: str) -> None:
        pipe.write(f"{group}\n")
        pipe.flush()

    try:
        yield announce
    finally:
        pipe.close()
        process.wait()
