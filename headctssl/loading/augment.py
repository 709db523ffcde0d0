"""Augment: intensity operations on views in window units, in place as torch's underscore says, and rotation."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headctssl.loading.separable import Taps, along_axes
from headctssl.types import Triple

__all__ = ["add_noise_", "blur_", "gamma_", "rotate", "rotation_margin", "rotation_matrix", "shift_"]


def shift_(view: Tensor, offset: float) -> Tensor:
    """Add one number to every voxel and channel, then clamp to [0, 1].

    Args:
        view: (C, D, H, W) float in [0, 1], changed.
        offset: in windows; 0.1 is a tenth of a window's width.
    """
    return view.add_(offset).clamp_(0.0, 1.0)


def gamma_(view: Tensor, exponent: float) -> Tensor:
    """Raise a view in [0, 1] to a power; 0 and 1 stay where they are.

    Args:
        view: (C, D, H, W) float in [0, 1], changed.
        exponent: below 1 brightens.
    """
    return view.pow_(exponent)


def blur_(view: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing, one axis after the other, cut off at 4 sigma, edges repeated.

    Args:
        view: (C, D, H, W) float, changed.
        sigma: standard deviation in voxels.
    """
    z, y, x = (_gauss(n, sigma) for n in view.shape[1:])
    for channel in view:
        channel.copy_(along_axes(channel, (z, y, x)))
    return view


def _gauss(size: int, sigma: float) -> Taps:
    """What smooths one axis; the weights of samples beyond an edge are given to the edge."""
    radius = max(1, math.ceil(4.0 * sigma))
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    columns = np.clip(np.arange(size)[:, None] + offsets, 0, size - 1)
    return Taps(columns, np.tile(weights, (size, 1)), size)


def add_noise_(view: Tensor, sigma: float, seed: int) -> Tensor:
    """Add Gaussian noise drawn on the CPU from its own seed, then clamp to [0, 1].

    Args:
        view: (C, D, H, W) float in [0, 1], changed.
        sigma: standard deviation in windows.
        seed: of the noise field.
    """
    noise = torch.randn(view.shape, generator=torch.Generator().manual_seed(seed))
    return view.add_(noise.to(view.device), alpha=sigma).clamp_(0.0, 1.0)


def rotation_matrix(angles_deg: Triple) -> NDArray[np.float64]:
    """The (3, 3) rotation of vectors (z, y, x): about z first, then y, then x.

    Args:
        angles_deg: angles about (z, y, x) in degrees.
    """
    about_z, about_y, about_x = np.deg2rad(angles_deg)

    def turn(angle: float, first: int, second: int) -> NDArray[np.float64]:
        matrix = np.eye(3)
        matrix[first, first] = matrix[second, second] = np.cos(angle)
        matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
        return matrix

    return turn(about_x, 0, 1) @ turn(about_y, 0, 2) @ turn(about_z, 1, 2)


def rotation_margin(shape: tuple[int, int, int], voxel_mm: Triple, angles_deg: Triple) -> tuple[int, int, int]:
    """Samples to add on each side of each axis so that the rotated view finds content up to its corners.

    Args:
        shape: voxels (z, y, x) of the view.
        voxel_mm: size (z, y, x) of its voxels in mm.
        angles_deg: angles about (z, y, x).
    """
    half = 0.5 * np.asarray(shape) * np.asarray(voxel_mm)
    # The result shows at p what lies at R^-1 p.
    reach = np.abs(rotation_matrix(angles_deg)).T @ half
    margin = np.ceil(np.maximum(reach - half, 0.0) / np.asarray(voxel_mm)).astype(int) + 1
    return (int(margin[0]), int(margin[1]), int(margin[2]))


def rotate(volume: Tensor, shape: tuple[int, int, int], voxel_mm: Triple, angles_deg: Triple, fill: float) -> Tensor:
    """Rotate about the centre in mm and cut the centre out, linear interpolation.

    Args:
        volume: (C, D, H, W) float, the view with a margin.
        shape: voxels (z, y, x) of the result.
        voxel_mm: size (z, y, x) of the voxels in mm; they need not be cubes.
        angles_deg: angles about (z, y, x); content turns by them.
        fill: value outside the volume.

    Returns:
        (C, *shape).
    """
    size = np.asarray(volume.shape[1:], np.float64)
    voxel = np.asarray(voxel_mm, np.float64)
    # A sample at offset p (mm) of the result shows the content at R^-1 p. grid_sample wants offsets in units of
    # half the side (align_corners=False), in the order x, y, z.
    inverse = rotation_matrix(angles_deg).T
    to_mm = 0.5 * np.asarray(shape, np.float64) * voxel
    from_mm = 2.0 / (size * voxel)
    theta = (from_mm[:, None] * inverse * to_mm[None, :])[::-1, ::-1]
    affine = torch.zeros(1, 3, 4, dtype=torch.float32, device=volume.device)
    affine[0, :, :3] = torch.from_numpy(theta.astype(np.float32))
    grid = functional.affine_grid(affine, [1, volume.shape[0], *shape], align_corners=False)
    moved = functional.grid_sample(
        (volume - fill)[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return moved[0] + fill
