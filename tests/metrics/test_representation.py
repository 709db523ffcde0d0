"""Tests of metrics/representation.py: known shapes of features, and slow references from the papers' equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headctssl.metrics.representation import alignment, feature_std, lidar, participation_ratio, rank_me, uniformity

MEASURES = (alignment, lidar, uniformity)


def test_monitors_tell_collapse_from_spread() -> None:
    torch.manual_seed(0)
    spread, same = torch.randn(64, 16), torch.ones(64, 16)
    assert feature_std(spread) == pytest.approx(1.0, abs=0.05)
    assert feature_std(same) == pytest.approx(0.0, abs=1e-6)
    assert rank_me(same) == pytest.approx(1.0, abs=1e-3)
    assert rank_me(torch.eye(8)) == pytest.approx(8.0, rel=1e-3)
    shares = torch.tensor([0.7, 0.2, 0.1])
    expected = float(torch.exp(-(shares * shares.log()).sum()))
    assert rank_me(torch.diag(shares)) == pytest.approx(expected, rel=1e-3)


def test_participation_ratio_is_of_the_variances() -> None:
    torch.manual_seed(0)
    features = torch.randn(50, 6) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1, 0.0]) + 7.0
    values = np.linalg.eigvalsh(np.cov(features.double().numpy().T))
    assert participation_ratio(features) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
    assert participation_ratio(torch.outer(torch.randn(20), torch.ones(5))) == pytest.approx(1.0, abs=1e-4)
    assert participation_ratio(torch.ones(4, 3)) == 0.0


def test_lidar_is_the_rank_of_the_whitened_differences_between_scans() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    scans, count, channels = 12, 5, 6
    views = rng.normal(size=(scans, 1, channels)) * [4, 3, 2, 1, 0.5, 0.1] + 0.3 * rng.normal(
        size=(scans, count, channels)
    )
    # Section 4: covariances of the means and within the scans, then the entropy of the eigenvalues.
    means = views.mean(1)
    between, within = np.zeros((channels, channels)), 1e-4 * np.eye(channels)
    for scan in range(scans):
        gap = means[scan] - means.mean(0)
        between += np.outer(gap, gap) / scans
        for view in range(count):
            gap = views[scan, view] - means[scan]
            within += np.outer(gap, gap) / (scans * count)
    root = np.linalg.inv(np.real(sqrtm(within)))
    values = np.linalg.eigvalsh(root @ between @ root)
    shares = values / values.sum()
    expected = math.exp(-(shares * np.log(np.maximum(shares, 1e-12))).sum())
    assert lidar(torch.from_numpy(views)) == pytest.approx(expected, rel=1e-4)


def test_alignment_and_uniformity_over_pairs() -> None:
    torch.manual_seed(1)
    views = torch.randn(5, 3, 4)
    unit = views / views.norm(dim=-1, keepdim=True)
    near = [(unit[b, p] - unit[b, q]).square().sum() for b in range(5) for p in range(3) for q in range(3) if p != q]
    far = [
        torch.exp(-2 * (unit[a, p] - unit[b, q]).square().sum())
        for a in range(5)
        for b in range(5)
        for p in range(3)
        for q in range(3)
        if a != b
    ]
    assert alignment(views) == pytest.approx(float(torch.stack(near).mean()), rel=1e-5)
    assert uniformity(views) == pytest.approx(float(torch.stack(far).mean().log()), rel=1e-5)
    near_views = torch.ones(5, 3, 4) + 0.05 * views
    alone = [measure(near_views) for measure in MEASURES]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [measure(near_views) for measure in MEASURES] == alone, "as monitors call them"
    assert (alignment(torch.ones(3, 2, 4)), uniformity(torch.ones(3, 2, 4))) == pytest.approx((0.0, 0.0), abs=1e-5)
