"""Spread: signs of collapse in features and embeddings, cheap enough for every step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["directions_used", "embedding_signs", "unit_spread"]

# Legend: R rows, C channels.


@torch.no_grad()
def unit_spread(rows_RC: Tensor) -> Tensor:
    """Standard deviation of rows of length 1, times the root of their channels (SimSiam, arXiv 2011.10566, 4.1).

    Args:
        rows_RC: features or embeddings, float.

    Returns:
        Scalar float32; 1 for rows spread evenly over the sphere, 0 when all point the same way.
    """
    unit = functional.normalize(rows_RC.float(), dim=-1)
    spread: Tensor = unit.std(0, unbiased=False).mean() * unit.shape[1] ** 0.5
    return spread


@torch.no_grad()
def directions_used(rows_RC: Tensor) -> Tensor:
    """How many directions rows of length 1 use: the participation ratio (Gao et al. 2017, bioRxiv 214262).

    The square of the sum of the eigenvalues of their second moments over the sum of their squares. It takes one
    product of matrices, where RankMe takes a decomposition that a step should not wait for.

    Args:
        rows_RC: features or embeddings, float, not centred.

    Returns:
        Scalar float32; 1 when all rows lie on one line, at most min(R, C).
    """
    unit = functional.normalize(rows_RC.float(), dim=-1)
    with torch.autocast(unit.device.type, enabled=False):
        moments = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit
    ratio: Tensor = moments.diagonal().sum().square() / moments.square().sum().clamp(min=1e-12)
    return ratio


def embedding_signs(rows_RC: Tensor) -> dict[str, Tensor]:
    """`embedding_std` and `embedding_rank`: both measures of what an objective compares."""
    return {"embedding_std": unit_spread(rows_RC), "embedding_rank": directions_used(rows_RC)}
