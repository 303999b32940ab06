"""One federation on this machine: site folders in, run folder out, on either engine."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flwr.app import UserConfigValue

from client.keys import IDENTITY_KEY, make_keys
from client.manifest import read_manifest
from client.node_folder import ROSTER_FILE
from flexmoe_core.app_folder import write_app_folder
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.devices import AUTOMATIC
from flexmoe_core.enrollment import Member, Roster
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import load_study
from server.app import build_app
from server.federation import RoundObserver
from server.masked_rounds import require_maskable
from server.run_store import RunStore
from server.settings import RunSettings
from simulations.engines.faults import FaultPlan
from simulations.engines.inprocess import Node, Overhear, run_inprocess
from simulations.engines.ray import run_ray

Engine = Literal["inprocess", "ray"]
CLIENT_APP = "client.app:app"
RAY_TIMEOUT_S = 24 * 3600.0


def simulate(
    study_folder: Path,
    run_folder: Path,
    settings: RunSettings | None,
    *,
    engine: Engine = "inprocess",
    sites: Collection[str] | None = None,
    observe: RoundObserver | None = None,
    faults: FaultPlan | None = None,
    processes: int = 0,
    device: str = AUTOMATIC,
    overhear: Overhear | None = None,
) -> RunStore:
    """Run a federation over the site folders below ``study_folder``, or over some of them by name.

    ``settings`` None resumes the run in ``run_folder``. Raises InputError, CheckpointError or RunFailed. The engine
    ``ray`` takes all sites, chooses devices itself and has none of the other options; ValueError for one.
    """
    if engine == "ray" and (sites is not None or observe or faults or processes or device != AUTOMATIC or overhear):
        raise ValueError("sites, observe, faults, processes, device and overhear are options of the engine inprocess")
    folders = site_folders(study_folder, sites)
    resume = settings is None
    if settings is None:
        store = RunStore.open(run_folder)
        require_quorum(store.settings, folders, str(run_folder / "config.toml"))
    else:
        require_quorum(settings, folders, "--set")
        study = load_study(study_folder / "study.toml")
        require_maskable(settings, study, len(folders), "--set")
        store = RunStore.create(run_folder, study, settings)
        if settings.privacy.secure_aggregation is not None:
            introduce(store, folders)
    run_config: dict[str, UserConfigValue] = {
        "study-folder": str(study_folder.resolve()),
        "run-folder": str(run_folder.resolve()),
        "resume": resume,
        "expected-sites": len(folders),
    }
    if engine == "ray":
        with tempfile.TemporaryDirectory() as scratch:
            run_ray(write_app_folder(Path(scratch)), run_config, len(folders), timeout_s=RAY_TIMEOUT_S)
        return store
    # Whoever simulates loses a run to a power cut, not a proof: waiting for the disk at each line is for hospitals.
    nodes = [Node(name, _node_config(run_folder, name, folder, device)) for name, folder in folders.items()]
    app = build_app(observe or _silent, durable=False)
    run_inprocess(app, CLIENT_APP, nodes, run_config, faults=faults, processes=processes, overhear=overhear)
    return store


def introduce(store: RunStore, folders: Mapping[str, Path]) -> None:
    """Make keys for every site, and have all of them pin the roster of all, as their engineers would."""
    members = []
    for name, folder in folders.items():
        enrollment = make_keys(site_state(store.folder, name), read_manifest(folder).site.name)
        members.append(Member(**enrollment.model_dump(exclude={"format"}), enrolled=datetime.now(UTC)))
    roster = Roster(members=tuple(members))
    store.save_roster(roster)
    for name in folders:
        write_atomic(site_state(store.folder, name) / ROSTER_FILE, roster.model_dump_json().encode())


def _node_config(run_folder: Path, name: str, folder: Path, device: str) -> dict[str, UserConfigValue]:
    state = site_state(run_folder, name)
    config: dict[str, UserConfigValue] = {
        "site": str(folder),
        "state": str(state),
        "device": device,
        "audit-fsync": False,
        "ledger-create": True,
    }
    if (state / ROSTER_FILE).exists():
        config |= {"identity": str(state / IDENTITY_KEY), "roster": str(state / ROSTER_FILE)}
    return config


def site_folders(study_folder: Path, sites: Collection[str] | None = None) -> dict[str, Path]:
    """Absolute site folders by folder name, in order; raises InputError where there are none."""
    found = {file.parent.name: file.parent.resolve() for file in sorted(study_folder.glob("*/site.toml"))}
    chosen = {name: folder for name, folder in found.items() if sites is None or name in sites}
    if not chosen:
        remedy = "Name a folder that 'flexmoe-sim prepare' wrote."
        raise InputError([Problem(str(study_folder), "", "holds no folder with a site.toml", remedy)])
    return chosen


def require_quorum(settings: RunSettings, folders: Collection[str], file: str) -> None:
    """Raise InputError for a quorum that cannot be: at once, not when the deadline has passed.

    ``file`` is where the quorum was set.
    """
    quorum = settings.federation.quorum
    if quorum > len(folders):
        what = f"is {quorum}, but there are {len(folders)} sites"
        raise InputError([Problem(file, "federation.quorum", what, f"Set it to {len(folders)} or less.")])


def site_state(run_folder: Path, site: str) -> Path:
    """Where a simulated site keeps its own files."""
    return run_folder.resolve() / "sites" / site


def site_bundle(store: RunStore, site: str) -> Path:
    """The bundle that a simulated site wrote at the end of a run."""
    return site_state(store.folder, site) / store.run / "bundle"


def _silent(row: Mapping[str, Any]) -> None:
    """Nobody watches."""
