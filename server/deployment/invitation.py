"""The study that a coordinator invites hospitals to."""

from __future__ import annotations

from flexmoe_core.study import Study, load_study
from server.deployment.folder import CoordinatorFolder


def study_of(folder: CoordinatorFolder) -> Study:
    """Raises InputError with every problem in its study.toml."""
    return load_study(folder.path / "study.toml")
