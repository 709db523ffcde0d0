"""Volume fusion: crops of a scan are mixed in boxes, and every voxel is to be told in which share."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.boxes import MOST_BOXES
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.optimizers import OPENMIND_TRANSFORMER
from headctssl.methods.spread import unit_spread
from headctssl.methods.volume_fusion.fusion import class_map, draw_fusion, fuse
from headctssl.methods.volume_fusion.volume_fusion_loss import dice_and_entropy
from headctssl.networks.decoders import voxel_decoder
from headctssl.networks.encoder import Encoder
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["VolumeFusion", "VolumeFusionSettings"]


class VolumeFusionSettings(BaseSettings):
    """Defaults are the paper's (arXiv 2306.16925)."""

    shares: int = Field(4, ge=1, le=100, description="Classes above 0; class k of 4 is k quarters of the other crop.")
    boxes: tuple[int, int] = Field((10, 40), description="Fewest and most boxes of a scan.")
    smallest_side: int = Field(8, ge=1, description="Shortest side of a box in voxels.")
    largest_side: float = Field(0.625, gt=0, le=1, description="Longest side of a box over the view's, per axis.")
    dice_weight: float = Field(0.5, ge=0, description="Weight of the Dice loss.")
    ce_weight: float = Field(0.5, ge=0, description="Weight of the cross-entropy.")
    dice_smooth: float = Field(1e-5, gt=0, description="Added above and below in Dice, in voxels.")

    @field_validator("boxes")
    @classmethod
    def _is_range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1] <= MOST_BOXES:
            raise ValueError(f"two numbers: 1 <= fewest <= most <= {MOST_BOXES}")
        return value


class VolumeFusion(Method):
    """Volume fusion (arXiv 2306.16925).

    Two crops of a scan are mixed: in random boxes the first counts k / K, elsewhere nothing, and encoder and decoder
    classify k for every voxel. Both crops come from one scan, as in the authors' later code, so that what is made of a
    scan does not depend on its batch mates; each crop is the foreground once and the background of another once. A
    voxel counts where every crop that went into it was measured.

    Args:
        settings: boxes and losses.
    """

    Settings: ClassVar[type[BaseSettings]] = VolumeFusionSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset()

    def __init__(self, settings: VolumeFusionSettings) -> None:
        super().__init__(settings)
        self.settings: VolumeFusionSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser: the paper's for a CNN, OpenMind's for a transformer."""
        if kind == "transformer":
            return OPENMIND_TRANSFORMER
        return OptimizerDefaults(
            optimizer="adamw",
            lr=1e-3,
            lr_reference_batch=4,
            lr_rule="fixed",
            weight_decay=1e-5,
            weight_decay_end=1e-5,
            clip_norm=12.0,
            warmup_share=0.0,
            min_lr_share=1 / 32,  # halved five times
            schedule="cosine",
            source="arXiv 2306.16925; clipping arXiv 2412.17041",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: a scan gives one view, and there is nothing to mix it with.
        """
        if run.views.global_count < 2:
            raise UsageError(
                "Volume fusion mixes two views of a scan.",
                got=f"views.global_count={run.views.global_count}",
                expected="at least 2",
                do="Leave views.global_count out, or set it to 2 or more.",
            )
        self.encoder = encoder
        self.plan = ViewPlan((global_group(run.views, run.input),))
        check_views(self.plan, encoder)
        self.decoder = voxel_decoder(encoder, self.settings.shares + 1)

    def views(self) -> ViewPlan:
        """Global views only."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        wanted, losses = self.settings, []
        for index in range(len(views.groups["global"])):
            fused, classes, counted = self.fused(views, index)
            out = self.encoder(fused)
            logits = self.decoder(out, fused)
            dice, entropy = dice_and_entropy(logits, classes, counted, wanted.dice_smooth)
            losses.append((wanted.dice_weight * dice + wanted.ce_weight * entropy).mean())
        with torch.no_grad():
            number = counted.sum().clamp(min=1)
            right = (logits.argmax(1, keepdim=True) == classes) & counted
            sizes = torch.stack([((classes == k) & counted).sum() for k in range(wanted.shares + 1)])
            logs = {
                "soft_dice": 1.0 - dice.mean(),
                "accuracy": right.sum() / number,
                "largest_class": sizes.max() / number,
                "stored_share": counted.float().mean(),
                "feature_std": unit_spread(out.features),
            }
        return StepResult(torch.stack(losses).mean(), logs)

    @torch.no_grad()
    def fused(self, views: Views, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """One view mixed into the next, the last into the first.

        Args:
            views: at least two global views.
            index: which view is the foreground.

        Returns:
            The mixture (B, C, D, H, W), its classes int64 (B, 1, D, H, W), and bool (B, 1, D, H, W) where they count.
        """
        wanted, members = self.settings, views.groups["global"]
        behind = (index + 1) % len(members)
        foreground, background = members[index], members[behind]
        d, h, w = foreground.shape[2:]
        drawn = [
            draw_fusion(
                generator,
                (d, h, w),
                shares=wanted.shares,
                count=wanted.boxes,
                smallest=wanted.smallest_side,
                largest=wanted.largest_side,
            )
            for generator in views.generators(f"fusion{index}")
        ]
        classes = torch.stack([class_map(boxes, (d, h, w), foreground.device)[None] for boxes in drawn])
        # Where one crop alone is seen, the other's holes do not matter.
        counted = (views.valid("global", index) | (classes == 0)) & (
            views.valid("global", behind) | (classes == wanted.shares)
        )
        return fuse(foreground, background, classes, wanted.shares), classes, counted

    def encoder_to_export(self) -> Encoder:
        """The trained encoder, without the decoder."""
        return self.encoder
