"""The settings of a whole run: the method's and the federation's, from a preset, a file and single overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, model_validator

from flexmoe_core.door import UpdateLimits
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.groups import Group
from flexmoe_core.privacy.rules import findings_of_method
from flexmoe_core.privacy.settings import PrivacySettings
from flexmoe_core.settings import DEFAULT_PRESET, PRESETS, MethodSettings
from flexmoe_core.validation import Finding, FrozenModel, raise_if_any, read_toml, suggestion, validate
from server.optimizers import ServerOptimizerSettings
from server.robust import AggregationSettings

Share = Annotated[float, Field(ge=0, le=1)]


class EarlyStopSettings(FrozenModel):
    """Stop when the pooled validation metric has not improved for ``patience`` rounds (0: never stop early)."""

    metric: Literal["auroc", "auprc", "accuracy", "macro_f1", "brier", "ece", "log_loss"] = "log_loss"
    patience: int = Field(default=0, ge=0)


class FederationSettings(FrozenModel):
    """Rounds, who must take part, and how updates become the next global state."""

    rounds: int = Field(default=40, ge=1)
    quorum: int = Field(default=1, ge=1, description="sites without which a round is not aggregated")
    min_aggregated: Share = Field(default=0.8, description="share of rounds without which the run fails")
    deadline_s: float = Field(
        default=3600.0, gt=0, allow_inf_nan=False, description="seconds to wait for the answers of a round"
    )
    min_cell: int = Field(default=5, ge=1, description="patients below which a combination is not announced")
    averaging: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean over rounds; 0: last round")
    local_groups: tuple[Group, ...] = ()
    optimizer: ServerOptimizerSettings = ServerOptimizerSettings()
    aggregation: AggregationSettings = AggregationSettings()
    limits: UpdateLimits = UpdateLimits()
    early_stop: EarlyStopSettings = EarlyStopSettings()


class RunSettings(FrozenModel):
    """Everything that a run needs beside its study; written to its config.toml."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    method: MethodSettings = MethodSettings()
    federation: FederationSettings = FederationSettings()
    privacy: PrivacySettings = PrivacySettings()

    @model_validator(mode="after")
    def _private(self) -> Self:
        raise_if_any([*findings_of_method(self.method, self.privacy), *self._findings()])
        return self

    def _findings(self) -> Iterator[Finding]:
        """What of the federation a protection does not allow."""
        federation = self.federation
        if self.privacy.patient is not None and federation.early_stop.patience > 0:
            what = "needs metrics every round, which privacy.patient does not release"
            yield Finding(what, "Set it to 0.", "federation.early_stop.patience")
        elif self.privacy.site is not None and federation.early_stop.patience > 0:
            what = "would tell by the number of rounds of scores that privacy.site does not protect"
            yield Finding(what, "Set it to 0.", "federation.early_stop.patience")
        if self.privacy.patient is not None and federation.optimizer.name != "avg":
            what = "lets noise of rows that nobody trains grow, under privacy.patient"
            yield Finding(what, "Set it to avg.", "federation.optimizer.name")
        masked, clipped = self.privacy.secure_aggregation is not None, self.privacy.site is not None
        if masked and federation.aggregation.rule != "mean":
            what = "needs the updates one by one, which privacy.secure_aggregation hides"
            yield Finding(what, "Set it to mean.", "federation.aggregation.rule")
        elif clipped and federation.aggregation.rule != "mean":
            what = "has another sensitivity than the sum that privacy.site adds noise to"
            yield Finding(what, "Set it to mean.", "federation.aggregation.rule")

    def to_toml(self) -> str:
        """The text of a config.toml that gives the same settings."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_settings(path: Path) -> RunSettings:
    """The settings in a config.toml; raises InputError with every problem."""
    return read_toml(path, RunSettings)


def settings_with(overrides: Iterable[str], preset: str = DEFAULT_PRESET, seed: int | None = None) -> RunSettings:
    """A preset changed by ``key=value`` overrides with dotted keys; raises InputError with every problem.

    Values are written as in TOML; a bare word is a string.
    """
    problems: list[Problem] = []
    if preset not in PRESETS:
        problems.append(Problem("--preset", preset, "is not a known preset", suggestion(preset, list(PRESETS))))
        preset = DEFAULT_PRESET
    tree: dict[str, Any] = {"method": PRESETS[preset]().model_dump()}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            problems.append(Problem("--set", override, "is not of the form key=value", "Write e.g. seed=1."))
        elif not _assign(tree, key.strip().split("."), _value(text.strip())):
            problems.append(Problem("--set", key, "sets a key below a value", "Give the full dotted key once."))
    if seed is not None:
        tree["seed"] = seed
    try:
        settings = validate(tree, RunSettings, "--set")
    except InputError as error:
        raise InputError([*problems, *error.problems]) from None
    if problems:
        raise InputError(problems)
    return settings


def _assign(tree: dict[str, Any], path: list[str], value: object) -> bool:
    """Set a value at a dotted path; False where the path leads through something that is no table."""
    *parents, last = path
    node: Any = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            return False
    if isinstance(node.get(last), Mapping):
        return False
    node[last] = value
    return True


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, or a number or nesting without end
        return text
