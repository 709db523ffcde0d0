"""Tokens: one order, non-cubic grids, positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.networks.tokens import (
    gather_tokens,
    grid_from_tokens,
    grid_of,
    mask_from_indices,
    patchify,
    sincos_table,
    tokens_from_grid,
    unpatchify,
    voxels_of_mask,
)

SIDES = st.integers(1, 4)
TRIPLE = st.tuples(SIDES, SIDES, SIDES)


@settings(max_examples=25, deadline=None)
@given(grid=TRIPLE, patch=TRIPLE, channels=st.integers(1, 3))
def test_token_order_and_patch_order_against_loops(
    grid: tuple[int, int, int], patch: tuple[int, int, int], channels: int
) -> None:
    (d, h, w), (pz, py, px) = grid, patch
    volume = torch.randn(2, channels, d * pz, h * py, w * px)
    patches = patchify(volume, patch)
    assert patches.shape == (2, d * h * w, channels * pz * py * px)
    n = 0
    for z in range(d):
        for y in range(h):
            for x in range(w):
                block = volume[:, :, z * pz : (z + 1) * pz, y * py : (y + 1) * py, x * px : (x + 1) * px]
                assert torch.equal(patches[:, n], block.flatten(1))
                n += 1
    assert torch.equal(unpatchify(patches, grid, patch), volume)
    per_token = torch.randn(2, channels, d, h, w)
    assert torch.equal(grid_from_tokens(tokens_from_grid(per_token), grid), per_token)
    assert torch.equal(tokens_from_grid(per_token), patchify(per_token, (1, 1, 1)))


@settings(max_examples=25, deadline=None)
@given(grid=TRIPLE, patch=TRIPLE, data=st.data())
def test_mask_of_indices_covers_exactly_their_voxels(
    grid: tuple[int, int, int], patch: tuple[int, int, int], data: st.DataObject
) -> None:
    n = grid[0] * grid[1] * grid[2]
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    indices = torch.tensor([chosen])
    voxels = voxels_of_mask(mask_from_indices(indices, grid), patch)
    assert voxels.shape == (1, 1, *(g * p for g, p in zip(grid, patch, strict=True)))
    hit = patchify(voxels.float(), patch)
    expected = torch.zeros(1, n)
    expected[0, chosen] = 1
    assert torch.equal(hit, expected[..., None].expand_as(hit))
    assert gather_tokens(hit, indices).min() == 1


def test_grid_of_names_the_axis() -> None:
    assert grid_of((24, 36, 48), (12, 12, 8)) == (2, 3, 6)
    with pytest.raises(ValueError, match="axis y has 30 voxels"):
        grid_of((24, 30, 48), (12, 12, 12))
    with pytest.raises(ValueError, match="axis x"):
        grid_of((12, 12, 0), (12, 12, 12))


def test_sincos_table_against_the_formula() -> None:
    grid, width, base = (2, 3, 4), 32, 10_000.0
    table = sincos_table(grid, width, temperature=base).numpy()
    per_axis = width // 6
    n = 0
    for place in np.ndindex(*grid):
        for axis in range(3):
            for i in range(per_axis):
                angle = place[axis] / base ** (i / per_axis)
                assert table[n, 2 * axis * per_axis + i] == pytest.approx(np.sin(angle), abs=1e-6)
                assert table[n, (2 * axis + 1) * per_axis + i] == pytest.approx(np.cos(angle), abs=1e-6)
        assert not table[n, 6 * per_axis :].any(), "channels left over are zero"
        n += 1
    assert len(np.unique(table, axis=0)) == n, "every place has its own position"


def test_sincos_of_another_grid_spans_the_same_extent() -> None:
    fine, coarse = sincos_table((8, 8, 8), 48), sincos_table((4, 8, 8), 48, reference=(8, 8, 8))
    slow = slice(7, 8)  # the slowest sine of z is almost linear, so interpolation and evaluation agree
    fine_z, coarse_z = fine[:, slow].reshape(8, 8, 8)[:, 0, 0], coarse[:, slow].reshape(4, 8, 8)[:, 0, 0]
    torch.testing.assert_close(coarse_z, fine_z.reshape(4, 2).mean(1), atol=1e-6, rtol=1e-4)
