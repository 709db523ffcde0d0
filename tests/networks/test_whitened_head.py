"""Whitened head: the matrix against a slow reference, the head put back, and a label that hides in little variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from headctssl.contract import HeadSettings
from headctssl.finetuning.adapt import settle_norm
from headctssl.metrics.classification import auroc
from headctssl.networks.heads import LinearHead, build_head
from headctssl.networks.whitened_head import WhitenedHead, whitening_matrix


def features(n: int, channels: int, seed: int) -> torch.Tensor:
    """Correlated ones, of scales from 1e-3 to 1e3, off zero."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, channels, generator=draw) @ torch.randn(channels, channels, generator=draw)
    return (mixed + 3) * torch.logspace(-3, 3, channels)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(1, 12), st.sampled_from((1e-3, 0.01, 0.5)), st.integers(0, 99))
def test_the_matrix_is_the_inverse_root_of_the_shrunk_covariance(n: int, c: int, shrinkage: float, seed: int) -> None:
    x = torch.randn(n, c, generator=torch.Generator().manual_seed(seed)) @ torch.diag(torch.logspace(-2, 0, c))
    matrix = whitening_matrix(x, shrinkage).numpy()
    covariance = np.cov(x.double().numpy().T).reshape(c, c)
    shrunk = covariance + shrinkage * np.trace(covariance) / c * np.eye(c)
    np.testing.assert_allclose(matrix, linalg.inv(linalg.sqrtm(shrunk)).real, rtol=1e-6, atol=1e-6 * abs(matrix).max())
    spread = np.linalg.eigvalsh(matrix @ covariance @ matrix)
    assert spread.max() <= 1 + 1e-9, "no direction varies more than 1"


def test_turned_features_are_turned_whitened_features() -> None:
    x = features(40, 6, 0)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = whitening_matrix(x.double() @ turn, 0.01)
    torch.testing.assert_close(turn @ turned @ turn.T, whitening_matrix(x, 0.01), rtol=1e-8, atol=1e-12)


def test_features_that_do_not_vary_stay() -> None:
    assert torch.equal(whitening_matrix(torch.full((5, 3), 7.0), 0.01), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("settings", [HeadSettings(), HeadSettings(scans="attention"), HeadSettings(batch_norm=False)])
def test_the_head_put_back_is_the_function_that_was_learnt(settings: HeadSettings) -> None:
    torch.manual_seed(0)
    x = features(50, 8, 2) if settings.batch_norm else torch.randn(50, 8)
    head = build_head(settings, 8, 3)
    assert isinstance(head, LinearHead)
    settle_norm(head, x)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    learner = WhitenedHead(head, x, 0.01)
    for parameter in learner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items()), "not changed so far"
    learner.put_back(head)
    head.eval()
    torch.testing.assert_close(head(x), learner.eval()(x), rtol=1e-4, atol=1e-4)
    for name in before:
        assert torch.equal(before[name], head.state_dict()[name]) == name.startswith("norm"), name


def test_a_label_in_a_direction_of_little_variance_is_learnt() -> None:
    draw = np.random.default_rng(0)
    label = draw.random(400) < 0.5
    # Every channel shows the same large part; what tells the label is the difference of two channels.
    common = draw.normal(size=(400, 1))
    x = common + 0.1 * draw.normal(size=(400, 16))
    x[:, 0] += 0.3 * label
    inputs, target = torch.from_numpy(x).float(), torch.from_numpy(label).float()
    found = {}
    for name in ("plain", "whitened"):
        torch.manual_seed(0)
        head = LinearHead(16, 1)
        settle_norm(head, inputs[:300])
        learner = head if name == "plain" else WhitenedHead(head, inputs[:300], 0.01)
        learner.eval()
        optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(learner(inputs[:300])[:, 0], target[:300])
            loss.backward()
            optimizer.step()
        if isinstance(learner, WhitenedHead):
            learner.put_back(head)
        found[name] = auroc(label[300:].astype(float), head.eval()(inputs[300:])[:, 0].detach().double().numpy())
    assert found["whitened"] > 0.9
    assert found["plain"] < found["whitened"] - 0.05
