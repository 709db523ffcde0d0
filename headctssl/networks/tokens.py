"""Tokens: the one place that says in which order the tokens of a 3D grid stand.

Token n of a grid (d, h, w) is the place (z, y, x) with n = (z * h + y) * w + x: x runs fastest. Nothing
else in the package turns grids into sequences or back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Grid",
    "gather_tokens",
    "grid_from_tokens",
    "grid_of",
    "mask_from_indices",
    "patchify",
    "resized_table",
    "sincos_table",
    "tokens_from_grid",
    "unpatchify",
    "voxels_of_mask",
]

# Legend: B samples, C channels, N = d*h*w tokens, K chosen tokens, P = C*pz*py*px values of a patch.

Grid = tuple[int, int, int]


def grid_of(shape: Sequence[int], token_size: Grid) -> Grid:
    """The grid (d, h, w) of a volume.

    Args:
        shape: voxels (z, y, x).
        token_size: voxels (z, y, x) per token.

    Raises:
        ValueError: a side is not a positive multiple of the token size.
    """
    for axis, side, step in zip("zyx", shape, token_size, strict=True):
        if side < step or side % step:
            raise ValueError(f"axis {axis} has {side} voxels, which is not a multiple of the token size {step}")
    d, h, w = (side // step for side, step in zip(shape, token_size, strict=True))
    return (d, h, w)


def tokens_from_grid(volume: Tensor) -> Tensor:
    """A grid (B, C, d, h, w) as tokens (B, N, C)."""
    return volume.flatten(2).transpose(1, 2)


def grid_from_tokens(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, N, C) of a whole grid as (B, C, d, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def patchify(volume: Tensor, patch: Grid) -> Tensor:
    """A volume (B, C, D, H, W) as patches (B, N, P), the values of a patch in the order (c, z, y, x)."""
    d, h, w = grid_of(volume.shape[2:], patch)
    pz, py, px = patch
    blocks = volume.reshape(*volume.shape[:2], d, pz, h, py, w, px)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(volume.shape[0], d * h * w, -1)


def unpatchify(patches: Tensor, grid: Grid, patch: Grid) -> Tensor:
    """Patches (B, N, P) as a volume (B, C, D, H, W): the inverse of `patchify`."""
    (d, h, w), (pz, py, px) = grid, patch
    blocks = patches.reshape(patches.shape[0], d, h, w, -1, pz, py, px).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return blocks.reshape(patches.shape[0], -1, d * pz, h * py, w * px)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens (B, K, C) that stand at `indices` (B, K) int64 in `tokens` (B, N, C)."""
    return torch.gather(tokens, 1, indices[..., None].expand(-1, -1, tokens.shape[2]))


def mask_from_indices(indices: Tensor, grid: Grid) -> Tensor:
    """A boolean grid (B, d, h, w) that is True at the token `indices` (B, K) int64."""
    flat = torch.zeros(indices.shape[0], grid[0] * grid[1] * grid[2], dtype=torch.bool, device=indices.device)
    return flat.scatter_(1, indices, True).view(-1, *grid)


def voxels_of_mask(mask: Tensor, token_size: Grid) -> Tensor:
    """A token mask (B, d, h, w) as a voxel mask (B, 1, D, H, W) of the same type."""
    for axis, size in enumerate(token_size, start=1):
        mask = mask.repeat_interleave(size, dim=axis)
    return mask[:, None]


def resized_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A table (N, C) of positions on another grid over the same field of view, interpolated trilinearly.

    As DINO does in 2D (arXiv 2104.14294).

    Args:
        table: one row per token of the grid `old`.
        old: tokens (d, h, w).
        new: tokens (d, h, w).
    """
    if old == new:
        return table
    volume = grid_from_tokens(table[None].float(), old)
    return tokens_from_grid(functional.interpolate(volume, size=new, mode="trilinear", align_corners=False))[0]


def sincos_table(grid: Grid, width: int, reference: Grid | None = None, temperature: float = 10_000.0) -> Tensor:
    """Fixed 3D sin-cos positions, float32 (N, width).

    Each axis gets width // 6 sines and as many cosines, in the order sin z, cos z, sin y, cos y, sin x, cos x, with
    frequencies temperature^(-i / (width // 6)) (Vaswani 2017, section 3.5, per axis); channels left over when
    the width is not divisible by 6 are zero.

    Args:
        grid: tokens (d, h, w).
        width: channels.
        reference: the grid whose extent the positions span; another `grid` is laid over the same extent, so that a
            coarser grid has the positions that linear interpolation would sample. Default: `grid` itself.
        temperature: base of the frequencies.
    """
    count = width // 6
    frequencies = temperature ** (-torch.arange(count, dtype=torch.float64) / max(1, count))
    table = torch.zeros(*grid, width, dtype=torch.float64)
    for axis, (size, extent) in enumerate(zip(grid, reference or grid, strict=True)):
        places = (torch.arange(size, dtype=torch.float64) + 0.5) * (extent / size) - 0.5
        angles = places[:, None] * frequencies
        shape = [1, 1, 1, 2 * count]
        shape[axis] = size
        table[..., 2 * count * axis : 2 * count * (axis + 1)] = torch.cat([angles.sin(), angles.cos()], 1).view(shape)
    return table.flatten(0, 2).to(torch.float32)
