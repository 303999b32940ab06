import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flexmoe_core.errors import RunFailed
from simulations.engines.process_family import end_family, find_family
from simulations.engines.ray import SuperLink, run_ray

PYPROJECT = """
[project]
name = "toy"
version = "0.1.0"
[tool.flwr.app]
publisher = "toy"
[tool.flwr.app.components]
serverapp = "toy.server:app"
clientapp = "toy.client:app"
[tool.flwr.app.config]
run-folder = ""
rounds = 1
fail = false
pause = 0
"""

SERVER = """
import json, os, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    if context.run_config["fail"]:
        raise ValueError("a coordinator went wrong")
    time.sleep(context.run_config["pause"])
    while len(node_ids := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    answers = []
    for number in range(context.run_config["rounds"]):
        content = RecordDict({"config": ConfigRecord({"round": number})})
        messages = [Message(content, node, "query", group_id=str(number)) for node in node_ids]
        for reply in grid.send_and_receive(messages, timeout=60):
            answers.append(dict(reply.content["answer"]))
    told = {"answers": answers, "home": os.environ["FLWR_HOME"]}
    Path(context.run_config["run-folder"], "told.json").write_text(json.dumps(told))
"""

CLIENT = """
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    answer = {"round": message.content["config"]["round"], "site": context.node_config["partition-id"]}
    return Message(RecordDict({"answer": MetricRecord(answer)}), reply_to=message)
"""


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    (folder / "toy").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    for name, text in (("__init__", ""), ("server", SERVER), ("client", CLIENT)):
        (folder / "toy" / f"{name}.py").write_text(text)
    return folder


@pytest.mark.slow
def test_a_toy_app_runs_to_its_end_and_leaves_nothing_behind(toy_folder: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "a folder with 'quotes'"
    run_folder.mkdir()
    run_ray(toy_folder, {"run-folder": str(run_folder), "rounds": 2}, 2, total_cpus=2, timeout_s=120)
    told = json.loads((run_folder / "told.json").read_text())
    answers = sorted((answer["round"], answer["site"]) for answer in told["answers"])
    assert answers == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert find_family(f"FLWR_HOME={told['home']}") == set()
    home = Path(told["home"])
    assert home.parent == Path(tempfile.gettempdir())
    assert list(home.parent.glob(f"{home.name}*")) == []


@pytest.mark.slow
def test_a_coordinator_that_raises_fails_the_run_and_leaves_its_log(toy_folder: Path) -> None:
    with pytest.raises(RunFailed, match=r"finished:failed.*a coordinator went wrong") as caught:
        run_ray(toy_folder, {"fail": True}, 2, total_cpus=2, timeout_s=120)
    log = Path(str(caught.value).rpartition("See the log: ")[2])
    assert "Traceback" in log.read_text()
    assert not log.with_suffix("").exists()
    assert find_family(f"FLWR_HOME={log.with_suffix('')}") == set()
    log.unlink()


@pytest.mark.slow
def test_an_undeclared_key_and_a_lack_of_time_fail_the_run(toy_folder: Path) -> None:
    for config, timeout_s, said in (
        ({"undeclared": 1}, 60.0, "undeclared"),
        ({"pause": 60}, 5.0, r"after 5 s the run was still (starting|running)"),
        ({}, 0.1, "did not start"),
    ):
        with pytest.raises(RunFailed, match=said) as caught:
            run_ray(toy_folder, config, 2, timeout_s=timeout_s)
        log = Path(str(caught.value).rpartition("See the log: ")[2])
        assert find_family(f"FLWR_HOME={log.with_suffix('')}") == set()
        log.unlink()


def test_no_federation_without_sites(toy_folder: Path) -> None:
    with pytest.raises(ValueError, match="at least one site"):
        run_ray(toy_folder, {}, 0, timeout_s=1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
def test_a_family_ends_with_children_that_hide_and_ignore_sigterm(tmp_path: Path) -> None:
    mark = f"FLEXMOE_TEST_MARK={tmp_path}"
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    stubborn = f"{ignore}; print('up', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stubborn!r}], env={{}})"
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        env={**os.environ, "FLEXMOE_TEST_MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    family = find_family(mark)
    assert process.pid in family
    assert len(family) == 2
    end_family(mark, patience_s=0.5)
    process.wait(timeout=5)
    assert not any((Path("/proc") / str(pid) / "exe").exists() for pid in family)


@pytest.mark.slow
def test_an_interrupt_ends_what_was_started(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes: list[Path] = []

    def interrupt(superlink: SuperLink, run_id: str) -> None:
        homes.append(superlink.home)
        assert find_family(f"FLWR_HOME={superlink.home}")
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.engines.ray._await_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_ray(toy_folder, {}, 2, total_cpus=2, timeout_s=60)
    assert find_family(f"FLWR_HOME={homes[0]}") == set()
    assert not homes[0].exists()
    homes[0].with_suffix(".log").unlink()
