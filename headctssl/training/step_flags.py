"""Step flags: what the loop must know of a step, read without emptying the device's queue of work."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["StepFlags"]


class StepFlags:
    """Two flags that were computed on the device, on their way to the host.

    On a GPU the copy is queued behind what computes the flags, and `read` waits for it alone: work that was queued
    meanwhile, as the optimiser's step, goes on. Reading a tensor directly would wait for all of it.

    Args:
        values: float32 (2,) of 0 and 1: whether the step is bad, and whether a signal came.

    Attributes:
        bad: float32 (), on the device.
    """

    def __init__(self, values: Tensor) -> None:
        self.bad = values[0]
        self._host = values
        self._copied: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            self._copied.record()

    def read(self) -> tuple[bool, bool]:
        """Bad, and told to stop."""
        if self._copied is not None:
            self._copied.synchronize()
        bad, told = self._host.tolist()
        return bool(bad), bool(told)
