"""Monitor: what a pretraining run is watched by while it trains; it changes no weight and draws no number."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from headctssl.errors import TrainingError
from headctssl.loading.views import ViewPlan, global_group, make_views, whole_head_view
from headctssl.methods.method import Method
from headctssl.metrics.representation import (
    alignment,
    feature_std,
    lidar,
    participation_ratio,
    rank_me,
    uniformity,
)
from headctssl.networks.encoder import Encoder
from headctssl.planning.run_settings import RunSettings
from headctssl.training.batches import to_device
from headctssl.training.collapse import LOOKED, CollapseGuard, Finding
from headctssl.training.collapse_causes import Cause
from headctssl.training.distributed import Process, reduce_max
from headctssl.training.probe import BEST_BY, Probe
from headctssl.types import PretrainBatch

__all__ = ["Monitor"]

Line = Mapping[str, float | int | None]


class Monitor:
    """Looks at the features of a batch, at labelled cases, and at the lines of the run.

    The loop calls `first` before step 0, `look` on every process where `due`, and `judge` with the line that was
    written. Everything it remembers is a function of the lines of metrics.jsonl (`take_up`), so that a continued run
    needs nothing else.

    Args:
        learner: the method; its exported encoder is looked at, in eval mode.
        settings: of the run.
        device: where it computes.
        process: this process.
        probe: the probes, or None.
        say: takes a sentence for train.log.
        causes: gives the likely causes of a collapse.
        keep_best: writes encoder_probe_best.safetensors; called on the main process.
    """

    def __init__(
        self,
        learner: Method,
        settings: RunSettings,
        *,
        device: torch.device,
        process: Process,
        probe: Probe | None,
        say: Callable[[str], None],
        causes: Callable[[], Sequence[Cause]],
        keep_best: Callable[[], None],
    ) -> None:
        self.learner, self.settings, self.device, self.process = learner, settings, device, process
        self.probe, self.say, self.causes, self.keep_best = probe, say, causes, keep_best
        self.guard = CollapseGuard()
        self.best: float | None = None

    def take_up(self, lines: Sequence[Line]) -> None:
        """Remember the lines that a continued run has already."""
        self.guard.take_up(lines)
        for line in lines:
            self._is_best(line)

    def due(self, step: int) -> bool:
        """Whether to look after so many steps; the same on every process."""
        return step % self.settings.monitor.every == 0 or self._probe_due(step)

    def first(self) -> dict[str, float]:
        """Probes of the encoder before the first step, the reference of all later ones; empty without probes."""
        began = time.perf_counter()
        found = self._probed()
        return {**found, LOOKED: time.perf_counter() - began} if found else {}

    def look(self, step: int, batch: PretrainBatch, norm: Tensor) -> dict[str, float]:
        """Look after a step; every process must call it, lines come from the main one.

        Args:
            step: optimiser steps done.
            batch: the last one, on any device.
            norm: gradient norm of the step before clipping.
        """
        began = time.perf_counter()
        found: dict[str, float] = {}
        if self.process.is_main:
            found |= self._signs(to_device(batch, self.device))
            if self.settings.monitor.layer_gradients:
                found |= _layer_gradients(self.learner, float(norm))
        if self._probe_due(step):
            found |= self._probed()
        # Also where nothing was found, as of a single scan: a continued run must know where this one looked.
        return {**found, LOOKED: time.perf_counter() - began}

    def judge(self, line: Line, *, look: bool) -> None:
        """Take a line that was written: keep the encoder that probes best, and say when features collapse.

        Args:
            line: of metrics.jsonl.
            look: whether `look` added to it; every process must call with the same value.

        Raises:
            TrainingError: they do, and monitor.on_collapse is stop; on every process.
        """
        if self.process.is_main and self._is_best(line):
            self.keep_best()
        found = self.guard.add(line, look=look) if self.process.is_main else ()
        if found:
            self.say(self._message(found))
        if look and self.settings.monitor.on_collapse == "stop":
            # Also of signs that were told before the run was continued: only the message is once in a run.
            fallen = self.guard.fallen
            any_fell = torch.tensor(1.0 if fallen else 0.0, device=self.device)
            if float(reduce_max(any_fell, self.process)):
                raise TrainingError(
                    "The encoder gives every scan nearly the same features, and monitor.on_collapse is stop.",
                    got=self._message(fallen) if fallen else "signs that the main process has logged",
                    expected="features that differ between scans",
                    do="Start again with --overwrite after the change named above, or go on with --continue --set "
                    "monitor.on_collapse=warn.",
                )

    def _probe_due(self, step: int) -> bool:
        last = step == self.settings.training.num_steps
        return self.probe is not None and (last or step % self.settings.monitor.probe_every == 0)

    def _encoder(self) -> Encoder:
        return self.learner.encoder_to_export().eval()

    def _probed(self) -> dict[str, float]:
        return {} if self.probe is None else self.probe(self._encoder(), self.device)

    def _signs(self, batch: PretrainBatch) -> dict[str, float]:
        """Signs of collapse in the features that would be exported now, of the whole heads of one batch."""
        encoder, settings = self._encoder(), self.settings
        features = encoder.features_only(whole_head_view(batch, settings.input).groups["global"][0])
        if not bool(torch.isfinite(features).all()):
            return {
                "monitor_not_finite": float((~torch.isfinite(features)).any(1).sum())
            }  # scans; the rest is undefined
        if len(features) < 2:
            return {}  # one scan differs from nothing
        found = {
            "monitor_feature_std": feature_std(features),
            "monitor_rank_me": rank_me(features),
            "monitor_directions": participation_ratio(features),
        }
        student = getattr(self.learner, "encoder", encoder)
        if isinstance(student, nn.Module) and student is not encoder:
            found["monitor_teacher_gap"] = _relative_distance(encoder, student)
        if settings.monitor.views:
            group = replace(global_group(settings.views, settings.input, settings.monitor.views), name="monitor")
            views = make_views(batch, ViewPlan((group,)), settings.input).groups["monitor"]
            stacked = torch.stack([encoder.features_only(view) for view in views], dim=1)
            found |= {
                "monitor_lidar": lidar(stacked),
                "monitor_alignment": alignment(stacked),
                "monitor_uniformity": uniformity(stacked),
            }
        return found

    def _is_best(self, line: Line) -> bool:
        """Whether a trained encoder probes better than all before it; the reference of step 0 is not one."""
        value = line.get(BEST_BY)
        if value is None or not line.get("step") or (self.best is not None and value <= self.best):
            return False
        self.best = float(value)
        return True

    def _message(self, found: Sequence[Finding]) -> str:
        causes = self.causes()
        seen = "; ".join(finding.text for finding in found)
        why = "; ".join(f"{cause.what} ({cause.do})" for cause in causes)
        return f"collapse: {seen}. Features of different scans become the same. Likely cause: {why}."


def _relative_distance(teacher: nn.Module, student: nn.Module) -> float:
    """Distance between the weights of two encoders over the length of the student's."""
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    gap = torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs]).sum()
    length = torch.stack([b.float().square().sum() for _, b in pairs]).sum()
    return float((gap / length.clamp_min(1e-12)).sqrt())


def _layer_gradients(learner: nn.Module, norm: float) -> dict[str, float]:
    """Gradient norm before clipping of every layer: a module two names deep, as `encoder.blocks.3`."""
    squares: dict[str, Tensor] = {}
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            parts = name.split(".")[:-1]
            layer = ".".join(parts[: 3 if len(parts) > 2 and parts[2].isdigit() else 2]) or name
            squares[layer] = squares.get(layer, torch.zeros((), device=parameter.device)) + (
                parameter.grad.float().square().sum()
            )
    if not squares:
        return {}
    # Gradients were scaled by clipping since; their shares were not.
    shares = torch.stack(list(squares.values()))
    lengths = (norm * (shares / shares.sum().clamp_min(1e-30)).sqrt()).tolist()
    return {f"gradient_norm.{layer}": value for layer, value in zip(squares, lengths, strict=True)}
