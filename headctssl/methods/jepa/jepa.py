"""Jepa: a student sees a small part of a scan, and a predictor says what the teacher makes of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.methods.jepa.jepa_loss import normalised_targets, predicted_token_loss
from headctssl.methods.jepa.jepa_masks import split_tokens
from headctssl.methods.masked import check_blocks
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.ramps import linear_ramp
from headctssl.methods.spread import unit_spread
from headctssl.networks.decoders import TokenDecoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_of
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Jepa", "JepaSettings"]


class JepaSettings(BaseSettings):
    """Defaults are Vol-JEPA's for CT (arXiv 2511.18640)."""

    token_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of a view's tokens that are used, those with tissue before those of air: published as a"
        " tenth of the foreground dropped.",
    )
    context_share: float = Field(0.2, gt=0, lt=1, description="Share of the used tokens that the student sees.")
    block_area: float = Field(
        0.75, gt=0, lt=1, description="Area of the predicted block, which has full depth, over that of the foreground."
    )
    block_aspect: tuple[float, float] = Field(
        (0.3, 3.0), description="Smallest and largest ratio of the block's height to its width."
    )
    token_tissue: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a token's voxels that must be above -500 HU for foreground; 0 = any voxel. The published"
        " code asks for 1, which leaves out tokens at the edge of the head, and with them much of the skull.",
    )
    predictor_width: int = Field(768, ge=8, description="Width of the predictor.")
    predictor_depth: int = Field(12, ge=1, description="Blocks of the predictor.")
    predictor_heads: int = Field(12, ge=1, description="Attention heads of the predictor.")
    predictor_mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of the predictor's MLP over its width.")
    teacher_momentum: float = Field(0.994, ge=0, le=1, description="Share of the teacher that stays at the first step.")
    teacher_momentum_end: float = Field(
        1.0, ge=0, le=1, description="Share of the teacher that stays at the last step, reached in a straight line."
    )

    @field_validator("block_aspect")
    @classmethod
    def _is_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("two ratios: 0 < smallest <= largest")
        return value


@dataclass
class _Split:
    """The tokens of one view."""

    context: Tensor  # (B, K) int64, what the student sees
    targets: Tensor  # (B, M) int64, what is predicted
    counts: Tensor  # (B, M) float32, 1 where a target holds tissue
    context_tissue: Tensor  # scalar, share of the context that holds tissue


