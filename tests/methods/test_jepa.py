"""Jepa: the step against a slow reference, context and targets, air, the teacher, an overfit, two processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.methods.jepa.jepa import Jepa, JepaSettings
from headctssl.methods.jepa.jepa_loss import normalised_targets, predicted_token_loss
from headctssl.methods.jepa.jepa_masks import split_tokens
from headctssl.methods.method import Method
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
CLOCK = Clock(0, 10, 0, 5)
SHAPE = (24, 12, 36)  # tokens (4, 2, 6)


def built(toolbox: Toolbox, preset: str = "vit_test", **chosen: object) -> tuple[Jepa, Views]:
    """A method, and views whose second scan has air in its lower half."""
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("jepa", preset, shape=SHAPE, views={"global_count": 1}, settings=chosen))
    assert isinstance(method, Jepa)
    views = make_views(batch=3, global_shapes=(SHAPE,))
    views.tissue["global"][0][1, :, :, :, 15:] = False
    return method, views


def slow_loss(prediction: Tensor, teacher: Tensor, counts: Tensor) -> float:
    """Smooth-L1 on LayerNormed tokens, number by number."""
    scans = []
    for b in range(len(prediction)):
        tokens = []
        for m in range(prediction.shape[1]):
            if not counts[b, m]:
                continue
            values = teacher[b, m].double().tolist()
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
            terms = []
            for said, value in zip(prediction[b, m].double().tolist(), values, strict=True):
                error = abs(said - (value - mean) / deviation)
                terms.append(0.5 * error**2 if error < 1 else error - 0.5)
            tokens.append(sum(terms) / len(terms))
        scans.append(sum(tokens) / len(tokens) if tokens else 0.0)
    return sum(scans) / len(scans)


def test_loss_against_loops() -> None:
    torch.manual_seed(0)
    prediction, teacher = torch.randn(3, 4, 5) * 2, torch.randn(3, 4, 5) * 3 + 1
    counts = torch.tensor([[1.0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]])
    got = predicted_token_loss(prediction, normalised_targets(teacher), counts)
    assert got.item() == pytest.approx(slow_loss(prediction, teacher, counts), rel=1e-5)


@pytest.mark.parametrize("preset", ["vit_test", "primus_test"])
def test_step_against_a_slow_reference(preset: str, toolbox: Toolbox) -> None:
    """Scan by scan, the encoders on voxels whose unused tokens are noise: nothing else is looked at."""
    method, views = built(toolbox, preset)
    method.eval()
    split = method._draw(views, 0)
    volume = views.groups["global"][0]
    for parameter in method.teacher_encoder.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    losses = []
    with torch.no_grad():
        got = method.training_step(views, CLOCK).loss.item()
        for b in range(3):
            context, targets = split.context[b : b + 1], split.targets[b : b + 1]
            used = torch.cat([context, targets], dim=1).sort(dim=1).values
            teacher = method.teacher_encoder(volume[b : b + 1], keep=used).tokens
            rows = [int((used[0] == t).nonzero()) for t in targets[0]]
            out = method.encoder(volume[b : b + 1], keep=context)
            said = method.predictor(out.tokens, out.cls, context, targets)
            losses.append(slow_loss(said, teacher[:, rows], split.counts[b : b + 1]))
    assert got == pytest.approx(np.mean(losses), rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)).filter(lambda g: math.prod(g) > 1),
    st.floats(0.05, 1),
    st.floats(0.05, 0.9),
    st.floats(0, 1),
    st.integers(0, 10_000),
)
def test_context_and_targets_are_apart_and_prefer_tissue(
    grid: tuple[int, int, int], token_share: float, context_share: float, filled: float, seed: int
) -> None:
    total = math.prod(grid)
    used = max(2, round(token_share * total))
    number = min(max(round(context_share * used), 1), used - 1)
    tissue = np.random.default_rng(seed + 1).random(grid) < filled

    def draw() -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        return split_tokens(tissue, generator, used=used, context=number, area=0.75, aspect=(0.3, 3.0))

    context, targets = draw()
    assert (len(context), len(targets)) == (number, used - number)
    assert len(set(context.tolist()) | set(targets.tolist())) == used, "no token twice"
    assert (np.diff(context) > 0).all()
    assert (np.diff(targets) > 0).all()
    again = draw()
    assert np.array_equal(context, again[0])
    assert np.array_equal(targets, again[1])
    flat = tissue.ravel()
    left = np.setdiff1d(np.flatnonzero(flat), np.concatenate([context, targets]))
    assert flat[targets].all() or left.size == 0, "air is predicted only where no tissue is left"


def test_the_block_hides_the_middle_of_the_head_and_the_context_lies_around_it() -> None:
    """In an ellipse of tissue the block covers what it can, and context comes as a part that has no holes in depth."""
    grid = (8, 12, 12)
    _, y, x = np.mgrid[:8, :12, :12]
    tissue = ((y - 5.5) / 6) ** 2 + ((x - 5.5) / 5) ** 2 < 1
    foreground = int(tissue.sum())
    used, number = foreground, round(0.2 * foreground)
    shares = []
    for seed in range(30):
        context, targets = split_tokens(
            tissue, np.random.default_rng(seed), used=used, context=number, area=0.75, aspect=(0.3, 3.0)
        )
        assert tissue.ravel()[context].all()
        assert len(targets) == foreground - number, "all of the foreground is either seen or predicted"
        assert tissue.ravel()[targets].all()
        places = np.zeros(grid, bool)
        places.ravel()[context] = True
        slices = places.any(axis=(1, 2))
        assert slices.sum() < 8, "trimmed along depth"
        column = places.any(axis=0)
        shares.append(1 - column.sum() / tissue.any(axis=0).sum())
    assert 0.3 < np.mean(shares) < 0.85, "most columns are hidden from bottom to top"


def test_a_scan_is_drawn_without_looking_at_the_others(toolbox: Toolbox) -> None:
    method, views = built(toolbox)
    whole = method._draw(views, 0)

    def rows(groups: dict[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
        return {name: tuple(v[1:2] for v in members) for name, members in groups.items()}

    alone = replace(
        views,
        groups=rows(views.groups),
        inside=rows(views.inside),
        tissue=rows(views.tissue),
        sample_index=views.sample_index[1:2],
    )
    part = method._draw(alone, 0)
    assert torch.equal(part.context[0], whole.context[1])
    assert torch.equal(part.targets[0], whole.targets[1])


def test_air_and_what_was_not_measured_never_count(toolbox: Toolbox) -> None:
    method, views = built(toolbox)
    views.inside["global"][0][0, :, :12] = 0.2
    views.anonymised["global"] = (torch.zeros_like(views.inside["global"][0]),)
    views.anonymised["global"][0][2, :, :, :, :18] = 1.0
    split = method._draw(views, 0)
    z, x = split.targets // 12, split.targets % 6
    assert not split.counts[0][z[0] < 2].any()
    assert not split.counts[1][x[1] > 2].any(), "voxels from 15 on are air: token 2 holds some tissue, 3 none"
    assert not split.counts[2][x[2] < 3].any()
    assert (split.counts.sum(1) > 0).all()
    strict, _ = built(toolbox, token_tissue=1.0)
    assert not strict._draw(views, 0).counts[1][strict._draw(views, 0).targets[1] % 6 > 1].any()


def test_a_scan_of_air_adds_nothing_and_breaks_nothing(toolbox: Toolbox) -> None:
    method, views = built(toolbox)
    views.tissue["global"][0][:] = False
    result = method.training_step(views, CLOCK)
    assert result.loss.item() == 0
    result.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


def test_teacher_follows_in_a_straight_line_without_gradient(toolbox: Toolbox) -> None:
    method, views = built(toolbox)
    assert [round(method._momentum(Clock(s, 11, 0, 5)), 4) for s in (0, 5, 10)] == [0.994, 0.997, 1.0]
    method.training_step(views, CLOCK).loss.backward()
    assert all(p.grad is None for p in method.teacher_encoder.parameters())
    before = [p.clone() for p in method.teacher_encoder.parameters()]
    with torch.no_grad():
        for p in method.encoder.parameters():
            p += 1.0
    method.after_step(CLOCK)
    for old, new in zip(before, method.teacher_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.006, atol=1e-5, rtol=1e-4)
    assert method.encoder_to_export() is method.teacher_encoder
    assert not method.train().teacher_encoder.training


@pytest.mark.parametrize("preset", ["vit_test", "primus_test"])
def test_predictor_learns_what_a_resting_teacher_says(preset: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("jepa", preset, settings={"teacher_momentum": 1.0}, views={"global_count": 1}))
    views = make_views(batch=4, global_shapes=((24, 24, 24),), detail=2)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    lines = []
    for step in range(60):
        result = method.training_step(views, Clock(step, 60, 0, 60))
        optimizer.zero_grad()
        result.loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        method.after_step(Clock(step, 60, 0, 60))
        lines.append({k: float(v) for k, v in result.logs.items()})
    assert lines[-1]["relative_error"] < 0.35 * lines[0]["relative_error"]
    assert lines[-1]["target_std"] == lines[0]["target_std"]


def test_a_teacher_that_says_one_thing_everywhere_is_seen_in_the_log(toolbox: Toolbox) -> None:
    method, views = built(toolbox)
    assert float(method.training_step(views, CLOCK).logs["target_std"]) > 0.2
    nn.init.zeros_(method.teacher_encoder.norm.weight)
    nn.init.normal_(method.teacher_encoder.norm.bias)
    assert float(method.training_step(views, CLOCK).logs["target_std"]) < 1e-4


def test_a_single_token_and_wrong_ranges_are_refused(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    with pytest.raises(UsageError, match="one block"):
        make_method(run_settings("jepa", "vit_test", shape=(6, 6, 6)))
    with pytest.raises(UsageError, match="block_aspect"):
        run_settings("jepa", "vit_test", settings={"block_aspect": [3.0, 0.3]})


def test_published_numbers() -> None:
    s = JepaSettings()
    assert (s.block_area, s.block_aspect, s.context_share, s.token_share) == (0.75, (0.3, 3.0), 0.2, 0.9)
    assert (s.predictor_width, s.predictor_depth, s.teacher_momentum, s.teacher_momentum_end) == (768, 12, 0.994, 1.0)
    defaults = Jepa.optimizer_defaults("transformer")
    assert (defaults.lr, defaults.weight_decay, defaults.clip_norm, defaults.warmup_share) == (3.75e-4, 0.05, 1.0, 0.1)
    assert defaults.lr * defaults.min_lr_share == pytest.approx(1e-6)
