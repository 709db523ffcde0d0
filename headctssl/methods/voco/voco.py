"""Voco: a crop is compared with the cells of a grid, and must be like each as far as it lies in it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group, local_group
from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.methods.gather import gather_samples
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.multi_view import encode_views
from headctssl.methods.spread import embedding_signs, unit_spread
from headctssl.methods.voco.voco_loss import assign, overlap_loss, overlap_shares, separation_loss
from headctssl.networks.encoder import Encoder
from headctssl.networks.projector import Projector
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.seeding import derive_seed
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Voco", "VocoSettings"]


class VocoSettings(BaseSettings):
    """Defaults of arXiv 2410.09890 and its public code."""

    grid_scale: tuple[float, float] = Field(
        (0.6, 1.0), description="Side of the whole grid over the field of view, per axis; drawn for every scan."
    )
    inter_weight: float = Field(1.0, ge=0, description="Weight of the comparison with the grid of another scan.")
    separation_weight: float = Field(1.0, ge=0, description="Weight of the term that keeps cells apart.")
    head_momentum: float = Field(0.9, ge=0, le=1, description="Share of the teacher's projector that stays at a step.")
    feature_dropout: float = Field(0.2, ge=0, lt=1, description="Share of features hidden from the student.")
    head_hidden: int = Field(1024, ge=1, description="Width of the projector's two hidden layers.")
    head_outputs: int = Field(1024, ge=2, description="Channels of the embedding.")


class Voco(Method):
    """VoCo (arXiv 2402.17300, arXiv 2410.09890): contextual positions by contrast with a grid of crops.

    A grid of base crops tiles a part of the scan in the plane. A random crop within it should be like each of them
    as far as the two overlap. In heads the place of a crop is plain from the anatomy alone, so the grid is moved and
    stretched at random: what can be learned is how regions relate, not where in an atlas they are.

    Args:
        settings: size of the grid, weights, sizes of the projector.
    """

    Settings: ClassVar[type[BaseSettings]] = VocoSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    batch_coupled: ClassVar[bool] = True

    def __init__(self, settings: VocoSettings) -> None:
        super().__init__(settings)
        self.settings: VocoSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser, the same for both kinds of encoder."""
        del kind
        return OptimizerDefaults(
            optimizer="adamw",
            lr=1e-4,
            lr_reference_batch=32,
            lr_rule="fixed",
            weight_decay=1e-3,
            weight_decay_end=1e-3,
            clip_norm=1.0,
            warmup_share=0.05,
            min_lr_share=0.0,
            schedule="cosine",
            betas=(0.9, 0.999),
            source="arXiv 2410.09890 and its public code; clipping is ours",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: there is no grid, no crop, or no other scan to compare with, or the views do not fit the
                encoder.
        """
        views, batch, grid = run.views, run.training.batch_size, run.views.base_grid
        if grid < 2 or views.local_count < 1 or (batch < 2 and self.settings.inter_weight > 0):
            raise UsageError(
                "VoCo has nothing to compare.",
                got=f"base_grid {grid}, local_count {views.local_count}, batch {batch}",
                expected="a grid of at least 2 x 2 crops, a random crop, and two scans per step",
                do="Set views.base_grid=3, views.local_count=2 and training.batch_size=2 or more; with a single scan "
                "per step also method.inter_weight=0.",
            )
        low, high = self.settings.grid_scale
        if not 0 < low <= high <= 1:
            raise UsageError(
                "The grid does not lie in the field of view.",
                got=f"method.grid_scale={[low, high]}",
                expected="two shares, 0 < smallest <= largest <= 1",
                do="Set method.grid_scale=[0.6,1.0].",
            )
        plain = local_group(views.model_copy(update={"augment_local": False}))
        base = replace(plain, name="base", count=grid**2, scale=(low, high), grid=grid, focus=())
        crop = replace(local_group(views), name="crop", scale=(low, high), grid=grid, within="base")
        self.plan = ViewPlan((base, crop))
        # What is trained on crops is used on whole heads, so both must fit.
        check_views(ViewPlan((global_group(views, run.input, 1), base, crop)), encoder)
        self.encoder = encoder
        self.projector = Projector(encoder.embed_dim, self.settings.head_hidden, self.settings.head_outputs)
        # Only the projector has a teacher: both see the features of the one encoder.
        self.teacher_projector = make_teacher(self.projector)

    def views(self) -> ViewPlan:
        """The cells of a grid, as they are, and random crops within it, augmented."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        s = self.settings
        cells = len(views.groups["base"])
        features = encode_views(self.encoder, [*views.groups["base"], *views.groups["crop"]])
        gathered_BVC = gather_samples(torch.stack(features, dim=1).float())
        shares = overlap_shares(views.boxes["crop"], views.boxes["base"]).to(gathered_BVC.device)
        shares_BRN = gather_samples(shares)
        seen = gathered_BVC * _kept(gathered_BVC, s.feature_dropout, derive_seed(views.seed, clock.step, "dropout"))
        student_BVD = _project(self.projector, seen)
        with torch.no_grad():
            # In train mode as the student: the norms of both follow the same batch.
            teacher_BVD = _project(self.teacher_projector.train(), gathered_BVC)
        (own_cells, own_crops), (their_cells, their_crops) = (
            (embeddings[:, :cells], embeddings[:, cells:]) for embeddings in (student_BVD, teacher_BVD)
        )
        predicted = assign(own_crops, their_cells)
        intra = overlap_loss(shares_BRN, predicted)
        separation = separation_loss(own_cells)
        loss = intra + s.separation_weight * separation
        logs = {"intra": intra.detach(), "separation": separation.detach()}
        if s.inter_weight > 0:
            # The next scan's grid: where it has a cell like a crop, teacher and student must agree on which.
            target = assign(their_crops, their_cells.roll(-1, 0))
            inter = overlap_loss(target, assign(own_crops, own_cells.roll(-1, 0)))
            loss = loss + s.inter_weight * inter
            logs["inter"] = inter.detach()
        with torch.no_grad():
            logs["share_error"] = (shares_BRN - predicted).abs().mean()
            logs["found"] = (predicted.argmax(-1) == shares_BRN.argmax(-1)).float().mean()
            logs["feature_std"] = unit_spread(gathered_BVC.flatten(0, 1))
            logs |= embedding_signs(teacher_BVD.flatten(0, 1))
        return StepResult(loss, logs)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the teacher's projector."""
        update_teacher(self.teacher_projector, self.projector, self.settings.head_momentum)

    def encoder_to_export(self) -> Encoder:
        """The trained encoder."""
        return self.encoder


def _project(projector: Projector, features_BVC: Tensor) -> Tensor:
    """Embeddings (B, V, D) of the views of the global batch."""
    out: Tensor = projector(features_BVC.flatten(0, 1)).unflatten(0, features_BVC.shape[:2])
    return out


def _kept(features: Tensor, dropout: float, seed: int) -> Tensor:
    """What dropout multiplies features with, a function of the seed, so the same on every process."""
    if dropout == 0:
        return torch.ones_like(features)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(features.shape, generator=generator) >= dropout
    return kept.to(features) / (1.0 - dropout)
