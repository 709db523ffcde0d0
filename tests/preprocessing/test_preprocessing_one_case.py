"""Tests of one case: where things are after cropping and resampling, and what is left untouched."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_heads import head

from headctssl.contract import StorageRule
from headctssl.errors import ContractError, DataError
from headctssl.preprocessing.index import case_path
from headctssl.preprocessing.masks import mask_on_grid
from headctssl.preprocessing.one_case import grid_of_box, preprocess_volume
from headctssl.types import Volume, VolumeInfo


def ball_in_head(spacing: tuple[float, float, float], centre_mm: tuple[float, float, float]) -> Volume:
    """A head of 30 HU with a ball of 1000 HU at a known place."""
    shape = tuple(round(200 / s) for s in spacing)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    mm = [i * s for i, s in zip((z, y, x), spacing, strict=True)]
    radius = np.sqrt(((mm[0] - 100) / 75) ** 2 + ((mm[1] - 100) / 90) ** 2 + ((mm[2] - 100) / 70) ** 2)
    hu = np.where(radius < 1, 30, -1000).astype(np.int16)
    distance = sum((m - c) ** 2 for m, c in zip(mm, centre_mm, strict=True))
    hu[distance < 15**2] = 1000
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-11.0, 22.0, 33.0)
    return Volume(hu, affine, VolumeInfo("nifti", shape, spacing))


@settings(max_examples=12, deadline=None)
@given(
    spacing=st.tuples(st.floats(0.8, 5.0), st.floats(0.7, 2.5), st.floats(0.7, 2.5)),
    target=st.tuples(st.floats(1.0, 4.0), st.floats(1.0, 3.0), st.floats(1.0, 3.0)),
    centre=st.tuples(*[st.floats(85.0, 115.0)] * 3),
)
def test_a_landmark_stays_where_it_is_in_millimetres(
    spacing: tuple[float, float, float], target: tuple[float, float, float], centre: tuple[float, float, float]
) -> None:
    volume = ball_in_head(spacing, centre)
    done = preprocess_volume(volume, StorageRule(spacing_mm=target))
    assert done.spacing_mm == pytest.approx(target, rel=2e-3)

    def ball_mm(hu: np.ndarray, affine: np.ndarray) -> np.ndarray:
        places = np.tensordot(affine[:3, :3], np.indices(hu.shape), 1) + affine[:3, 3].reshape(3, 1, 1, 1)
        near = sum((p - c - o) ** 2 for p, c, o in zip(places, centre, volume.affine[:3, 3], strict=True)) < 27**2
        weight = np.where(near, hu.astype(float) - 30, 0)  # signed: a sharp kernel overshoots at the ball's edge
        return np.array([(weight * place).sum() / weight.sum() for place in places])

    before, after = ball_mm(volume.hu, volume.affine), ball_mm(done.hu[0], done.affine)
    assert np.abs(before - after).max() < 0.1


def test_the_same_spacing_copies_voxels() -> None:
    volume = ball_in_head((2.0, 2.0, 2.0), (100.0, 100.0, 100.0))
    done = preprocess_volume(volume, StorageRule(spacing_mm=(2.0, 2.0, 2.0)))
    box = tuple(slice(a, b) for a, b in done.crop_box)
    assert np.array_equal(done.hu[0], volume.hu[box])
    assert np.allclose(done.affine[:3, 3], volume.affine[:3, :3] @ [a for a, _ in done.crop_box] + volume.affine[:3, 3])


def test_the_box_is_the_head_with_ten_millimetres_clamped_to_the_scan() -> None:
    volume = head(0, bleed=False, spacing=2.0)
    done = preprocess_volume(volume, StorageRule(spacing_mm=(2.0, 2.0, 2.0)))
    inside = [(a, b) for a, b in done.head_box]
    for (low, high), size, (crop_low, crop_high), full in zip(
        inside, done.hu.shape[1:], done.crop_box, volume.hu.shape, strict=True
    ):
        assert 0 <= low < high <= size
        assert low in (5, 0)
        assert size - high in (5, 0)
        assert 0 <= crop_low < crop_high <= full
    used = np.nonzero(done.head_mask)
    for axis, (low, high) in enumerate(done.head_box):
        assert low - 1 <= used[axis].min()
        assert used[axis].max() <= high
    assert done.head_mask.shape == done.hu.shape[1:]
    assert np.median(done.hu[0][done.head_mask]) == pytest.approx(30, abs=5)


def column(slices: int, spacing: tuple[float, float, float], sides: tuple[int, int] = (100, 100)) -> Volume:
    """A head of 40 HU that both ends of the scan cut off."""
    y, x = np.ogrid[: sides[0], : sides[1]]
    plane = np.where((y - sides[0] / 2) ** 2 + (x - sides[1] / 2) ** 2 < 45**2, 40, -1000).astype(np.int16)
    hu = np.repeat(plane[None], slices, axis=0)
    return Volume(hu, np.diag([*spacing, 1.0]), VolumeInfo("nifti", hu.shape, spacing))


@settings(max_examples=20, deadline=None)
@given(thickness=st.floats(0.6, 5.0), target=st.floats(1.0, 6.0))
def test_no_air_is_mixed_into_the_planes_where_the_scan_ends(thickness: float, target: float) -> None:
    volume = column(round(100 / thickness), (thickness, 2.0, 2.0))
    done = preprocess_volume(volume, StorageRule(spacing_mm=(target, 2.0, 2.0)))
    middle = done.hu[0, :, done.hu.shape[2] // 2, done.hu.shape[3] // 2]
    assert middle.min() == middle.max() == 40


def test_a_plane_of_a_head_is_no_volume() -> None:
    assert preprocess_volume(column(2, (5.0, 2.0, 2.0)), StorageRule(spacing_mm=(5.0, 2.0, 2.0))).hu.shape[1] == 2
    with pytest.raises(DataError, match="a plane of a head") as told:
        preprocess_volume(column(1, (5.0, 2.0, 2.0)), StorageRule())
    assert str(told.value.got).startswith("5.0 x ")


def test_values_are_clipped_and_rounded_and_nothing_else_is_erased() -> None:
    volume = ball_in_head((2.0, 2.0, 2.0), (100.0, 100.0, 100.0))
    hu = volume.hu.copy()
    hu[50, 50, 50] = 9000
    hu[0] = -3000
    hu[:, 0, :] = 400  # a holder at the border of the scan
    done = preprocess_volume(Volume(hu, volume.affine, volume.info), StorageRule(spacing_mm=(2.0, 2.0, 2.0)))
    assert done.hu.dtype == np.int16
    assert done.hu.min() >= -1024
    assert done.hu.max() == 3071
    if done.crop_box[1][0] == 0:
        assert (done.hu[0, :, 0] == 400).any()


def test_unknown_rules_and_empty_scans_are_refused() -> None:
    volume = ball_in_head((4.0, 4.0, 4.0), (100.0, 100.0, 100.0))
    with pytest.raises(ContractError, match="crop_rule"):
        preprocess_volume(volume, StorageRule(crop_rule="whole_scan:1"))
    with pytest.raises(ContractError, match="resample_rule"):
        preprocess_volume(volume, StorageRule(resample_rule="nearest:1"))
    empty = Volume(np.full((40, 60, 60), -1000, np.int16), volume.affine, volume.info)
    with pytest.raises(DataError):
        preprocess_volume(empty, StorageRule())


@pytest.mark.parametrize("spacing", [(5.0, 0.7, 0.7), (1.0, 0.92, 0.92), (2.5, 1.1, 1.1)])
def test_masks_follow_the_image(spacing: tuple[float, float, float]) -> None:
    shape = tuple(round(150 / s) for s in spacing)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    centre = [61.3, 83.7, 70.2]
    distance = sum(((i * s - c) ** 2) for i, s, c in zip((z, y, x), spacing, centre, strict=True))
    box = ((1, shape[0]), (3, shape[1] - 2), (0, shape[2] - 5))
    grid = grid_of_box(box, spacing, (1.0, 1.0, 1.0))
    stored = mask_on_grid(distance < 16**2, box, grid)
    assert stored.shape == grid.shape
    assert stored.sum() == pytest.approx(4 / 3 * np.pi * 16**3, rel=0.05)
    for axis, index in enumerate(np.nonzero(stored)):
        raw = grid.start[axis] + grid.step[axis] * index.mean()
        assert raw * spacing[axis] == pytest.approx(centre[axis], abs=0.35)
    assert not mask_on_grid(np.zeros(shape, bool), box, grid).any()


def test_case_files_are_spread_by_the_digest_of_their_id() -> None:
    digest = hashlib.sha256(b"case_1").hexdigest()
    assert case_path(Path("s"), "case_1") == Path("s") / digest[:2] / "case_1.b2nd"
