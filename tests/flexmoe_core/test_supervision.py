import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flexmoe_core.service_log import ServiceLog, plain
from flexmoe_core.supervision import Service, ServiceState, Supervisor


def python(folder: Path, name: str, program: str, **options: object) -> Service:
    return Service(
        name, (sys.executable, "-I", "-S", "-c", program), dict(os.environ), folder / f"{name}.log", **options
    )  # type: ignore[arg-type]


@contextmanager
def running(services: list[Service], told: list[str], grace_s: float = 2.0) -> Iterator[list[ServiceState]]:
    states: list[ServiceState] = []

    def changed(now: tuple[ServiceState, ...]) -> None:
        states[:] = now

    supervisor = Supervisor(services, told.append, changed, grace_s)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield states
    finally:
        supervisor.stop()
        thread.join(20)
        assert not thread.is_alive()


def until(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_output_is_kept_for_the_owner_alone(tmp_path: Path) -> None:
    service = python(tmp_path, "one", "print('\\x1b[92mhello\\x1b[0m', flush=True); import time; time.sleep(60)")
    with running([service], []):
        until(lambda: "hello" in text(service.log))
    assert text(service.log).splitlines()[0].endswith("Z hello")
    assert stat.S_IMODE(service.log.stat().st_mode) == 0o600


def test_what_ended_is_restarted_with_growing_pauses(tmp_path: Path) -> None:
    told: list[str] = []
    with running([python(tmp_path, "one", "raise SystemExit(3)", restart_after_s=0.05)], told):
        until(lambda: len(told) >= 4)
    assert told[0] == "one is restarted: it ended with exit code 3; next try in 0 s"
    starts = [line for line in told if "exit code 3" in line]
    assert starts == told


def test_the_pause_doubles(tmp_path: Path) -> None:
    told: list[str] = []
    with running([python(tmp_path, "one", "raise SystemExit(1)", restart_after_s=0.5)], told) as states:
        until(lambda: len(told) >= 2)
        assert states[0].restarts >= 1 and "exit code 1" in states[0].reason
    assert [line.rsplit(" ", 2)[1] for line in told[:2]] == ["0", "1"]


def test_what_is_judged_sick_is_ended_even_against_its_will(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('Giving up', flush=True); time.sleep(60)"
    )
    told: list[str] = []
    service = python(
        tmp_path,
        "one",
        stubborn,
        restart_after_s=0.05,
        judge=lambda line: "it gave up" if "Giving up" in line else None,
    )
    with running([service], told, grace_s=0.3) as states:
        until(lambda: states != [] and states[0].pid is not None)
        first = states[0].pid
        until(lambda: states[0].restarts >= 1 and states[0].pid not in (None, first))
    assert first is not None and not is_alive(first)
    assert told[0].startswith("one is restarted: it gave up")


def test_silence_can_be_judged(tmp_path: Path) -> None:
    told: list[str] = []
    service = python(
        tmp_path, "one", "import time; time.sleep(60)", judge=lambda line: "silent" if line == "" else None
    )
    with running([service], told):
        until(lambda: bool(told))
    assert "silent" in told[0]


def test_a_command_that_does_not_exist_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    service = Service("one", ("/nowhere/program",), {}, tmp_path / "one.log")
    with running([service], told):
        until(lambda: bool(told))
    assert told[0].startswith("one is restarted: it cannot be started (No such file or directory: /nowhere/program)")


def test_services_stop_in_reverse_order(tmp_path: Path) -> None:
    order = tmp_path / "order"

    def program(name: str) -> str:
        return (
            f"import signal, sys, time\n"
            f"def end(*_):\n    open({str(order)!r}, 'a').write('{name}\\n'); sys.exit()\n"
            f"signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)"
        )

    services = [python(tmp_path, name, program(name)) for name in ("tunnel", "node")]
    with running(services, []):
        until(lambda: all("up" in text(service.log) for service in services))
    assert order.read_text().split() == ["node", "tunnel"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_outlives_the_supervisor(tmp_path: Path, number: signal.Signals, code: int) -> None:
    grandchild = "import subprocess, sys, os, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(os.getpid(), p.pid, flush=True); time.sleep(60)"  # noqa: E501
    main = (
        "import sys, os, json; from pathlib import Path; from flexmoe_core.supervision import Service, Supervisor;"
        "command, log = json.loads(sys.argv[1]);"
        "raise SystemExit(Supervisor([Service('one', tuple(command), dict(os.environ), Path(log))], print).run())"
    )
    log = tmp_path / "one.log"
    arguments = json.dumps([[sys.executable, "-c", grandchild], str(log)])
    supervisor = subprocess.Popen([sys.executable, "-c", main, arguments], start_new_session=True)
    until(lambda: text(log).count(" ") == 2)
    pids = [int(word) for word in text(log).split()[1:]]
    assert all(map(is_alive, pids))
    supervisor.send_signal(number)
    assert supervisor.wait(20) == code
    until(lambda: not any(map(is_alive, pids)))


def test_a_log_stays_within_its_bound(tmp_path: Path) -> None:
    log = ServiceLog(tmp_path / "x.log", limit_bytes=200, kept=2)
    for number in range(100):
        log.write(f"line {number}")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["x.log", "x.log.1", "x.log.2"]
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    assert "line 99" in (tmp_path / "x.log").read_text()


def test_a_log_that_cannot_be_written_does_not_end_the_service(tmp_path: Path) -> None:
    service = python(tmp_path, "one", "import time; print('hello', flush=True); time.sleep(60)")
    service.log.mkdir()
    heard: list[str] = []
    with running([replace(service, judge=heard.append)], []) as states:  # type: ignore[arg-type]
        until(lambda: "hello" in heard)
        assert states[0].pid is not None and states[0].restarts == 0


def test_plain_text_has_no_control_characters() -> None:
    assert plain("\x1b[91mERROR\x1b[0m: a\x07b\r") == "ERROR: ab"
