"""Thin convolution: a way around a fault of bfloat16 convolutions on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GuardedConv3d", "guard_convolutions"]


class GuardedConv3d(nn.Conv3d):
    """A 3D convolution that is right for inputs of one or two slices in bfloat16 on a CPU.

    There oneDNN reads memory that was never written, with torch 2.14.1 on CPUs with AMX and a convolution of kernel 3,
    stride 1 and padding 1 along z. With two slices the gradient of the weights was not finite in two of three tries,
    and wrong by up to 1e35 of itself in the others; with one slice and 3 or 12 input channels the output was not
    finite, or wrong by as much as itself. Three and more slices, two rows or columns, float16 and float32 are right.
    Slices of zeros that make them three change nothing in the first ones of the output, and the others are cut off.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) in and out."""
        if not self._can_be_wrong(x):
            return super().forward(x)
        slices = x.shape[2]
        return super().forward(functional.pad(x, (0, 0, 0, 0, 0, 3 - slices)))[:, :, :slices]

    def _can_be_wrong(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or x.shape[2] > 2:
            return False
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        along_z = (self.kernel_size[0], self.stride[0], self.dilation[0], self.padding[0], self.padding_mode)
        return (half or x.dtype == torch.bfloat16) and along_z == (3, 1, 1, 1, "zeros")


def guard_convolutions(module: nn.Module) -> None:
    """Turn every 3D convolution of a module, also of a library's, into a `GuardedConv3d` in place; state stays."""
    for layer in module.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = GuardedConv3d
