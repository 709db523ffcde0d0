"""Dinov2 losses: marginals of Sinkhorn, KoLeo with copies, the loss of masked tokens, and block-wise masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.methods.dino.dino_loss import koleo, sinkhorn
from headctssl.methods.dinov2.dinov2_loss import block_mask, masked_token_loss


def slow_sinkhorn(logits: list[list[float]], temperature: float, iterations: int) -> list[list[float]]:
    """Algorithm of arXiv 2006.09882, appendix A.1, with plain exponentials."""
    q = [[math.exp(value / temperature) for value in row] for row in logits]
    rows, columns = len(q), len(q[0])
    for _ in range(iterations):
        for k in range(columns):
            total = sum(q[b][k] for b in range(rows))
            for b in range(rows):
                q[b][k] /= total * columns
        for b in range(rows):
            total = sum(q[b])
            q[b] = [value / (total * rows) for value in q[b]]
    return [[value * rows for value in row] for row in q]


def test_sinkhorn_against_loops() -> None:
    torch.manual_seed(0)
    logits = torch.rand(5, 7) * 2 - 1
    got = sinkhorn(logits, 0.1, 3)
    torch.testing.assert_close(got, torch.tensor(slow_sinkhorn(logits.tolist(), 0.1, 3)), atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 30), st.sampled_from([0.04, 0.07, 0.5]), st.integers(0, 1000))
def test_sinkhorn_marginals(batch: int, prototypes: int, temperature: float, seed: int) -> None:
    torch.manual_seed(seed)
    targets = sinkhorn(torch.rand(batch, prototypes) * 2 - 1, temperature, 200)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(batch), atol=1e-4, rtol=0)
    expected = torch.full((prototypes,), batch / prototypes)
    torch.testing.assert_close(targets.sum(0), expected, atol=0.02 * batch / prototypes + 1e-3, rtol=0.05)


def test_sinkhorn_survives_any_temperature_and_a_single_sample() -> None:
    assert sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), 1e-4).isfinite().all()
    torch.testing.assert_close(sinkhorn(torch.rand(1, 4), 0.05), torch.full((1, 4), 0.25))


def slow_koleo(rows: list[list[float]]) -> float:
    """Section 4 of arXiv 2304.07193 for rows without copies."""
    units = []
    for row in rows:
        norm = math.sqrt(sum(v * v for v in row))
        units.append([v / norm for v in row])
    nearest = [min(math.dist(a, b) for j, b in enumerate(units) if j != i) for i, a in enumerate(units)]
    return -sum(math.log(d) for d in nearest) / len(nearest)


def test_koleo_against_loops() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 4)
    assert koleo(rows).item() == pytest.approx(slow_koleo(rows.tolist()), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 6), st.integers(2, 16), st.integers(0, 1000))
def test_koleo_and_its_gradient_are_finite_with_copies(batch: int, copies: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(batch, channels)
    rows = torch.cat([rows, rows[torch.arange(copies) % batch]]).requires_grad_()
    loss = koleo(rows)
    loss.backward()
    assert loss.isfinite()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
    assert koleo(torch.zeros(3, 4)).item() == 0
    assert koleo(torch.ones(3, 4)).item() == 0


def test_koleo_pushes_neighbours_apart() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.3], [-1.0, 0.0]], requires_grad=True)
    before = koleo(rows)
    (gradient,) = torch.autograd.grad(before, rows)
    after = koleo(rows.detach() - 0.05 * gradient)
    assert after < before


def test_masked_token_loss_against_loops() -> None:
    torch.manual_seed(0)
    targets, logits = torch.rand(4, 5).softmax(-1), torch.randn(4, 5)
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125])
    total = 0.0
    for m in range(4):
        raised = [math.exp(float(v) / 0.1) for v in logits[m]]
        log_p = [math.log(v / sum(raised)) for v in raised]
        total -= float(weights[m]) * sum(float(t) * p for t, p in zip(targets[m], log_p, strict=True))
    assert masked_token_loss(targets, logits, weights, 0.1).item() == pytest.approx(total, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.floats(0, 1),
    st.integers(0, 10_000),
)
def test_block_masks_have_exactly_the_count(grid: tuple[int, int, int], share: float, seed: int) -> None:
    count = round(share * math.prod(grid))
    mask = block_mask(grid, count, np.random.default_rng(seed))
    assert mask.shape == grid
    assert mask.sum() == count
    assert np.array_equal(mask, block_mask(grid, count, np.random.default_rng(seed)))


def test_block_masks_are_blocks() -> None:
    """Neighbours agree more often than in a mask of single tokens."""
    agree = []
    for seed in range(40):
        mask = block_mask((8, 8, 8), 154, np.random.default_rng(seed))
        agree.append(np.mean([(np.diff(mask.astype(int), axis=a) == 0).mean() for a in range(3)]))
    assert np.mean(agree) > 0.75  # at random: .3^2 + .7^2 = .58
