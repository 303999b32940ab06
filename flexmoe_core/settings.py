"""The settings of the method: model, losses, local training and curriculum, with three named presets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flexmoe_core.validation import FrozenModel

ALIGNMENT = 8
"""Grouped matrix products need rows of a multiple of 16 bytes, also in bfloat16."""


Spread = Annotated[float, Field(gt=0, le=100)]


class ModelSettings(FrozenModel):
    """Sizes and choices of the network."""

    tokens: int = Field(default=1, ge=1, description="tokens per modality")
    width: int = Field(default=32, ge=ALIGNMENT, multiple_of=ALIGNMENT)
    layers: int = Field(default=1, ge=1)
    heads: int = Field(default=4, ge=1)
    experts: int = Field(default=8, ge=1)
    active_experts: int = Field(default=2, ge=1, description="experts per token")
    expert_width: int = Field(default=32, ge=ALIGNMENT, multiple_of=ALIGNMENT)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    encoder_hidden: int = Field(default=0, ge=0, description="0: a linear encoder")
    encoder_dropout: float = Field(default=0.0, ge=0, lt=1)
    volume_channels: int = Field(default=8, ge=1, le=256, description="of a volume encoder's first convolution")
    output_scale: float = Field(default=0.1, gt=0, le=1, description="initial size of what branches and head add")
    final_norm: bool = Field(default=False, description="normalize tokens before the head")
    feed_forward: Literal["mixture", "dense"] = Field(
        default="mixture", description="dense: one network of the width of all active experts for every token"
    )
    specialization: Literal["pinned", "learned"] = "pinned"
    router: Literal["shared", "modality"] = Field(default="shared", description="modality: a router for each")
    balancing: Literal["loss", "bias"] = Field(
        default="loss", description="bias: experts that few choose become easier to choose, and no loss balances them"
    )
    bank: Literal["table", "compositional", "zero"] = Field(
        default="table", description="compositional: tokens add up over pairs of modalities, for many modalities"
    )
    pooling: Literal["concat", "attention"] = Field(
        default="concat", description="attention: a head whose width does not depend on the modalities"
    )

    @property
    def routed_experts(self) -> int:
        """Experts that tokens choose from in a sparse layer; 0 where no layer is sparse."""
        return self.experts if self.feed_forward == "mixture" else 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.active_experts > self.experts:
            raise ValueError("active_experts must not exceed experts")
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self


class LossSettings(FrozenModel, allow_inf_nan=False):
    """Weights of the losses beside the task's."""

    balance: float = Field(default=0.01, ge=0, description="only with balancing by loss")
    specialization: float = Field(default=0.01, ge=0, description="only with learned specialization")
    rehearsal: float = Field(default=1.0, ge=0, description="task loss of hidden modalities, for the bank alone")


class TrainingSettings(FrozenModel, allow_inf_nan=False):
    """What a site does in one round. The optimizer starts fresh every round."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=7e-4, gt=0)
    weight_decay: float = Field(default=1.0, ge=0)
    bank_decay: float = Field(default=1.0, ge=0, description="decay of the bank's residual rows")
    bias_rate: float = Field(default=0.01, ge=0, description="step of a bias in logits, with balancing by bias")
    gradient_norm: float = Field(
        default=0.0,
        ge=0,
        description="largest L2 norm of a batch's gradient; 0: any. Under privacy.patient each patient's is limited",
    )
    batch_size: int = Field(default=64, ge=1)
    epochs: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of matrix products; router, losses and optimizer stay in float32"
    )
    accumulation: int = Field(
        default=1, ge=1, description="parts in which the gradient of a batch is computed, to save memory"
    )
    replay: bool = Field(
        default=True, description="record a step on a GPU and replay it; encoders then also read absent modalities"
    )
    modality_dropout: float = Field(
        default=0.2, ge=0, lt=1, description="chance to hide each observed modality from the whole model"
    )


class CurriculumSettings(FrozenModel):
    """Stages of training."""

    generalize_rounds: int = Field(default=5, ge=0)
    min_full: int = Field(default=8, ge=1, description="full-modality patients below which a site has none")


class SiteSettings(FrozenModel):
    """What a site makes of the shared model for its own patients. Spreads are prior ones, in logits."""

    intercept: float = Field(default=1.0, ge=0, le=100, description="spread of a site's own intercept; 0: none")
    regression: tuple[Spread, ...] = Field(
        default=(0.5, 0.7, 1.0, 1.4, 2.0),
        description="spreads of its own regression, averaged by merit; none: no regression",
    )


class MethodSettings(FrozenModel):
    """Everything that decides how a site trains."""

    model: ModelSettings = ModelSettings()
    losses: LossSettings = LossSettings()
    training: TrainingSettings = TrainingSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    site: SiteSettings = SiteSettings()


def small() -> MethodSettings:
    """For cohorts of some hundred patients: the default.

    It starts close to a linear model of the encoders (small output scale, no final norm) and leaves it slowly:
    in cross-validation on UCI heart that mattered more than any size. Hiding modalities in training costs patients
    nothing there who come as they are, and serves those who lack what nobody lacked before.
    """
    return MethodSettings()


def medium() -> MethodSettings:
    """For hundreds of features or many classes: wider, trained longer and faster, without regressions of sites.

    The default stops long before it has learned so much; on UCI heart, these steps fit noise. Choose between the two
    by the validation log-loss.
    """
    return MethodSettings(
        model=ModelSettings(width=64),
        training=TrainingSettings(learning_rate=3e-3, epochs=2),
        site=SiteSettings(regression=()),
    )


def paper() -> MethodSettings:
    """The published sizes (Flex-MoE, appendix; one sparse layer as in the official code)."""
    return MethodSettings(
        model=ModelSettings(
            tokens=16,
            width=128,
            experts=16,
            active_experts=4,
            expert_width=256,
            dropout=0.5,
            encoder_hidden=128,
            output_scale=1.0,
            final_norm=True,
        ),
        losses=LossSettings(rehearsal=0.0),
        training=TrainingSettings(
            learning_rate=1e-4, weight_decay=0.01, bank_decay=0.01, batch_size=8, modality_dropout=0.0
        ),
        site=SiteSettings(intercept=0.0, regression=()),
    )


def private() -> MethodSettings:
    """For patient-level privacy: few parameters, and nothing that a guarantee does not allow.

    Every step sees as many patients as it can, and plain gradient descent follows the noised sum: an adaptive
    optimizer would move parameters that only noise moves as fast as the others.
    """
    return MethodSettings(
        model=ModelSettings(width=16, expert_width=16, experts=4, dropout=0.0),
        losses=LossSettings(balance=0.0, rehearsal=0.0),
        training=TrainingSettings(
            optimizer="sgd",
            learning_rate=1.0,
            weight_decay=0.0,
            bank_decay=0.0,
            batch_size=1024,
            gradient_norm=1.0,
            modality_dropout=0.0,
        ),
        site=SiteSettings(intercept=0.0, regression=()),
    )


DEFAULT_PRESET = "small"
PRESETS = {"small": small, "medium": medium, "paper": paper, "private": private}
