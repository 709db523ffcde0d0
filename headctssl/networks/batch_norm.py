"""Batch norm: BatchNorm over the samples of all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

__all__ = ["GlobalBatchNorm1d", "GlobalBatchNorm3d", "running_statistics"]


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`GlobalBatchNorm3d` of features."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) in and out."""
        return _normalised(self, x) if _shared(self) else super().forward(x)


class GlobalBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d (arXiv 1502.03167) whose statistics in training are those of the global batch.

    With one process it is torch's. With several, sums are gathered differentiably, on any device, so that n processes
    compute what one would, and their running statistics stay the same without being sent around. Every process must
    hold as many voxels. In eval mode the running statistics are used, so no sample depends on its batch mates.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) in and out."""
        return _normalised(self, x) if _shared(self) else super().forward(x)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics of every BatchNorm in a module, which a forward pass moves before anyone sees its loss."""
    norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over processes, with gradient."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]  # torch's function
    return total / dist.get_world_size()


def _shared(norm: nn.Module) -> bool:
    """Whether the statistics of a batch are to be taken over several processes."""
    return norm.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _normalised(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """(B, C, ...) normalised by the statistics of all processes, which the running ones follow."""
    assert norm.running_mean is not None, "running statistics are kept"
    assert norm.running_var is not None, "running statistics are kept"
    assert norm.num_batches_tracked is not None, "running statistics are kept"
    assert norm.momentum is not None, "statistics run with a fixed momentum"
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    with torch.autocast(x.device.type, enabled=False):
        values = x.float()
        mean = _mean_over_processes(values.mean(axes))
        centred = values - mean.view(shape)
        variance = _mean_over_processes(centred.square().mean(axes))
        out = centred * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            out = out * norm.weight.view(shape) + norm.bias.view(shape)
    with torch.no_grad():
        count = x.numel() // x.shape[1] * dist.get_world_size()
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    return out.to(x.dtype)
