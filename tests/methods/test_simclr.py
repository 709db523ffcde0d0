"""Simclr: NT-Xent against loops and its properties, what a step does, one and two processes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from halves import assert_halves_make_the_whole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.methods.method import Method
from headctssl.methods.simclr.simclr import Simclr
from headctssl.methods.simclr.simclr_loss import nt_xent
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]


def slow_nt_xent(z: Tensor, temperature: float) -> float:
    """Algorithm 1 of arXiv 2002.05709: z_(2k-1) and z_(2k) are the two views of sample k; one pair at a time."""
    count = z.shape[1]
    rows = [z[view, sample].double() for sample in range(count) for view in range(2)]

    def similarity(i: int, j: int) -> float:
        return float(rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm()))

    def one(i: int, j: int) -> float:
        below = sum(math.exp(similarity(i, k) / temperature) for k in range(2 * count) if k != i)
        return -math.log(math.exp(similarity(i, j) / temperature) / below)

    return sum(one(2 * k, 2 * k + 1) + one(2 * k + 1, 2 * k) for k in range(count)) / (2 * count)


@given(
    batch=st.integers(2, 9), channels=st.integers(2, 12), temperature=st.floats(0.05, 2.0), seed=st.integers(0, 9999)
)
@settings(max_examples=40, deadline=None)
def test_nt_xent_against_loops_and_whatever_the_order_and_length(
    batch: int, channels: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, batch, channels, generator=generator)
    loss = nt_xent(z, temperature)[0].item()
    assert loss == pytest.approx(slow_nt_xent(z, temperature), rel=1e-4, abs=1e-5)
    order = torch.randperm(batch, generator=generator)
    assert nt_xent(z[:, order], temperature)[0].item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert nt_xent(z.flip(0), temperature)[0].item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    lengths = torch.rand(2, batch, 1, generator=generator) * 5 + 0.1
    assert nt_xent(z * lengths, temperature)[0].item() == pytest.approx(loss, rel=1e-4, abs=1e-5)


def test_nt_xent_stays_in_float32_under_autocast() -> None:
    z = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, cosines = nt_xent(z, 0.1)
    assert cosines.dtype == torch.float32
    assert loss.item() == pytest.approx(nt_xent(z, 0.1)[0].item(), rel=1e-6)


@given(batch=st.integers(2, 12), temperature=st.floats(0.01, 2.0), zeros=st.booleans())
@settings(max_examples=40, deadline=None)
def test_nt_xent_is_finite_with_duplicates_and_zeros(batch: int, temperature: float, zeros: bool) -> None:
    z = (torch.zeros(2, batch, 3) if zeros else torch.ones(2, batch, 3)).requires_grad_()
    loss, _ = nt_xent(z, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2 * batch - 1), rel=1e-3), "all alike: a guess among 2 B - 1"
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_nt_xent_is_small_where_scans_are_told_apart() -> None:
    apart = torch.eye(8).expand(2, 8, 8)
    expected = math.log(1 + 14 * math.exp(-2)), math.log(7) + 0.5
    assert nt_xent(apart, 0.5)[0].item() == pytest.approx(expected[0], rel=1e-5)
    assert nt_xent(torch.stack([torch.eye(8), torch.eye(8).roll(1, 0)]), 0.5)[0].item() > expected[1]


def test_few_negatives_still_push_at_the_published_temperature() -> None:
    """The gradient of NT-Xent is that of the cosines times 1 - p, p the chance of the positive (arXiv 2110.06848).

    At temperature .5 and 8 scans it is still .65 for a pair that is found with ease, so that small batches need no
    other temperature; at .1 it would be all but gone.
    """

    def push(temperature: float, scans: int) -> float:
        easy, others = math.exp(1 / temperature), 2 * scans - 2  # the positive's cosine is 1, the others' 0
        return 1 - easy / (easy + others)

    assert push(0.5, 8) > 0.6
    assert push(0.1, 8) < 1e-3
    z = torch.eye(8).expand(2, 8, 8).clone().requires_grad_()
    probability = math.exp(2) / (math.exp(2) + 14)
    nt_xent(z, 0.5)[0].backward()
    assert z.grad is not None
    pull = 14 * (1 - probability) / 14 / 0.5  # what each of the 14 others adds, over the temperature
    assert z.grad[0, 0, 1].item() == pytest.approx(2 * 2 * pull / 14 / 16, rel=1e-4)


@pytest.mark.parametrize("encoder", ["vit_test", "resenc_test"])
def test_four_scans_are_told_apart(encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    shape = (12, 12, 12)
    method = make_method(run_settings("simclr", encoder, shape=shape))
    views = make_views(batch=4, global_shapes=(shape, shape))
    first, second = views.groups["global"]
    views.groups["global"] = (first, 0.7 * first + 0.3 * second)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    logs = {}
    for step in range(40):
        result = method.training_step(views, Clock(step, 40, 0, 40))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        logs = {"loss": result.loss.item(), **{k: float(v) for k, v in result.logs.items()}}
    perfect = math.log(1 + 6 * math.exp((-1 / 3 - 1) / 0.5))  # four corners of a tetrahedron
    assert logs["loss"] < perfect + 0.1
    assert logs["found"] == 1
    assert logs["cosine_positive"] > 0.95
    assert logs["cosine_negative"] == pytest.approx(-1 / 3, abs=0.05)


def test_logs_are_those_of_loops(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("simclr", "vit_test"))
    assert isinstance(method, Simclr)
    views = make_views(batch=3)
    result = method.training_step(views, Clock(0, 10, 0, 5))
    with torch.no_grad():
        features = [method.encoder(v).features for v in views.groups["global"]]
        z = functional.normalize(method.projector(torch.cat(features)), dim=-1)
    cosines = z @ z.T
    positive = [float(cosines[i, (i + 3) % 6]) for i in range(6)]
    negative = [float(cosines[i, j]) for i in range(6) for j in range(6) if j not in (i, (i + 3) % 6)]
    assert result.logs["cosine_positive"].item() == pytest.approx(sum(positive) / 6, abs=1e-4)
    assert result.logs["cosine_negative"].item() == pytest.approx(sum(negative) / 24, abs=1e-4)
    assert result.loss.item() == pytest.approx(slow_nt_xent(z.view(2, 3, -1), 0.5), rel=1e-3)


def test_views_overlap_as_the_settings_say(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    (group,) = make_method(run_settings("simclr", "vit_test")).views().groups
    assert (group.count, group.overlap) == (2, 0.5)
    (group,) = make_method(run_settings("simclr", "vit_test", settings={"least_overlap": 0.0})).views().groups
    assert group.overlap == 0


@pytest.mark.parametrize(("views", "batch"), [({"global_count": 1}, 4), ({"global_count": 3}, 4), ({}, 1)])
def test_what_gives_no_pairs_is_refused(toolbox: Toolbox, views: dict[str, int], batch: int) -> None:
    run_settings, make_method, _ = toolbox
    run = run_settings("simclr", "vit_test", views=views)
    run = run.model_copy(update={"training": run.training.model_copy(update={"batch_size": batch})})
    with pytest.raises(UsageError, match="nothing to compare"):
        make_method(run)


def test_two_processes_have_the_loss_gradients_and_statistics_of_one(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("simclr", "vit_test"))
    assert isinstance(method, Simclr)
    parts = [make_views(batch=2, seed=s) for s in (1, 2)]
    both = [torch.cat(pair) for pair in zip(*(v.groups["global"] for v in parts), strict=True)]
    whole = Views({"global": tuple(both)}, {}, torch.arange(4), seed=0, epoch=0)
    assert_halves_make_the_whole(method, parts, whole)
