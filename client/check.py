"""The check of a site folder before any training: every problem, or who has what. It writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.coverage import Coverage, coverage
from client.entries import fitted_scales, read_site_manifest
from client.manifest import read_manifest
from client.patients import SPLITS
from client.policy import read_policy
from client.site_data import read_site
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import Study, load_study

STUDY_FILE = "study.toml"


@dataclass(frozen=True)
class CheckResult:
    """Every problem of a site folder, or, if there is none, its coverage per split.

    ``fitted`` are the keys of site.toml in place of which a scale is fitted to training patients.
    """

    problems: tuple[Problem, ...] = ()
    site: str = ""
    study: Study | None = None
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    fitted: tuple[str, ...] = ()


def check_site(folder: Path, study_path: Path | None = None) -> CheckResult:
    """Check a site folder against a study; by default the study.toml in the folder, or else beside it.

    Test labels are validated, so that the finish cannot fail on them, and not counted or shown.
    """
    try:
        study = load_study(study_path or _study_beside(folder))
    except InputError as error:
        return CheckResult((*error.problems, *_manifest_problems(folder), *_policy_problems(folder)))
    problems = _policy_problems(folder)
    try:
        data = read_site(folder, study, SPLITS)
    except InputError as error:
        problems += error.problems
    if problems:
        return CheckResult(problems, study=study)
    counts = {split: coverage(cohort, study) for split, cohort in data.cohorts.items()}
    fitted = fitted_scales(read_site_manifest(folder, study), study)
    return CheckResult(site=data.name, study=study, coverage=counts, fitted=fitted)


def _study_beside(folder: Path) -> Path:
    inside, beside = folder / STUDY_FILE, folder.resolve().parent / STUDY_FILE
    for path in (inside, beside):
        if path.is_file():
            return path
    remedy = "Copy the coordinator's study.toml there, or name it with --study."
    raise InputError([Problem(str(folder), "", f"neither {inside} nor {beside} exists", remedy)])


def _manifest_problems(folder: Path) -> tuple[Problem, ...]:
    try:
        read_manifest(folder)
    except InputError as error:
        return error.problems
    return ()


def _policy_problems(folder: Path) -> tuple[Problem, ...]:
    try:
        read_policy(folder)
    except InputError as error:
        return error.problems
    return ()
