"""Hounsfield units and windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import Window
from headctssl.errors import DataError
from headctssl.volume.hounsfield import rescaled, unpadded
from headctssl.volume.windows import to_input

WINDOWS = (Window(level=40, width=80), Window(level=80, width=200), Window(level=600, width=2800))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"]),
    st.sampled_from([1.0, 0.5, 2.0, -1.0]),
    st.sampled_from([0.0, -1024.0, -1000.5, 24.0]),
    st.integers(0, 2**32 - 1),
)
def test_rescaling_is_the_exact_formula(dtype: str, slope: float, intercept: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    low, high = (-5000, 5000) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    stored = rng.uniform(low, high, (3, 4, 5)).astype(kind)
    expected = np.clip(np.rint(stored.astype(np.float64) * slope + intercept), -1024, 32767)
    before = stored.copy()
    got = unpadded(rescaled(stored, slope, intercept))
    np.testing.assert_array_equal(stored, before)
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, expected)


def test_padding_becomes_air_and_rounding_is_to_nearest() -> None:
    padded = np.array([-1500, -2000, -1024, -3, 40], np.int16)
    assert unpadded(rescaled(padded)).tolist() == [-1024, -1024, -1024, -3, 40]
    assert rescaled(np.array([0.4, 0.6, -0.6])).tolist() == [0, 1, -1]
    assert unpadded(rescaled(np.zeros((0, 4), np.int16))).shape == (0, 4)


def test_no_copy_is_made_only_where_nothing_changes() -> None:
    stored = np.array([[-3000, 40], [0, 7]], np.int16)
    assert rescaled(stored, copy=False) is stored
    assert not np.shares_memory(rescaled(stored), stored)
    assert rescaled(stored, intercept=-1024.0, copy=False).tolist() == [[-4024, -984], [-1024, -1017]]
    assert stored.tolist() == [[-3000, 40], [0, 7]]
    unsigned = np.array([[65535, 0], [40000, 7]], np.uint16)
    assert rescaled(unsigned, intercept=-32768.0).dtype == np.int16
    assert rescaled(unsigned, intercept=-32768.0).tolist() == [[32767, -32768], [7232, -32761]]
    assert rescaled(unsigned).dtype == np.int32


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
def test_what_is_too_large_for_any_integer_stays_large(kind: type) -> None:
    stored = np.array([[200, 0]], kind)
    assert unpadded(rescaled(stored, 4e9, 0.0)).tolist() == [[32767, 0]]
    assert unpadded(rescaled(stored, -4e9, 0.0)).tolist() == [[-1024, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_without_a_value_are_an_error(bad: float) -> None:
    with pytest.raises(DataError, match="without a value"):
        rescaled(np.array([[1.0, bad]]))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_windows_scale_and_clip(dtype: torch.dtype) -> None:
    hu = torch.tensor([-1024, 0, 40, 80, 180, 600, 3071]).to(dtype).reshape(1, 1, 1, 1, 7).expand(2, 1, 3, 1, 7)
    before = hu.clone()
    out = to_input(hu, WINDOWS)
    assert out.shape == (2, 3, 3, 1, 7)
    assert out.dtype == torch.float32
    for channel, window in enumerate(WINDOWS):
        expected = ((hu[:, 0].double() - (window.level - window.width / 2)) / window.width).clamp(0, 1).float()
        torch.testing.assert_close(out[:, channel], expected)
    assert torch.equal(hu, before)
