"""Batch norm: BatchNorm over the samples of all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

__all__ = ["GlobalBatchNorm3d", "running_statistics"]


class GlobalBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d (arXiv 1502.03167) whose statistics in training are those of the global batch.

    With one process it is torch's. With several, sums are gathered differentiably, on any device, so that n processes
    compute what one would, and their running statistics stay the same without being sent around. Every process must
    hold as many voxels. In eval mode the running statistics are used, so no sample depends on its batch mates.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) in and out."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        assert self.running_mean is not None, "running statistics are kept"
        assert self.running_var is not None, "running statistics are kept"
        assert self.num_batches_tracked is not None, "running statistics are kept"
        assert self.momentum is not None, "statistics run with a fixed momentum"
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            mean = _mean_over_processes(values.mean((0, 2, 3, 4)))
            centred = values - mean.view(1, -1, 1, 1, 1)
            variance = _mean_over_processes(centred.square().mean((0, 2, 3, 4)))
            scale = self.weight * torch.rsqrt(variance + self.eps)
            out = centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return out.to(x.dtype)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics of every BatchNorm in a module, which a forward pass moves before anyone sees its loss."""
    norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over processes, with gradient."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]  # torch's function
    return total / dist.get_world_size()
