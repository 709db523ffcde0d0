"""Tests of leaving tokens of air out: which are taken, and that objectives see only those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import UsageError
from headctssl.methods.token_share import used_tokens
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Views]]

PATCH = (6, 6, 6)


def half_air(views: Views) -> Views:
    """Tissue in the lower half of every view alone."""
    for members in views.tissue.values():
        for tissue in members:
            tissue[:, :, : tissue.shape[2] // 2] = False
    return views


@given(share=st.floats(0.05, 1.0), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_tissue_is_taken_before_air_and_every_scan_uses_as_many(share: float, seed: int, toolbox: Toolbox) -> None:
    views = half_air(toolbox[2](batch=3, seed=seed))
    for kept in used_tokens(views, "global", PATCH, share):
        if kept is None:
            assert share == 1.0
            continue
        assert kept.shape == (3, max(1, round(share * 64)))
        assert (kept.diff(dim=1) > 0).all(), "ascending, none twice"
        assert ((kept >= 32).sum(1) == min(32, kept.shape[1])).all(), "the 32 with tissue first"


def test_the_draw_of_a_scan_does_not_depend_on_the_others(toolbox: Toolbox) -> None:
    both = half_air(toolbox[2](batch=2))
    alone = half_air(toolbox[2](batch=2))
    for name, members in alone.groups.items():
        alone.groups[name] = tuple(v[1:] for v in members)
        alone.tissue[name] = tuple(t[1:] for t in alone.tissue[name])
    alone.sample_index = alone.sample_index[1:]
    for one, other in zip(
        used_tokens(both, "global", PATCH, 0.3), used_tokens(alone, "global", PATCH, 0.3), strict=True
    ):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one[1:], other)


@pytest.mark.parametrize("method_name", ["dino", "dinov2"])
def test_voxels_of_tokens_left_out_change_nothing(method_name: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    run = run_settings(method_name, "vit_test", views={"local_count": 1}, settings={"token_share": 0.5})
    losses = []
    for air in (0.0, 1.0):
        views = half_air(make_views(batch=4, local_shapes=((12, 12, 12),)))
        for name in ("global", "local"):
            for view in views.groups[name]:
                view[:, :, : view.shape[2] // 2] = air
        method = make_method(run)
        assert method.views().tissue
        result = method.training_step(views, Clock(3, 100, 0, 10))
        result.loss.backward()
        losses.append(result.loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    whole = make_method(run_settings(method_name, "vit_test", views={"local_count": 1}))
    assert not whole.views().tissue
    assert whole.training_step(views, Clock(3, 100, 0, 10)).loss != losses[1]


def test_masked_tokens_are_among_those_encoded(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("dinov2", "vit_test", settings={"token_share": 0.05, "mask_ratio": [0.1, 0.1]}))
    views = half_air(make_views(batch=4))
    kept = [tokens for tokens in used_tokens(views, "global", PATCH, 0.05) if tokens is not None]
    drawn = method._draw(views, (4, 4, 4), torch.cat(kept))
    rows, columns = drawn.places // 3, drawn.places % 3  # 3 of 64 tokens are encoded
    assert drawn.mask.flatten(1)[rows, torch.cat(kept)[rows, columns]].all()
    assert rows.unique().numel() == 4, "every view that is to be masked has a masked token, and no other"
    assert drawn.weights.sum().item() == pytest.approx(1.0)
    result = method.training_step(views, Clock(3, 100, 0, 10))
    assert torch.isfinite(result.loss)


def test_encoders_that_compute_every_place_refuse(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    with pytest.raises(UsageError, match="token_share"):
        make_method(run_settings("dino", "resenc_test", settings={"token_share": 0.5}))
