"""Settings: what a run of self-distillation can be told."""

from __future__ import annotations

from pydantic import Field

from headctssl.methods.teacher_targets import TargetRule
from headctssl.settings import Settings as BaseSettings

__all__ = ["DinoSettings"]


class DinoSettings(BaseSettings):
    """Defaults are HeadCT-Foundation's (arXiv 2502.02779); `resolve` adapts them to small data and batches."""

    prototypes: int = Field(65_536, ge=2, description="Prototypes K of the head.")
    head_hidden: int = Field(2048, ge=1, description="Width of the head's two hidden layers.")
    head_bottleneck: int = Field(256, ge=1, description="Channels in which the prototypes live.")
    student_temperature: float = Field(0.1, gt=0, description="Divides the student's cosines.")
    teacher_temperature: float = Field(0.04, gt=0, description="Divides the teacher's cosines after its warm-up.")
    teacher_temperature_start: float = Field(0.04, gt=0, description="The teacher's temperature at the first step.")
    teacher_warmup_share: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Share of all steps in which the teacher's temperature rises (30 of 200 epochs).",
    )
    targets: TargetRule = Field(
        "centring", description="How the teacher's outputs are kept apart: a running centre, or Sinkhorn-Knopp."
    )
    queue: int = Field(
        0, ge=0, description="Sinkhorn-Knopp: outputs of earlier steps that take part, for batches below K."
    )
    koleo_weight: float = Field(
        0.0, ge=0, description="Weight of the KoLeo term, which pushes the scans of a batch apart (DINOv2: .1)."
    )
    token_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each view's tokens that are used, those with tissue before those of air; below 1 for"
        " plain transformers only.",
    )
    center_momentum: float = Field(0.9, ge=0, lt=1, description="Share of the centre that stays at a step.")
    teacher_momentum: float = Field(0.994, ge=0, le=1, description="Share of the teacher that stays at the first step.")
    teacher_momentum_end: float = Field(
        1.0, ge=0, le=1, description="Share of the teacher that stays at the last step, reached by a cosine."
    )
    freeze_last_layer_epochs: float = Field(
        1.0, ge=0, description="Epochs during which the prototypes stand still, never more than a tenth of all steps."
    )
