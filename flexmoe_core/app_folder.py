"""The folder that Flower bundles: our packages and a pyproject.toml, wherever they are installed."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import tomli_w

APP_NAME = "flexmoe"
PACKAGES = ("flexmoe_core", "client", "server")


def write_app_folder(parent: Path) -> Path:
    """Write ``parent``/flexmoe from the installed packages, and return it.

    Raises FileExistsError if it is there.
    """
    folder = parent / APP_NAME
    folder.mkdir(parents=True)
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations, f"{package} is installed with this one"
        source = Path(spec.submodule_search_locations[0])
        for file in sorted(source.rglob("*.py")):
            copy = folder / package / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    (folder / "pyproject.toml").write_text(tomli_w.dumps(_pyproject()))
    return folder


def _pyproject() -> dict[str, object]:
    """What Flower asks of an app; the section [tool.flwr.app] is that of our own pyproject.toml."""
    flower = {
        "publisher": "flexmoe",
        "fab-include": [f"{package}/**/*.py" for package in PACKAGES],
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": {"study-folder": "", "run-folder": "", "resume": False, "expected-sites": 0},
    }
    # the version names the bundle, which lives no longer than one run
    return {"project": {"name": APP_NAME, "version": "0.0.0"}, "tool": {"flwr": {"app": flower}}}
