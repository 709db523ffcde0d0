"""Representation: how much of their space features use, and how they lie in it, without labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["alignment", "feature_std", "lidar", "participation_ratio", "rank_me", "uniformity"]

_WITHIN = 1e-4  # added to the covariance within scans, as in LiDAR's paper
_LEAST_SHARE = 1e-12


def feature_std(features: Tensor) -> float:
    """Mean over channels of the standard deviation of L2-normalised features, times sqrt(C).

    1 for features spread evenly over the sphere, 0 when all are the same
    (SimSiam, arXiv 2011.10566, section 4.1).

    Args:
        features: (B, C) float, B at least 2.
    """
    unit = functional.normalize(features.float(), dim=1)
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


def participation_ratio(features: Tensor) -> float:
    """Directions in which features vary: the square of the sum of the variances over the sum of their squares.

    Between 1 and min(B - 1, C) (Gao et al. 2017, bioRxiv 214262). Centred, so that what all scans have in common does
    not count, as it does in RankMe.

    Args:
        features: (B, C) float, B at least 2.
    """
    variances = torch.linalg.svdvals(_centred(features)).square()
    return float(variances.sum().square() / variances.square().sum().clamp_min(_LEAST_SHARE))


def lidar(views: Tensor) -> float:
    """Effective rank of the directions in which scans differ more than views of a scan do.

    Entropy of the eigenvalues of W^-1/2 B W^-1/2, with B the covariance of the scans' means and W that of the views
    within their scans; between 1 and min(B - 1, C) (LiDAR, arXiv 2312.04000, section 4). The paper takes 1,000 scans
    and 50 views; with few, only values of equally many compare.

    Args:
        views: (B, Q, C) float, Q views of each of B scans, B and Q at least 2.
    """
    exact = views.double()
    means = exact.mean(1)
    within = (exact - means[:, None]).flatten(0, 1)
    covariance = within.T @ within / within.shape[0]
    covariance.diagonal().add_(_WITHIN)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors * values.clamp_min(_WITHIN).rsqrt()
    # The singular values of the whitened means are the roots of the eigenvalues that are wanted.
    between = torch.linalg.svdvals(_centred(means) @ whiten).square()
    shares = between / between.sum().clamp_min(_LEAST_SHARE)
    return float(torch.exp(-(shares * shares.clamp_min(_LEAST_SHARE).log()).sum()))


def alignment(views: Tensor) -> float:
    """Mean squared distance of two views of a scan on the unit sphere: 0 when they are the same, 2 when unrelated.

    Wang and Isola, arXiv 2005.10242, equation 6 with exponent 2.

    Args:
        views: (B, Q, C) float, Q views of each of B scans, Q at least 2.
    """
    unit = functional.normalize(views.float(), dim=-1)
    count = unit.shape[1]
    # Mean over ordered pairs of different views: |x|^2 = 1, so 2 - 2 x.y.
    products = (unit.sum(1).square().sum(-1) - count) / (count * (count - 1))
    return float((2 - 2 * products).mean())


def uniformity(views: Tensor) -> float:
    """Logarithm of the mean of exp(-2 d^2) over views of different scans, d their distance on the unit sphere.

    0 when all are the same, the lower the more evenly they are spread (Wang and Isola, arXiv 2005.10242, equation 7).

    Args:
        views: (B, Q, C) float, Q views of each of B scans, B at least 2.
    """
    unit = functional.normalize(views.float(), dim=-1)
    scans, count = unit.shape[:2]
    rows = unit.flatten(0, 1)
    with torch.autocast(rows.device.type, enabled=False):  # bfloat16 would round the small distances away
        squared = (2 - 2 * rows @ rows.T).clamp_min(0)
    other = ~torch.eye(scans, dtype=torch.bool, device=rows.device).repeat_interleave(count, 0).repeat_interleave(
        count, 1
    )
    return float(torch.exp(-2 * squared[other]).mean().log())


def _centred(rows: Tensor) -> Tensor:
    exact = rows if rows.dtype == torch.float64 else rows.float()
    return exact - exact.mean(0)
