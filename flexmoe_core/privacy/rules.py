"""Which settings break a protection. Checked by the coordinator before a run, and by sites before they read."""

from __future__ import annotations

from collections.abc import Iterator

from flexmoe_core.privacy.settings import PrivacySettings
from flexmoe_core.settings import MethodSettings
from flexmoe_core.validation import Finding

UNDER_DP = "under privacy.patient"


def findings_of_method(method: MethodSettings, privacy: PrivacySettings) -> Iterator[Finding]:
    """What of the method a patient-level guarantee does not allow, each with its dotted key below the settings."""
    if privacy.patient is None:
        return
    training, model = method.training, method.model
    if method.losses.balance > 0 and model.balancing == "loss" and model.routed_experts > 1:
        what = f"couples the patients of a batch, so that no patient's influence is bounded {UNDER_DP}"
        yield Finding(what, "Set it to 0, or start from the preset private.", "method.losses.balance")
    if model.balancing == "bias":
        what = f"counts patients' choices without noise, which is not allowed {UNDER_DP}"
        yield Finding(what, "Set it to loss, and method.losses.balance to 0.", "method.model.balancing")
    if method.site.intercept > 0 or method.site.regression:
        what = f"fits each site's patients without noise, and would show in its metrics {UNDER_DP}"
        remedy = "Set method.site.intercept to 0 and method.site.regression to [], or start from the preset private."
        yield Finding(what, remedy, "method.site")
    if training.precision != "float32":
        what = f"is not supported {UNDER_DP}: norms of patients' gradients need float32"
        yield Finding(what, "Set it to float32.", "method.training.precision")
