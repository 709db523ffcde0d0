"""Voco loss: shares of crops in the cells of a grid, how they are predicted, and how far cells are from each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["assign", "overlap_loss", "overlap_shares", "separation_loss"]

# Legend: B samples, R crops, N cells of the grid, D channels.

_EPSILON = 1e-6


def overlap_shares(crops_RB32: Tensor, cells_NB32: Tensor) -> Tensor:
    """Which share of the area of each crop lies in each cell, in the plane (arXiv 2410.09890, section 3.1).

    Crops and cells are equally large and equally thick, so a crop within the grid has shares that sum to 1.

    Args:
        crops_RB32: boxes (R, B, 3, 2) of the crops: start and stop along (z, y, x).
        cells_NB32: boxes (N, B, 3, 2) of the cells, in the same voxels.

    Returns:
        (B, R, N) float32 in [0, 1].
    """
    crops, cells = crops_RB32.transpose(0, 1)[:, :, None, 1:], cells_NB32.transpose(0, 1)[:, None, :, 1:]
    common = torch.minimum(crops[..., 1], cells[..., 1]) - torch.maximum(crops[..., 0], cells[..., 0])
    share = (common / (crops[..., 1] - crops[..., 0])).clamp(0.0, 1.0).prod(dim=-1)
    return torch.where(share < _EPSILON, 0.0, share)  # cells that touch have nothing in common but rounding


def assign(crops_BRD: Tensor, cells_BND: Tensor) -> Tensor:
    """How much each crop is like each cell: the cosine where it is positive, else 0 (arXiv 2410.09890, equation 2).

    Args:
        crops_BRD: embeddings of the crops.
        cells_BND: embeddings of the cells, of the same scan or of another one.

    Returns:
        (B, R, N) float32 in [0, 1].
    """
    with torch.autocast(crops_BRD.device.type, enabled=False):
        crops = functional.normalize(crops_BRD.float(), dim=-1)
        cells = functional.normalize(cells_BND.float(), dim=-1)
        return functional.relu(crops @ cells.transpose(1, 2)).clamp(max=1.0)


def overlap_loss(shares_BRN: Tensor, predicted_BRN: Tensor) -> Tensor:
    """How far predictions are from shares (arXiv 2410.09890, equation 3; the parts weighted as in its public code).

    Per scan: the mean of -log(1 - |y - p|) weighted by the share y, plus the mean of -log(1 - p) over pairs that
    share nothing.

    Args:
        shares_BRN: y in [0, 1].
        predicted_BRN: p in [0, 1].

    Returns:
        Scalar float32, the mean over scans.
    """
    distance = (shares_BRN - predicted_BRN).abs()
    surprise = -torch.log(1.0 - distance + _EPSILON)
    apart = (shares_BRN == 0).float()
    near = (shares_BRN * surprise).sum(dim=(1, 2)) / (shares_BRN.sum(dim=(1, 2)) + _EPSILON)
    far = (apart * surprise).sum(dim=(1, 2)) / (apart.sum(dim=(1, 2)) + _EPSILON)
    return (near + far).mean()


def separation_loss(cells_BND: Tensor) -> Tensor:
    """Mean square of the positive cosines between different cells of a scan (arXiv 2410.09890, equation 6).

    Args:
        cells_BND: embeddings of the cells, N at least 2.

    Returns:
        Scalar float32, 0 when no two cells of a scan point the same way.
    """
    alike = assign(cells_BND, cells_BND).square()
    count = alike.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=alike.device)
    return alike[:, others].mean()
