import json
from pathlib import Path

import pytest

from client.node_folder import NodeFolder
from flexmoe_core.errors import InputError
from tests.e2e.coordinator import new_authority, write_node_folder


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    folder = write_node_folder(tmp_path / "node", new_authority(), "coordinator.example:443", "cleveland", "heart")
    return NodeFolder(folder)


def test_a_sound_folder_has_a_welcome(node: NodeFolder) -> None:
    welcome = node.welcome()
    assert (welcome.site, welcome.study, welcome.host) == ("cleveland", "heart", "coordinator.example")
    node.prepare()
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in (node.state, node.logs, node.flower, node.run))


def test_every_problem_is_told_at_once(node: NodeFolder) -> None:
    (node.path / "node_key").chmod(0o640)
    (node.path / "identity_key").unlink()
    (node.path / "tls_key").rename(node.path / "elsewhere")
    (node.path / "tls_key").symlink_to(node.path / "elsewhere")
    node.allowed_file.touch()
    node.allowed_file.chmod(0o666)
    (node.path / "welcome.json").unlink()
    with pytest.raises(InputError) as caught:
        node.welcome()
    told = [str(problem).removeprefix(f"{node.path}/") for problem in caught.value.problems]
    assert told == [
        f"node_key: can be read by others (mode 0640). Run: chmod 600 {node.path}/node_key",
        "identity_key: is not there. Make the folder's keys with 'flexmoe-client keygen', or restore the file.",
        "tls_key: is not a plain file. Put the key itself there, not a link to it.",
        f"allowed_bundles.txt: can be changed by others. Run: chmod go-w {node.allowed_file}",
        "welcome.json: cannot be read: No such file or directory. Check the path.",
    ]


def test_a_welcome_for_another_site_is_refused(node: NodeFolder) -> None:
    file = node.path / "enrollment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"site": "basel"}))
    with pytest.raises(InputError, match="is for the site 'cleveland', and this folder is that of 'basel'"):
        node.welcome()


def test_what_is_no_json_is_told(node: NodeFolder) -> None:
    (node.path / "welcome.json").write_text("{")
    with pytest.raises(InputError, match="is not a JSON file"):
        node.welcome()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        NodeFolder(tmp_path / "nowhere").welcome()
