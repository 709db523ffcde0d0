"""Teacher targets: what a teacher's outputs become before a student matches them, by centring or Sinkhorn-Knopp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from headctssl.methods.dino.dino_loss import sinkhorn, teacher_probabilities
from headctssl.methods.gather import gather_ragged
from headctssl.types import Clock

__all__ = ["TargetRule", "TeacherTargets"]

# Legend: B rows of this process, K prototypes, C channels of the bottleneck.

TargetRule = Literal["centring", "sinkhorn"]


@dataclass
class _Seen:
    """What the teacher said in the passes of one optimiser step so far, on this process."""

    step: int
    total: Tensor  # (K,) sum of the teacher's outputs
    count: Tensor  # () number of outputs


class TeacherTargets(nn.Module):
    """Turns a teacher's cosines into probabilities that cannot all fall on one prototype.

    Centring (arXiv 2104.14294, section 3.1) subtracts a running mean of the outputs; Sinkhorn-Knopp (arXiv
    2006.09882) shares the rows of the global batch out evenly over the prototypes. With fewer rows than prototypes an
    even share means nothing, so rows of earlier steps can be kept in a queue and take part (arXiv 2006.09882,
    section 3.1); they are kept in the bottleneck, before the prototypes, which move.

    Args:
        rule: which of the two.
        prototypes: K.
        bottleneck: C.
        center_momentum: centring: share of the centre that stays at a step.
        queue: Sinkhorn-Knopp: rows of earlier steps that are kept; 0 = none.
    """

    def __init__(
        self, rule: TargetRule, prototypes: int, bottleneck: int, *, center_momentum: float = 0.9, queue: int = 0
    ) -> None:
        super().__init__()
        self.rule, self.center_momentum = rule, center_momentum
        self.center: Tensor
        self.queue: Tensor
        self.queued: Tensor
        if rule == "centring":
            self.register_buffer("center", torch.zeros(prototypes))
        else:
            self.register_buffer("queue", torch.zeros(queue, bottleneck))
            self.register_buffer("queued", torch.zeros((), dtype=torch.int64))  # rows of the queue that are filled
        self._seen: _Seen | None = None
        self._new: Tensor | None = None  # rows to be queued by `after_step`

    @torch.no_grad()
    def forward(self, unit_BC: Tensor, prototypes_KC: Tensor, temperature: float, clock: Clock) -> Tensor:
        """The targets of the rows of this process, float32 (B, K).

        Args:
            unit_BC: the teacher's outputs before its prototypes, of length 1; B may differ between processes.
            prototypes_KC: the teacher's prototypes, of length 1.
            temperature: of the teacher.
            clock: where the run stands.
        """
        with torch.autocast(unit_BC.device.type, enabled=False):
            if self.rule == "centring":
                logits = functional.linear(unit_BC, prototypes_KC)
                self._remember(logits, clock)
                return teacher_probabilities(logits, self.center, temperature)
            everyone, first = gather_ragged(unit_BC)
            self._new = everyone
            rows = torch.cat([everyone, self.queue[: int(self.queued)]]) if self.queue.shape[0] else everyone
            targets = sinkhorn(functional.linear(rows, prototypes_KC), temperature)
            return targets[first : first + unit_BC.shape[0]]

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the centre, or put the rows of the step into the queue."""
        if self.rule == "sinkhorn":
            if self._new is not None and self.queue.shape[0]:
                kept = torch.cat([self._new, self.queue[: int(self.queued)]])[: self.queue.shape[0]]
                self.queue[: kept.shape[0]] = kept
                self.queued.fill_(kept.shape[0])
            self._new = None
            return
        assert self._seen is not None, "after_step follows forward"
        total, count = self._seen.total, self._seen.count
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            dist.all_reduce(count)
        mean = total / count.clamp(min=1.0)
        # A centre that starts at 0 lags behind for as long as it averages, and a run of few steps collapses onto one
        # prototype meanwhile: the first steps take the plain mean of what was seen (bias correction as in Adam).
        share = max(1.0 - self.center_momentum, 1.0 / (clock.step + 1))
        self.center.lerp_(mean, share * (count > 0))
        self._seen = None

    def _remember(self, logits_BK: Tensor, clock: Clock) -> None:
        """Sum the teacher's outputs over the passes of a step; what a skipped step left behind is forgotten."""
        if self._seen is None or self._seen.step != clock.step:
            zero = torch.zeros_like(self.center)
            self._seen = _Seen(clock.step, zero, zero.new_zeros(()))
        self._seen.total += logits_BK.float().sum(0)
        self._seen.count += logits_BK.shape[0]
