"""Gather: the samples of all processes as one batch, with gradients, for losses that a paper takes over the batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_samples"]


def gather_samples(local: Tensor) -> Tensor:
    """The rows of every process, in the order of the ranks; the tensor itself when there is one process.

    A loss computed from the gathered rows is the same on every process. Its gradient with respect to the local
    rows is the sum over the processes' copies of that loss, so the mean over processes that DistributedDataParallel
    takes is exactly the gradient of the one global loss.

    Args:
        local: (B, ...) of the same shape on every process.

    Returns:
        (world size * B, ...).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local
    gathered: Tensor = _Gather.apply(local)
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather whose backward adds up what every process's loss wants of the local rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]
