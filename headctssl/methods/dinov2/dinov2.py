"""Dinov2: a student matches a teacher on whole scans and on the tokens that only the teacher sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, view_plan
from headctssl.methods.dino.dino_loss import cross_view_loss, entropy, koleo
from headctssl.methods.dino.schedules import frozen_steps, teacher_momentum, teacher_temperature
from headctssl.methods.dino.settings import DinoSettings
from headctssl.methods.dinov2.dinov2_loss import block_mask, masked_token_loss
from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.methods.gather import gather_samples
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.multi_view import encode_views
from headctssl.methods.spread import embedding_signs, unit_spread
from headctssl.methods.teacher_targets import TargetRule, TeacherTargets
from headctssl.methods.token_share import used_tokens
from headctssl.networks.encoder import Encoder
from headctssl.networks.heads import DinoHead
from headctssl.networks.tokens import grid_of
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, EncoderOutput, StepResult, Views

__all__ = ["Dinov2", "Dinov2Settings"]


class Dinov2Settings(DinoSettings):
    """Defaults of arXiv 2304.07193; `resolve` adapts them to small data and batches."""

    teacher_temperature: float = Field(0.07, gt=0, description="Divides the teacher's cosines after its warm-up.")
    teacher_warmup_share: float = Field(
        0.3, ge=0, le=1, description="Share of all steps in which the teacher's temperature rises (30 of 100 epochs)."
    )
    targets: TargetRule = Field(
        "sinkhorn", description="How the teacher's outputs are kept apart: a running centre, or Sinkhorn-Knopp."
    )
    koleo_weight: float = Field(
        0.1, ge=0, description="Weight of the KoLeo term, which pushes the scans of a batch apart."
    )
    teacher_momentum: float = Field(0.992, ge=0, le=1, description="Share of the teacher that stays at the first step.")
    patch_weight: float = Field(1.0, ge=0, description="Weight of the loss of the masked tokens.")
    mask_ratio: tuple[float, float] = Field(
        (0.1, 0.5), description="Least and largest share of tokens hidden from the student in a masked view."
    )


@dataclass
class _Masked:
    """The tokens that the student does not see."""

    mask: Tensor  # (V * B, d, h, w) bool, view by view
    share: Tensor  # scalar, masked tokens over encoded ones
    places: Tensor  # (M,) int64, row of each masked token among all encoded ones
    weights: Tensor  # (M,) float32, 1 / (masked tokens of its view * masked views)


class Dinov2(Method):
    """DINOv2 (arXiv 2304.07193): DINO on whole scans, iBOT on masked tokens, KoLeo, and Sinkhorn-Knopp.

    Of the global views of a scan every second one is shown to the student with blocks of tokens masked, and the
    student must say about them what the teacher, who sees them, says. Class and patch heads are separate. Targets
    and KoLeo are taken over the global batch.

    Args:
        settings: temperatures, momenta, weights, sizes of the heads.
    """

    Settings: ClassVar[type[BaseSettings]] = Dinov2Settings
    requires: ClassVar[frozenset[Requirement]] = frozenset({"mask"})
    batch_coupled: ClassVar[bool] = True

    def __init__(self, settings: Dinov2Settings) -> None:
        super().__init__(settings)
        self.settings: Dinov2Settings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser; transformers only."""
        del kind
        return OptimizerDefaults(
            optimizer="adamw",
            lr=4e-3,
            lr_reference_batch=1024,
            lr_rule="sqrt",
            weight_decay=0.04,
            weight_decay_end=0.4,
            clip_norm=3.0,
            warmup_share=0.1,
            min_lr_share=2.5e-4,
            schedule="cosine",
            betas=(0.9, 0.999),
            source="arXiv 2304.07193 and its public configuration",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`. The encoder must have its initial weights already: the teacher copies them here.

        Raises:
            UsageError: there is no global view or no pair of different views, or the views do not fit the encoder.
        """
        if run.views.global_count < 1 or run.views.global_count + run.views.local_count < 2:
            raise UsageError(
                "DINOv2 has nothing to compare.",
                got=f"global_count {run.views.global_count}, local_count {run.views.local_count}",
                expected="at least two views per scan, one of them global",
                do="Set views.global_count=2.",
            )
        s = self.settings
        self.plan = replace(view_plan(run.views, run.input), tissue=s.token_share < 1.0)
        check_views(self.plan, encoder)
        encoder.add_mask_token()
        self.encoder = encoder
        self.head = DinoHead(encoder.embed_dim, s.prototypes, s.head_hidden, s.head_bottleneck)
        self.patch_head = DinoHead(encoder.embed_dim, s.prototypes, s.head_hidden, s.head_bottleneck)
        self.teacher_encoder = make_teacher(encoder)
        self.teacher_head = make_teacher(self.head)
        self.teacher_patch_head = make_teacher(self.patch_head)
        self.targets = TeacherTargets(
            s.targets, s.prototypes, s.head_bottleneck, center_momentum=s.center_momentum, queue=s.queue
        )
        # Masked tokens are many more than scans: they need no queue.
        self.patch_targets = TeacherTargets(
            s.targets, s.prototypes, s.head_bottleneck, center_momentum=s.center_momentum
        )

    def train(self, mode: bool = True) -> Dinov2:
        """Set the mode of the student; the teacher never leaves eval mode."""
        super().train(mode)
        for name in ("teacher_encoder", "teacher_head", "teacher_patch_head"):
            if name in self._modules:
                getattr(self, name).eval()
        return self

    def views(self) -> ViewPlan:
        """Global views, and local ones where the settings of the run ask for them."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        s = self.settings
        batch, global_views = views.batch_size, views.groups["global"]
        temperature = teacher_temperature(s, clock)
        together = torch.cat(global_views)
        patch = self.encoder.token_size
        used = [tokens for tokens in used_tokens(views, "global", patch, s.token_share) if tokens is not None]
        keep = torch.cat(used) if used else None
        masked = self._draw(views, grid_of(together.shape[2:], patch), keep)
        with torch.no_grad():
            teacher: EncoderOutput = self.teacher_encoder(together, keep=keep)
            scan_unit = self.teacher_head.project(teacher.features)
            probabilities = self.targets(scan_unit, self.teacher_head.unit_prototypes(), temperature, clock)
            unit = self.teacher_patch_head.project(teacher.tokens.flatten(0, 1)[masked.places])
            hidden = self.patch_targets(unit, self.teacher_patch_head.unit_prototypes(), temperature, clock)

        student: EncoderOutput = self.encoder(together, mask=masked.mask, keep=keep)
        features = [
            *student.features.chunk(len(global_views)),
            *encode_views(
                self.encoder, views.groups.get("local", ()), used_tokens(views, "local", patch, s.token_share)
            ),
        ]
        logits = torch.split(self.head(torch.cat(features)), batch)
        scans = cross_view_loss(torch.split(probabilities, batch), logits, s.student_temperature)
        patch_logits = self.patch_head(student.tokens.flatten(0, 1)[masked.places])
        tokens = masked_token_loss(hidden, patch_logits, masked.weights, s.student_temperature)
        spread = torch.stack([koleo(gather_samples(f.float())) for f in features[: len(global_views)]]).sum()
        loss = scans + s.patch_weight * tokens + s.koleo_weight * spread

        with torch.no_grad():
            uncertainty = entropy(probabilities)
            used = probabilities.new_zeros(s.prototypes).index_fill_(0, probabilities.argmax(-1), 1.0).sum()
            logs = {
                "scan_loss": scans.detach(),
                "patch_loss": tokens.detach(),
                "koleo": spread.detach(),
                "teacher_entropy": uncertainty,
                "kl": scans.detach() - uncertainty,
                "patch_kl": tokens.detach() - entropy(hidden),
                "feature_std": unit_spread(teacher.features),
                **embedding_signs(scan_unit),
                "prototype_usage": used / min(s.prototypes, probabilities.shape[0]),
                "prototype_entropy": entropy(probabilities.mean(0, keepdim=True)) / math.log(s.prototypes),
                "masked_share": masked.share,
                "teacher_temperature": temperature,
                "teacher_momentum": teacher_momentum(s, clock),
            }
        return StepResult(loss, logs)

    def before_optimizer_step(self, clock: Clock) -> None:
        """Hold the prototypes still at the start: no gradient, so neither a step nor decay."""
        if clock.step < frozen_steps(self.settings, clock):
            self.head.prototypes.grad = None
            self.patch_head.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the teacher and what keeps its outputs apart."""
        momentum = teacher_momentum(self.settings, clock)
        update_teacher(self.teacher_encoder, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)
        update_teacher(self.teacher_patch_head, self.patch_head, momentum)
        self.targets.after_step(clock)
        self.patch_targets.after_step(clock)

    def encoder_to_export(self) -> Encoder:
        """The teacher."""
        return self.teacher_encoder

    def _draw(self, views: Views, grid: tuple[int, int, int], keep: Tensor | None) -> _Masked:
        """Draw the masks of the student's global views.

        Views are masked in turn, beginning with the first or the second by the parity of the sample, so that half of
        all views are masked as published whatever the batch, and every scan has a masked view when it has two.
        """
        low, high = self.settings.mask_ratio
        total = grid[0] * grid[1] * grid[2]
        encoded = None if keep is None else keep.cpu()
        masks: list[Tensor] = []
        for view in range(len(views.groups["global"])):
            generators = views.generators(f"mask{view}")
            for sample, generator in zip(views.sample_index.tolist(), generators, strict=True):
                wanted = min(total, max(1, round(generator.uniform(low, high) * total)))
                count = wanted if (sample + view) % 2 == 0 or len(views.groups["global"]) == 1 else 0
                mask = torch.from_numpy(block_mask(grid, count, generator))
                if encoded is not None and count:
                    # A mask that fell on tokens left out would leave the view without one.
                    row = encoded[len(masks)]
                    if not mask.view(-1)[row].any():
                        mask.view(-1)[row[int(generator.integers(len(row)))]] = True
                masks.append(mask)
        mask_VB = torch.stack(masks)
        shown = mask_VB.flatten(1) if encoded is None else mask_VB.flatten(1).gather(1, encoded)
        number = shown.sum(1).float()
        per_view = torch.where(number > 0, 1.0 / number.clamp(min=1.0), 0.0) / (number > 0).sum()
        weights = per_view[:, None].expand_as(shown)[shown]
        places = shown.flatten().nonzero()[:, 0]
        device = views.groups["global"][0].device
        return _Masked(mask_VB.to(device), shown.float().mean().to(device), places.to(device), weights.to(device))
