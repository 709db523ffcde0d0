"""Lejepa: the losses against loops, what they are worth for known distributions, one and two processes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from halves import assert_halves_make_the_whole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.methods.gather import gather_samples
from headctssl.methods.lejepa.lejepa import Lejepa
from headctssl.methods.lejepa.lejepa_loss import prediction_loss, random_directions, sigreg
from headctssl.methods.method import Method
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]


def slow_sigreg(embeddings: Tensor, directions: Tensor, knots: int, largest: float) -> float:
    """Algorithm 1 of arXiv 2511.08544 with complex numbers, one direction and one knot at a time, over [-t, t]."""
    total = []
    points = np.linspace(-largest, largest, 2 * knots - 1)
    for view in embeddings.double().numpy():
        for direction in directions.double().numpy().T:
            projected = view @ direction
            values = []
            for t in points:
                phi = np.exp(-0.5 * t * t)
                values.append(abs(np.mean(np.exp(1j * t * projected)) - phi) ** 2 * phi)
            total.append(len(view) * float(np.trapezoid(values, points)))
    return float(np.mean(total))


def test_sigreg_against_loops() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(3, 5, 4) * 1.7 + 0.3
    directions = random_directions(4, 6, seed=1)
    got = sigreg(embeddings, directions, knots=9, largest=2.5)
    assert got.item() == pytest.approx(slow_sigreg(embeddings, directions, 9, 2.5), rel=1e-4)


def test_prediction_loss_against_loops() -> None:
    torch.manual_seed(0)
    z = torch.randn(5, 3, 4)
    terms = []
    for sample in range(3):
        centre = [float((z[0, sample, d] + z[1, sample, d]) / 2) for d in range(4)]
        terms += [(float(z[v, sample, d]) - centre[d]) ** 2 for v in range(5) for d in range(4)]
    assert prediction_loss(z, 2).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert prediction_loss(z[:1].expand(5, -1, -1), 2).item() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(64, 400), st.integers(2, 32), st.integers(0, 10_000))
def test_sigreg_knows_a_gaussian_from_what_is_none(batch: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    directions = random_directions(channels, 128, seed)
    gaussian = sigreg(torch.randn(64, batch, channels), directions).item()  # 64 samples: one alone varies fivefold
    expected = math.sqrt(2 * math.pi) * (1 - 3**-0.5)  # of the integral without an end
    assert 0.6 * expected < gaussian < 1.6 * expected
    collapsed = sigreg(torch.randn(1, 1, channels).expand(1, batch, channels), directions).item()
    narrow = sigreg(0.2 * torch.randn(1, batch, channels), directions).item()
    wide = sigreg(5 * torch.randn(1, batch, channels), directions).item()
    assert min(collapsed, narrow, wide) > 5 * expected
    line = torch.zeros(1, batch, channels)
    line[..., 0] = torch.randn(batch)
    if channels > 2:
        assert sigreg(line, directions).item() > 2 * gaussian, "all in one channel is no isotropic Gaussian"


def test_directions_are_unit_vectors_and_follow_the_seed() -> None:
    a, b, c = random_directions(7, 9, 1), random_directions(7, 9, 1), random_directions(7, 9, 2)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(9))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_step_is_the_weighted_sum_and_reaches_the_encoder(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("lejepa", "vit_test", views={"local_count": 2, "local_shape": [12, 12, 12]}))
    assert isinstance(method, Lejepa)
    views = make_views(batch=4, local_shapes=((12, 12, 12), (12, 12, 12)))
    result = method.training_step(views, Clock(0, 10, 0, 5))
    logs = result.logs
    assert result.loss.item() == pytest.approx(float(0.05 * logs["sigreg"] + 0.95 * logs["prediction"]), rel=1e-5)
    result.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.encoder.parameters())
    with torch.no_grad():
        members = [*views.groups["global"], *views.groups["local"]]
        features = torch.cat([method.encoder(v).features for v in members])  # all views of one, then of the next
        order = torch.arange(16).view(4, 4).T.flatten()
        z = method.projector(features[order]).view(4, 4, -1).transpose(0, 1)
        assert logs["prediction"].item() == pytest.approx(prediction_loss(z, 2).item(), rel=1e-4)


def test_directions_change_with_the_step_but_not_with_the_generator(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("lejepa", "vit_test"))
    views, found = make_views(batch=4), []
    for step in (0, 0, 1):
        torch.manual_seed(len(found))
        found.append(method.training_step(views, Clock(step, 10, 0, 5)).loss.item())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("views", "batch"), [({"global_count": 1, "local_count": 0}, 4), ({"global_count": 2, "local_count": 0}, 1)]
)
def test_nothing_to_compare_is_refused(toolbox: Toolbox, views: dict[str, int], batch: int) -> None:
    run_settings, make_method, _ = toolbox
    run = run_settings("lejepa", "vit_test", views=views)
    run = run.model_copy(update={"training": run.training.model_copy(update={"batch_size": batch})})
    with pytest.raises(UsageError, match="nothing to compare"):
        make_method(run)


def test_two_processes_have_the_loss_gradients_and_statistics_of_one(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("lejepa", "vit_test"))
    assert isinstance(method, Lejepa)
    parts = [make_views(batch=2, seed=s) for s in (1, 2)]
    for part in parts:
        part.seed = 0  # the run's seed, the same on every process
    both = [torch.cat(pair) for pair in zip(*(v.groups["global"] for v in parts), strict=True)]
    whole = Views({"global": tuple(both)}, {}, torch.arange(4), seed=0, epoch=0)
    assert_halves_make_the_whole(method, parts, whole)


def test_one_process_gathers_nothing() -> None:
    rows = torch.randn(3, 2)
    assert gather_samples(rows) is rows
