"""Spark decoder: mask tokens fill the holes of every stage, and a light U-Net decoder predicts the volume."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headctssl.methods.spark.sparse import sparse_group_norm
from headctssl.networks.tokens import grid_of, voxels_of_mask

__all__ = ["SparkDecoder"]

Shape = tuple[int, int, int]


class _Densify(nn.Module):
    """Bring one stage from sparse to dense (arXiv 2301.03580, section 3.2).

    A norm over visible places, the stage's mask token at hidden ones, and a convolution to the decoder's width, of
    kernel 1 at the coarsest stage and 3 above.
    """

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.token = nn.Parameter(torch.empty(1, channels, 1, 1, 1))
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.02, b=0.02)
        self.project = nn.Conv3d(channels, width, kernel, padding=kernel // 2)
        self.no_weight_decay = ("token",)

    def forward(self, stage: Tensor, visible: Tensor) -> Tensor:
        """(B, C, D, H, W) and bool (B, d, h, w) visible blocks to (B, width, D, H, W)."""
        d, h, w = visible.shape[1:]
        seen = voxels_of_mask(visible, grid_of(stage.shape[2:], (d, h, w)))
        norm = self.norm
        normed = sparse_group_norm(stage.float(), seen.float(), stage.shape[1], norm.weight, norm.bias, norm.eps)
        out: Tensor = self.project(torch.where(seen, normed, self.token.to(normed.dtype)))
        return out


class _UpBlock(nn.Module):
    """Upsample to the next finer stage and halve the width: a transposed convolution and two of kernel 3."""

    def __init__(self, width: int, finer: int, stride: Shape) -> None:
        super().__init__()
        # Kernel stride + 2 with padding 1 multiplies a side by exactly the stride, with overlap.
        kernel = (stride[0] + 2, stride[1] + 2, stride[2] + 2)
        self.up = nn.ConvTranspose3d(width, finer, kernel, stride, padding=1)
        self.blocks = nn.Sequential(
            nn.Conv3d(finer, finer, 3, padding=1, bias=False),
            nn.InstanceNorm3d(finer, affine=True),
            nn.ReLU(inplace=True),
            nn.Conv3d(finer, finer, 3, padding=1, bias=False),
            nn.InstanceNorm3d(finer, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, D, H, W) to (B, finer, D * stride, H * stride, W * stride)."""
        out: Tensor = self.blocks(self.up(x))
        return out


class SparkDecoder(nn.Module):
    """The light decoder of SparK (arXiv 2301.03580, section 3.2), in 3D with instance norms as S3D (arXiv 2410.23132).

    Args:
        channels: of the stages, finest first.
        strides: (z, y, x) voxels per place of each stage, finest first.
        outputs: channels of the volume to predict.
        width: channels at the coarsest stage; every finer one has half as many, at least 4.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[Shape, ...], outputs: int, width: int) -> None:
        super().__init__()
        last = len(channels) - 1
        widths = [max(4, width // 2 ** (last - stage)) for stage in range(last + 1)]
        self.densify = nn.ModuleList(
            _Densify(channels[stage], widths[stage], 1 if stage == last else 3) for stage in range(last + 1)
        )
        steps = [_over(strides[stage + 1], strides[stage]) for stage in range(last)]
        self.up = nn.ModuleList(_UpBlock(widths[stage + 1], widths[stage], steps[stage]) for stage in range(last))
        # A CNN whose finest stage is coarser than its input gets one more step to voxels.
        self.to_voxels: nn.Module = nn.Identity()
        if strides[0] != (1, 1, 1):
            self.to_voxels = _UpBlock(widths[0], widths[0], strides[0])
        self.predict = nn.Conv3d(widths[0], outputs, 1)

    def forward(self, pyramid: tuple[Tensor, ...], visible: Tensor) -> Tensor:
        """Predict the volume.

        Args:
            pyramid: stages (B, C_i, D_i, H_i, W_i), finest first.
            visible: bool (B, d, h, w), False where a block is hidden.

        Returns:
            (B, outputs, D, H, W).
        """
        dense = [fill(stage, visible) for fill, stage in zip(self.densify, pyramid, strict=True)]
        x = dense[-1]
        for stage in reversed(range(len(self.up))):
            x = self.up[stage](x) + dense[stage]
        out: Tensor = self.predict(self.to_voxels(x))
        return out


def _over(coarse: Shape, fine: Shape) -> Shape:
    z, y, x = (c // f for c, f in zip(coarse, fine, strict=True))
    return (z, y, x)
