"""The bundle of code that the installed packages make: what a coordinator of the same version sends."""

from __future__ import annotations

import hashlib
import tempfile
from importlib.metadata import version
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from flexmoe_core.app_folder import write_app_folder


def own_bundle() -> tuple[str, str]:
    """The SHA-256 of the bundle that the installed packages make, and their version."""
    with tempfile.TemporaryDirectory() as scratch:
        content = build_fab_from_disk(write_app_folder(Path(scratch)))
    return hashlib.sha256(content).hexdigest(), version("flexmoe-federated")
