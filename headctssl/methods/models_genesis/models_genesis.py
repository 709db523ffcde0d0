"""Models Genesis: a scan is shuffled, remapped and painted over, and encoder and decoder restore it."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.boxes import MOST_BOXES
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.models_genesis.intensity import apply_tables, draw_curve, window_tables
from headctssl.methods.models_genesis.models_genesis_loss import voxel_error
from headctssl.methods.models_genesis.painting import draw_painting, paint
from headctssl.methods.models_genesis.shuffling import draw_shuffle, shuffle_voxels
from headctssl.methods.optimizers import OPENMIND_TRANSFORMER
from headctssl.methods.spread import unit_spread
from headctssl.networks.decoders import voxel_decoder
from headctssl.networks.encoder import Encoder
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["ModelsGenesis", "ModelsGenesisSettings"]

Range = tuple[float, float]


class ModelsGenesisSettings(BaseSettings):
    """Defaults are those of the published code (arXiv 1908.06912)."""

    shuffle_probability: float = Field(0.5, ge=0, le=1, description="Chance that a view is shuffled.")
    shuffle_windows: int = Field(10_000, ge=1, le=1_000_000, description="Windows in which voxels change places.")
    shuffle_side: float = Field(0.1, gt=0, le=1, description="Longest side of such a window over the view's.")
    intensity_probability: float = Field(0.9, ge=0, le=1, description="Chance that intensities are remapped.")
    invert_probability: float = Field(
        0.5, ge=0, le=1, description="Chance that a remapping makes bright dark; 0 where windows do not nest."
    )
    paint_probability: float = Field(0.9, ge=0, le=1, description="Chance that a view is painted over.")
    inpaint_share: float = Field(0.2, ge=0, le=1, description="Share of painted views with boxes of noise.")
    paint_boxes: int = Field(5, ge=1, le=MOST_BOXES, description="Largest number of boxes.")
    paint_another: float = Field(0.95, ge=0, le=1, description="Chance of one more box while there are fewer.")
    inpaint_side: Range = Field((1 / 6, 1 / 3), description="Side of a box of noise over the view's, per axis.")
    outpaint_side: Range = Field((3 / 7, 4 / 7), description="Side of a box left as it is over the view's, per axis.")

    @field_validator("inpaint_side", "outpaint_side")
    @classmethod
    def _is_share(cls, value: Range) -> Range:
        low, high = value
        if not 0 < low <= high <= 1:
            raise ValueError("two shares of the view's side: 0 < smallest <= largest <= 1")
        return value


class ModelsGenesis(Method):
    """Models Genesis (arXiv 1908.06912).

    A view is corrupted by local shuffling, a random curve of its intensities, and painting over; the encoder and the
    published decoder of its family restore the view as it was. The output passes a sigmoid, as published. All voxels
    that were measured count, corrupted or not. Each scan is corrupted by its own generator.

    Args:
        settings: how likely and how strong each corruption is.
    """

    Settings: ClassVar[type[BaseSettings]] = ModelsGenesisSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset()

    def __init__(self, settings: ModelsGenesisSettings) -> None:
        super().__init__(settings)
        self.settings: ModelsGenesisSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser: the published one for a CNN with a decay in place of its patience, OpenMind's otherwise.

        A rate of 1 is right behind a sigmoid, where gradients are small: beside OpenMind's 0.01 with momentum .99 it
        left a fifth to a quarter less error after 80 to 120 steps on small residual encoders and U-Nets (measured).
        """
        if kind == "transformer":
            return OPENMIND_TRANSFORMER
        return OptimizerDefaults(
            optimizer="sgd",
            lr=1.0,
            lr_reference_batch=6,
            lr_rule="fixed",
            weight_decay=0.0,
            weight_decay_end=0.0,
            clip_norm=12.0,
            warmup_share=0.0,
            min_lr_share=0.0,
            schedule="poly",
            momentum=0.9,
            source="arXiv 1908.06912 and its public code; clipping and decay arXiv 2412.17041",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`."""
        self.encoder = encoder
        self.plan = ViewPlan((global_group(run.views, run.input),))
        check_views(self.plan, encoder)
        self.windows = run.input.windows
        self.decoder = voxel_decoder(encoder, len(self.windows))

    def views(self) -> ViewPlan:
        """Global views only; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        losses = []
        for index, volume in enumerate(views.groups["global"]):
            corrupted = self.corrupt(volume, views.generators("corrupt" if index == 0 else f"corrupt{index}"))
            out = self.encoder(corrupted)
            restored = self.decoder(out, corrupted).float().sigmoid()
            counted = views.valid("global", index)
            losses.append(voxel_error(restored, volume, counted))
        with torch.no_grad():
            mean = (volume * counted).sum() / (counted.sum() * volume.shape[1]).clamp(min=1)
            guess = voxel_error(mean.expand_as(volume), volume, counted)
            logs = {
                "relative_error": losses[-1].detach() / guess.clamp(min=1e-12),
                "error_before": voxel_error(corrupted, volume, counted) / guess.clamp(min=1e-12),
                "stored_share": counted.float().mean(),
                "feature_std": unit_spread(out.features),
            }
        return StepResult(torch.stack(losses).mean(), logs)

    @torch.no_grad()
    def corrupt(self, volume: Tensor, generators: list[np.random.Generator]) -> Tensor:
        """Corrupt each sample with its own generator.

        Args:
            volume: (B, C, D, H, W) in [0, 1]; not changed.
            generators: one per sample.

        Returns:
            float32 (B, C, D, H, W) in [0, 1].
        """
        return torch.stack([self._corrupt_one(v, g) for v, g in zip(volume, generators, strict=True)])

    def _corrupt_one(self, volume: Tensor, generator: np.random.Generator) -> Tensor:
        """Shuffling, then intensities, then painting, as the published code does."""
        wanted = self.settings
        shuffled, remapped, painted, inside = generator.random(4)
        _, d, h, w = volume.shape
        if shuffled < wanted.shuffle_probability:
            drawn = draw_shuffle(generator, (d, h, w), wanted.shuffle_windows, wanted.shuffle_side)
            volume = shuffle_voxels(volume, drawn)
        if remapped < wanted.intensity_probability:
            curve = draw_curve(generator, self.windows, wanted.invert_probability)
            volume = apply_tables(volume, window_tables(curve, self.windows))
        if painted < wanted.paint_probability:
            outside = bool(inside >= wanted.inpaint_share)
            painting = draw_painting(
                generator,
                (d, h, w),
                outside=outside,
                most=wanted.paint_boxes,
                another=wanted.paint_another,
                side=wanted.outpaint_side if outside else wanted.inpaint_side,
            )
            volume = paint(volume, painting)
        return volume

    def encoder_to_export(self) -> Encoder:
        """The trained encoder, without the decoder."""
        return self.encoder
