"""Dino: a student learns to say about one view of a scan what a slower teacher says about another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, view_plan
from headctssl.methods.dino.dino_loss import cross_view_loss, entropy, teacher_probabilities
from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.multi_view import encode_views
from headctssl.methods.ramps import cosine_ramp, linear_ramp
from headctssl.networks.encoder import Encoder
from headctssl.networks.heads import DinoHead
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Dino", "DinoSettings"]


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
    center_momentum: float = Field(0.9, ge=0, lt=1, description="Share of the centre that stays at a step.")
    teacher_momentum: float = Field(0.994, ge=0, le=1, description="Share of the teacher that stays at the first step.")
    teacher_momentum_end: float = Field(
        1.0, ge=0, le=1, description="Share of the teacher that stays at the last step, reached by a cosine."
    )
    freeze_last_layer_epochs: float = Field(
        1.0, ge=0, description="Epochs during which the prototypes stand still, never more than a tenth of all steps."
    )


@dataclass
class _Seen:
    """What the teacher said in the passes of one optimiser step so far, on this process."""

    step: int
    total: Tensor  # (K,) sum of the teacher's outputs
    count: Tensor  # () number of outputs


class Dino(Method):
    """Self-distillation with no labels (arXiv 2104.14294), with centring.

    The teacher sees the global views, the student all views; each teacher view is matched with every other view of
    the student. The centre follows the mean of the teacher's outputs over the global batch.

    Args:
        settings: temperatures, momenta, sizes of the head.
    """

    Settings: ClassVar[type[BaseSettings]] = DinoSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset()

    def __init__(self, settings: DinoSettings) -> None:
        super().__init__(settings)
        self.settings: DinoSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser for one kind of encoder."""
        # For a CNN there is no published DINO recipe in 3D. Rate and decay are those with which ConvNeXt, a CNN, was
        # trained by AdamW: 4e-3 at batch 4096 and .05 (arXiv 2201.03545, appendix A.1); the rest stays DINO's.
        transformer = kind == "transformer"
        return OptimizerDefaults(
            optimizer="adamw",
            lr=5e-4 if transformer else 2.5e-4,
            lr_reference_batch=256,
            lr_rule="linear",
            weight_decay=0.04 if transformer else 0.05,
            weight_decay_end=0.4 if transformer else 0.05,
            clip_norm=3.0,
            warmup_share=0.1,
            min_lr_share=1e-3,
            schedule="cosine",
            betas=(0.9, 0.999),
            source="arXiv 2502.02779" if transformer else "arXiv 2502.02779; rate and decay arXiv 2201.03545",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`. The encoder must have its initial weights already: the teacher copies them here.

        Raises:
            UsageError: the views give no pair of different views, or do not fit the encoder.
        """
        if run.views.global_count + run.views.local_count < 2:
            raise UsageError(
                "DINO has nothing to compare.",
                got=f"global_count {run.views.global_count}, local_count {run.views.local_count}",
                expected="at least two views per scan",
                do="Set views.global_count=2.",
            )
        s = self.settings
        self.plan = view_plan(run.views, run.input)
        check_views(self.plan, encoder)
        self.encoder = encoder
        self.head = DinoHead(encoder.embed_dim, s.prototypes, s.head_hidden, s.head_bottleneck)
        self.teacher_encoder = make_teacher(encoder)
        self.teacher_head = make_teacher(self.head)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(s.prototypes))
        self._seen: _Seen | None = None

    def train(self, mode: bool = True) -> Dino:
        """Set the mode of the student; the teacher never leaves eval mode."""
        super().train(mode)
        for name in ("teacher_encoder", "teacher_head"):
            if name in self._modules:
                getattr(self, name).eval()
        return self

    def views(self) -> ViewPlan:
        """Global views, and local ones where the settings of the run ask for them."""
        return self.plan

    def teacher_temperature(self, clock: Clock) -> float:
        """The teacher's temperature at a step."""
        s = self.settings
        ramp = round(s.teacher_warmup_share * clock.total_steps)
        return linear_ramp(s.teacher_temperature_start, s.teacher_temperature, clock.step, ramp)

    def teacher_momentum(self, clock: Clock) -> float:
        """The share of the teacher that stays after a step."""
        s = self.settings
        return cosine_ramp(s.teacher_momentum, s.teacher_momentum_end, clock.step, clock.total_steps)

    def frozen_steps(self, clock: Clock) -> int:
        """Steps at the start during which the prototypes stand still."""
        # An epoch of a small dataset is 250 steps, which may be a whole short run: hence the tenth.
        return min(round(self.settings.freeze_last_layer_epochs * clock.steps_per_epoch), clock.total_steps // 10)

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        s = self.settings
        global_views = views.groups["global"]
        student_views = [*global_views, *views.groups.get("local", ())]
        temperature = self.teacher_temperature(clock)
        with torch.no_grad():
            teacher_features = encode_views(self.teacher_encoder, global_views)
            teacher_logits = self.teacher_head(torch.cat(teacher_features))
            probabilities = teacher_probabilities(teacher_logits, self.center, temperature)
            targets = torch.split(probabilities, views.batch_size)
            self._remember(teacher_logits, clock)
        student_logits = torch.split(self.head(torch.cat(encode_views(self.encoder, student_views))), views.batch_size)
        loss = cross_view_loss(targets, student_logits, s.student_temperature)
        with torch.no_grad():
            uncertainty = entropy(probabilities)
            unit = functional.normalize(torch.cat(teacher_features).float(), dim=-1)
            used = torch.zeros_like(self.center).index_fill_(0, probabilities.argmax(-1), 1.0)
            logs = {
                "teacher_entropy": uncertainty,
                "kl": loss.detach() - uncertainty,
                "center_norm": self.center.norm(),
                "feature_std": unit.std(0, unbiased=False).mean() * unit.shape[1] ** 0.5,
                "prototype_usage": used.sum() / min(used.numel(), probabilities.shape[0]),
                "teacher_temperature": temperature,
                "teacher_momentum": self.teacher_momentum(clock),
            }
        return StepResult(loss, logs)

    def before_optimizer_step(self, clock: Clock) -> None:
        """Hold the prototypes still at the start: no gradient, so neither a step nor decay."""
        if clock.step < self.frozen_steps(clock):
            self.head.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the teacher and the centre."""
        momentum = self.teacher_momentum(clock)
        update_teacher(self.teacher_encoder, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)
        assert self._seen is not None, "after_step follows training_step"
        total, count = self._seen.total, self._seen.count
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            dist.all_reduce(count)
        mean = total / count.clamp(min=1.0)
        # A centre that starts at 0 lags behind for as long as it averages, and a run of few steps collapses onto one
        # prototype meanwhile: the first steps take the plain mean of what was seen (bias correction as in Adam).
        share = max(1.0 - self.settings.center_momentum, 1.0 / (clock.step + 1))
        self.center.lerp_(mean, share * (count > 0))
        self._seen = None

    def encoder_to_export(self) -> Encoder:
        """The teacher, an average over steps that is better than the student (arXiv 2104.14294, figure 6)."""
        return self.teacher_encoder

    def _remember(self, logits_BK: Tensor, clock: Clock) -> None:
        """Sum the teacher's outputs over the passes of a step; what a skipped step left behind is forgotten."""
        if self._seen is None or self._seen.step != clock.step:
            zero = torch.zeros_like(self.center)
            self._seen = _Seen(clock.step, zero, zero.new_zeros(()))
        self._seen.total += logits_BK.float().sum(0)
        self._seen.count += logits_BK.shape[0]
