import tomllib
from pathlib import Path

import pytest

from flexmoe_core.app_folder import write_app_folder

ROOT = Path(__file__).parents[2]


def test_the_app_folder_is_what_our_own_pyproject_declares(tmp_path: Path) -> None:
    folder = write_app_folder(tmp_path)
    assert folder == tmp_path / "flexmoe"
    written = tomllib.loads((folder / "pyproject.toml").read_text())
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert written["tool"]["flwr"] == ours["tool"]["flwr"]
    copied = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
    sources = {
        str(path.relative_to(ROOT))
        for package in ("flexmoe_core", "client", "server")
        for path in (ROOT / package).rglob("*.py")
    }
    assert copied == sources
    with pytest.raises(FileExistsError):
        write_app_folder(tmp_path)
