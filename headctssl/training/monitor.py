"""Monitor: cheap signs of collapse, computed from a batch of features."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["feature_std", "rank_me"]


def feature_std(features: Tensor) -> float:
    """Mean over channels of the standard deviation of L2-normalised features, times sqrt(C).

    1 for features spread evenly over the sphere, 0 when all are the same
    (SimSiam, arXiv 2011.10566, section 4.1).

    Args:
        features: (B, C) float, B at least 2.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def rank_me(features: Tensor) -> float:
    """Effective rank: the exponential of the entropy of the normalised singular values.

    Between 1 and min(B, C) (RankMe, arXiv 2210.02885, equation 1).

    Args:
        features: (B, C) float, not centred, as in the paper.
    """
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))
