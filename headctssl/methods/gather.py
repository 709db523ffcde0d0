"""Gather: the samples of all processes as one batch, with gradients, for losses that a paper takes over the batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_ragged", "gather_samples"]


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


@torch.no_grad()
def gather_ragged(local: Tensor) -> tuple[Tensor, int]:
    """The rows of every process, whose number may differ, without gradients.

    Args:
        local: (B, C); B may differ between processes, and may be 0.

    Returns:
        The rows of all processes in the order of the ranks, and where this process's rows begin.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=local.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([local.shape[0]], device=local.device))
    rows = [int(count) for count in counts]
    padded = local.new_zeros((max(rows), *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)]), sum(rows[: dist.get_rank()])
