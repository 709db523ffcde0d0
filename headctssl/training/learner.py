"""Learner: what the loop asks of a method or task, and of what keeps state beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from headctssl.loading.views import ViewPlan
from headctssl.methods.method import ParamGroup
from headctssl.types import Clock, PretrainBatch, StepResult, Views

__all__ = ["Learner", "Stateful", "Watcher"]


class Learner(Protocol):
    """What the loop needs of a method or task, which is also an nn.Module."""

    def views(self) -> ViewPlan: ...  # noqa: D102
    def training_step(self, views: Views, clock: Clock) -> StepResult: ...  # noqa: D102
    def before_optimizer_step(self, clock: Clock) -> None: ...  # noqa: D102
    def after_step(self, clock: Clock) -> None: ...  # noqa: D102
    def param_groups(self) -> list[ParamGroup]: ...  # noqa: D102


class Stateful(Protocol):
    """Something beside the learner whose state a resume must restore (plain values and tensors)."""

    def state_dict(self) -> Mapping[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...  # noqa: D102


class Watcher(Protocol):
    """What watches a run: see `training.monitor.Monitor`."""

    def due(self, step: int) -> bool: ...  # noqa: D102
    def first(self) -> Mapping[str, float]: ...  # noqa: D102
    def look(self, step: int, batch: PretrainBatch, norm: Tensor) -> Mapping[str, float]: ...  # noqa: D102
    def judge(self, line: Mapping[str, float | int | None], *, look: bool) -> None: ...  # noqa: D102