class Jepa(Method):
    """Vol-JEPA (arXiv 2511.18640), the I-JEPA (arXiv 2301.08243) of volumes.

    The student encodes the context alone; the teacher, its moving average, all used tokens. A transformer of the
    kind of MAE's decoder takes the encoded context and a trainable token at each place to predict, and is to say
    there what the teacher says, normalised over its channels. Air is neither context nor target while there is
    enough tissue, and never counts. No sample of the batch looks at another one.

    Args:
        settings: masks, predictor, momentum.
    """

    Settings: ClassVar[type[BaseSettings]] = JepaSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset({"keep"})

    def __init__(self, settings: JepaSettings) -> None:
        super().__init__(settings)
        self.settings: JepaSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser; transformers only."""
        del kind
        return OptimizerDefaults(
            optimizer="adamw",
            lr=3.75e-4,
            # I-JEPA's 1e-3 at 2,048 is 3.75e-4 at 768; with AdamW the rate of smaller batches follows the square root.
            lr_reference_batch=768,
            lr_rule="sqrt",
            weight_decay=0.05,
            weight_decay_end=0.05,
            clip_norm=1.0,
            warmup_share=0.1,
            min_lr_share=1e-6 / 3.75e-4,
            schedule="cosine",
            betas=(0.9, 0.999),
            source="arXiv 2511.18640 and its public code; batch from arXiv 2301.08243; square root arXiv 2205.10287",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`. The encoder must have its initial weights already: the teacher copies them here.

        Raises:
            UsageError: the views do not fit the encoder, or give a single token.
        """
        s = self.settings
        self.plan = ViewPlan((global_group(run.views, run.input),), tissue=True)
        check_views(self.plan, encoder)
        check_blocks(run.input.shape, encoder.token_size, "encoder.patch")
        self.encoder = encoder
        self.teacher_encoder = make_teacher(encoder)
        self.predictor = TokenDecoder(
            encoder.embed_dim,
            encoder.embed_dim,
            grid_of(run.input.shape, encoder.token_size),
            width=s.predictor_width,
            depth=s.predictor_depth,
            heads=s.predictor_heads,
            mlp_ratio=s.predictor_mlp_ratio,
        )

    def train(self, mode: bool = True) -> Jepa:
        """Set the mode of the student; the teacher never leaves eval mode."""
        super().train(mode)
        if "teacher_encoder" in self._modules:
            self.teacher_encoder.eval()
        return self

    def views(self) -> ViewPlan:
        """Global views only; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        losses = []
        for index, volume in enumerate(views.groups["global"]):
            split = self._draw(views, index)
            with torch.no_grad():
                seen = self.teacher_encoder(volume, keep=torch.cat([split.context, split.targets], dim=1))
                targets = normalised_targets(seen.tokens[:, split.context.shape[1] :])
            out = self.encoder(volume, keep=split.context)
            prediction = self.predictor(out.tokens, out.cls, split.context, split.targets)
            losses.append(predicted_token_loss(prediction, targets, split.counts))
        with torch.no_grad():
            weights = split.counts[..., None] / split.counts.sum().clamp(min=1.0)
            mean = (targets * weights).sum((0, 1))
            spread = ((targets - mean).square() * weights).sum((0, 1)).mean().sqrt()
            guess = predicted_token_loss(mean.expand_as(targets), targets, split.counts)
            logs = {
                "relative_error": losses[-1].detach() / guess.clamp(min=1e-12),
                "target_std": spread,
                "feature_std": unit_spread(seen.features),
                "context_tissue": split.context_tissue,
                "target_tissue": split.counts.mean(),
                "teacher_momentum": self._momentum(clock),
            }
        return StepResult(torch.stack(losses).mean(), logs)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the teacher."""
        update_teacher(self.teacher_encoder, self.encoder, self._momentum(clock))

    def encoder_to_export(self) -> Encoder:
        """The teacher, as I-JEPA's."""
        return self.teacher_encoder

    def _momentum(self, clock: Clock) -> float:
        s = self.settings
        return linear_ramp(s.teacher_momentum, s.teacher_momentum_end, clock.step, clock.total_steps - 1)

    def _draw(self, views: Views, index: int) -> _Split:
        """Context and targets of one global view, on its device."""
        s, volume = self.settings, views.groups["global"][index]
        patch = self.encoder.token_size
        grid = grid_of(volume.shape[2:], patch)
        measured = views.tissue["global"][index] & views.valid("global", index)
        share = functional.avg_pool3d(measured.float(), patch)[:, 0]
        tissue = ((share > 0) & (share >= s.token_tissue)).cpu().numpy()
        used = max(2, round(s.token_share * tissue[0].size))
        number = min(max(round(s.context_share * used), 1), used - 1)
        context, targets, counts, seen = [], [], [], []
        for row, generator in enumerate(views.generators(f"jepa{index}")):
            one, other = split_tokens(
                tissue[row], generator, used=used, context=number, area=s.block_area, aspect=s.block_aspect
            )
            context.append(one)
            targets.append(other)
            counts.append(tissue[row].ravel()[other])
            seen.append(tissue[row].ravel()[one].mean())
        assert tissue.shape[1:] == grid, "pooled to the grid of tokens"
        device = volume.device
        return _Split(
            torch.from_numpy(np.stack(context)).to(device),
            torch.from_numpy(np.stack(targets)).to(device),
            torch.from_numpy(np.stack(counts).astype(np.float32)).to(device),
            torch.tensor(float(np.mean(seen)), device=device),
        )
