"""One round of DP-SGD at a site, from shared parameters to an update that may leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import plan_round
from flexmoe_core.groups import specs_of, support_of
from flexmoe_core.model import FlexMoe
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.public_facts import DeclaredFacts
from flexmoe_core.privacy.secret_source import SecretSource
from flexmoe_core.privacy.site_clipping import clipped_update
from flexmoe_core.privacy.training import train_round_privately
from flexmoe_core.settings import MethodSettings
from flexmoe_core.update import Update, build_update


@dataclass(frozen=True)
class NoisedUpdate:
    """An update whose deltas come from noised gradients alone and whose weights are declared facts.

    ``clip`` is the clipping norm for the next round, noised as well where it adapts.
    """

    update: Update
    clip: float


def noised_update(
    model: FlexMoe,
    shared: Mapping[str, np.ndarray],
    cohort: Cohort,
    table: CombinationTable,
    round_number: int,
    settings: MethodSettings,
    mechanism: PatientMechanism,
    quantile: float,
    facts: DeclaredFacts,
    source: SecretSource,
    site_clip: float | None = None,
) -> NoisedUpdate:
    """Train the model in place on a site's patients, none included; ``shared`` are its parameters that travel.

    ``site_clip`` is the bound of site-level privacy, where the run has that too.
    """
    plan = plan_round(round_number, settings.curriculum)
    result = train_round_privately(
        model,
        cohort,
        table,
        plan,
        settings,
        mechanism,
        source,
        taught=facts.teaches(plan),
        frozen=facts.frozen(model, plan),
        quantile=quantile,
    )
    after = {name: model.get_parameter(name).detach() for name in shared}
    values = {name: value.cpu().numpy() for name, value in after.items()}
    if site_clip is not None:
        return NoisedUpdate(clipped_update(specs_of(after), shared, values, site_clip), result.clip)
    weights = facts.support(model, table, plan)
    support = {name: support_of(name, weights, model) for name in after}
    return NoisedUpdate(build_update(specs_of(after), shared, values, support), result.clip)
