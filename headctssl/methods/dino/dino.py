"""Dino: a student learns to say about one view of a scan what a slower teacher says about another."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, view_plan
from headctssl.methods.dino.dino_loss import cross_view_loss, entropy, koleo
from headctssl.methods.dino.schedules import frozen_steps, teacher_momentum, teacher_temperature
from headctssl.methods.dino.settings import DinoSettings
from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.methods.gather import gather_samples
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.multi_view import encode_views
from headctssl.methods.spread import embedding_signs, unit_spread
from headctssl.methods.teacher_targets import TeacherTargets
from headctssl.methods.token_share import check_token_share, used_tokens
from headctssl.networks.encoder import Encoder
from headctssl.networks.heads import DinoHead
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Dino"]


class Dino(Method):
    """Self-distillation with no labels (arXiv 2104.14294).

    The teacher sees the global views, the student all views; each teacher view is matched with every other view of
    the student. What keeps the teacher from saying the same of every scan, and the KoLeo term, follow the global batch.

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
        if run.training.accumulation > 1 and (s.targets == "sinkhorn" or s.koleo_weight > 0):
            raise UsageError(
                "Sinkhorn-Knopp and KoLeo compare the scans of a batch, so accumulation changes the loss.",
                got=f"training.accumulation={run.training.accumulation}",
                expected="1, or method.targets=centring with method.koleo_weight=0",
                do="Set training.accumulation=1 with a smaller batch, or use more processes.",
            )
        self.plan = replace(view_plan(run.views, run.input), tissue=s.token_share < 1.0)
        check_views(self.plan, encoder)
        check_token_share(encoder, s.token_share)
        self.encoder = encoder
        self.head = DinoHead(encoder.embed_dim, s.prototypes, s.head_hidden, s.head_bottleneck)
        self.teacher_encoder = make_teacher(encoder)
        self.teacher_head = make_teacher(self.head)
        self.targets = TeacherTargets(
            s.targets, s.prototypes, s.head_bottleneck, center_momentum=s.center_momentum, queue=s.queue
        )

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

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        s = self.settings
        global_views = views.groups["global"]
        student_views = [*global_views, *views.groups.get("local", ())]
        temperature = teacher_temperature(s, clock)
        patch = self.encoder.token_size
        keep = used_tokens(views, "global", patch, s.token_share)
        student_keep = [*keep, *used_tokens(views, "local", patch, s.token_share)]
        with torch.no_grad():
            teacher_features = encode_views(self.teacher_encoder, global_views, keep)
            unit = self.teacher_head.project(torch.cat(teacher_features))
            probabilities = self.targets(unit, self.teacher_head.unit_prototypes(), temperature, clock)
            targets = torch.split(probabilities, views.batch_size)
        student_features = encode_views(self.encoder, student_views, student_keep)
        student_logits = torch.split(self.head(torch.cat(student_features)), views.batch_size)
        distillation = cross_view_loss(targets, student_logits, s.student_temperature)
        loss = distillation
        if s.koleo_weight > 0:
            spread = [koleo(gather_samples(f.float())) for f in student_features[: len(global_views)]]
            loss = loss + s.koleo_weight * torch.stack(spread).sum()
        with torch.no_grad():
            uncertainty = entropy(probabilities)
            used = probabilities.new_zeros(s.prototypes).index_fill_(0, probabilities.argmax(-1), 1.0).sum()
            logs = {
                "teacher_entropy": uncertainty,
                "kl": distillation.detach() - uncertainty,
                "feature_std": unit_spread(torch.cat(teacher_features)),
                **embedding_signs(unit),
                "prototype_usage": used / min(s.prototypes, probabilities.shape[0]),
                "prototype_entropy": entropy(probabilities.mean(0, keepdim=True)) / math.log(s.prototypes),
                "teacher_temperature": temperature,
                "teacher_momentum": teacher_momentum(s, clock),
            }
        return StepResult(loss, logs)

    def before_optimizer_step(self, clock: Clock) -> None:
        """Hold the prototypes still at the start: no gradient, so neither a step nor decay."""
        if clock.step < frozen_steps(self.settings, clock):
            self.head.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the teacher and the centre."""
        momentum = teacher_momentum(self.settings, clock)
        update_teacher(self.teacher_encoder, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)
        self.targets.after_step(clock)

    def encoder_to_export(self) -> Encoder:
        """The teacher, an average over steps that is better than the student (arXiv 2104.14294, figure 6)."""
        return self.teacher_encoder
