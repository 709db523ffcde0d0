"""Finding the head: holders, tables, necks, narrow fields of view, padding, thick slices."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from headctssl.errors import DataError
from headctssl.types import Triple
from headctssl.volume.head import find_head

RADII_MM = (85.0, 95.0, 75.0)  # z, y, x


def coordinates(size_mm: Triple, spacing: Triple) -> list[np.ndarray]:
    """Millimetres from the centre of the scan, one open grid per axis."""
    axes = [(np.arange(round(n / s)) - (round(n / s) - 1) / 2) * s for n, s in zip(size_mm, spacing, strict=True)]
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def head_scan(
    spacing: Triple,
    size_mm: Triple = (200, 250, 250),
    *,
    holder: bool = True,
    table: bool = True,
    neck: bool = False,
    centre: Triple = (0, 0, 0),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A scan in HU and where its head is."""
    z, y, x = coordinates(size_mm, spacing)
    z, y, x = z - centre[0], y - centre[1], x - centre[2]
    radius = np.sqrt((z / RADII_MM[0]) ** 2 + (y / RADII_MM[1]) ** 2 + (x / RADII_MM[2]) ** 2)
    hu = np.full(radius.shape, -1000.0)
    if holder:  # a plastic trough 4 mm thick that touches the back of the head, filled with foam to a second wall
        trough = np.sqrt((y / (RADII_MM[1] + 3)) ** 2 + (x / (RADII_MM[2] + 18)) ** 2) + 0 * z
        below = y > 0
        hu[(trough > 1.0) & (trough < 1.04) & below & (z < 60)] = 90
        hu[(trough >= 1.04) & (trough < 1.15) & below & (z < 60)] = -930
        hu[(trough >= 1.15) & (trough < 1.17) & below & (z < 60)] = -150
    if table:
        hu[(np.abs(y - 118) < 3) & (np.abs(x) < 110) & (z < 0)] = -80
    head = radius <= 1
    if neck:
        column = (np.sqrt((y / 60) ** 2 + (x / 60) ** 2) <= 1) & (z < 0)
        head = head | column
    hu[head] = 0
    hu[(radius < 0.97) & (radius > 0.91)] = 1000
    hu[radius <= 0.91] = 35
    sinus = np.sqrt(((z + 40) / 18) ** 2 + ((y + 62) / 15) ** 2 + (x / 25) ** 2) < 1
    hu[sinus] = -1000
    hu += np.random.default_rng(seed).normal(0, 12, hu.shape)
    hu[(np.sqrt(y**2 + x**2) > size_mm[1] / 2 + 5) & (z == z)] = -1500
    return np.clip(hu, -1500, 3071).astype(np.int16), head


def true_bounds(head: np.ndarray) -> np.ndarray:
    index = np.argwhere(head)
    return np.stack([index.min(axis=0), index.max(axis=0) + 1], axis=1)


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (5.0, 0.9, 0.9), (7.0, 0.5, 0.5), (0.7, 0.7, 0.7), (3.0, 3.0, 3.0)]
)
@pytest.mark.parametrize("equipment", [False, True])
def test_box_and_mask_are_those_of_the_head(spacing: Triple, equipment: bool) -> None:
    hu, head = head_scan(spacing, holder=equipment, table=equipment)
    before = hu.copy()
    found = find_head(hu, spacing)
    np.testing.assert_array_equal(hu, before)
    off_mm = (np.array(found.box) - true_bounds(head)) * np.array(spacing)[:, None]
    slack = 2 * np.maximum(4.5, spacing)[:, None]  # one step of the search on the outside, the opening on the inside
    assert (np.abs(off_mm) <= slack).all(), off_mm
    mask = found.mask
    assert mask.shape == hu.shape
    assert mask.dtype == np.bool_
    assert 2 * (mask & head).sum() / (mask.sum() + head.sum()) > 0.95
    assert mask[head].mean() > 0.95  # the sinus too
    assert (mask & ~head).sum() / head.sum() < 0.05


def test_the_mask_on_another_grid_is_the_resampled_mask() -> None:
    spacing = (5.0, 0.9, 0.9)
    hu, _ = head_scan(spacing)
    found = find_head(hu, spacing)
    step = tuple(2.0 / s for s in spacing)
    shape = (90, 110, 100)
    got = found.mask_on((2.0, 10.0, 12.0), (step[0], step[1], step[2]), shape)
    index = [np.rint(a + s * np.arange(n)).astype(int) for a, s, n in zip((2, 10, 12), step, shape, strict=True)]
    inside = [i < n for i, n in zip(index, hu.shape, strict=True)]
    full = found.mask[np.ix_(*(i[k] for i, k in zip(index, inside, strict=True)))]
    assert (got[np.ix_(*inside)] != full).mean() < 0.02
    assert not got[~inside[0]].any()


def test_a_head_that_fills_the_field_of_view() -> None:
    hu, head = head_scan((1, 1, 1), (120, 180, 140), holder=False, table=False)
    found = find_head(hu, (1, 1, 1))
    assert found.box == ((0, 120), (0, 180), (0, 140))
    assert found.mask[head].mean() > 0.98
    solid = np.full((20, 100, 100), 40, np.int16)
    assert find_head(solid, (5, 2, 2)).mask.all()


def test_a_head_at_the_border() -> None:
    hu, head = head_scan((2, 1, 1), (200, 250, 250), centre=(0, 20, -60))
    found = find_head(hu, (2, 1, 1))
    off = (np.array(found.box) - true_bounds(head)) * np.array([[2], [1], [1]])
    assert np.abs(off).max() <= 9


def test_neck_and_long_scans() -> None:
    hu, head = head_scan((2, 1.5, 1.5), (220, 250, 250), neck=True)
    (bottom, top), _, _ = find_head(hu, (2, 1.5, 1.5)).box
    assert bottom == 0
    assert abs(top - true_bounds(head)[0, 1]) <= 4
    hu, head = head_scan((3, 2, 2), (480, 250, 250), neck=True, centre=(120, 0, 0))
    (bottom, top), _, _ = find_head(hu, (3, 2, 2)).box
    assert 290 <= (top - bottom) * 3 <= 310  # the neck below 300 mm is left out
    assert abs(top - true_bounds(head)[0, 1]) <= 3


@pytest.mark.parametrize(
    "hu",
    [
        np.full((30, 64, 64), -1024, np.int16),
        np.pad(np.full((20, 20, 20), 40, np.int16), 20, constant_values=-1000),  # 20 mm of tissue
        np.pad(np.full((30, 4, 60), 40, np.int16), 20, constant_values=-1000),  # a plate
    ],
)
def test_no_head_is_an_error_that_gives_sizes(hu: np.ndarray) -> None:
    with pytest.raises(DataError, match="no head") as error:
        find_head(hu, (1, 1, 1))
    assert "ml" in str(error.value.got)
    assert error.value.do


def data_folder() -> Path:
    folder = os.environ.get("headctssl_test_data")
    if not folder:
        pytest.skip("headctssl_test_data is not set: no real CT files here")
    return Path(folder)


@pytest.mark.realdata
def test_the_head_of_a_real_tilted_scan_without_its_holder() -> None:
    import pydicom

    from headctssl.volume.hounsfield import to_hu

    files = [pydicom.dcmread(p) for p in sorted((data_folder() / "head_ct_ge_tilt").glob("*.dcm"))]
    files.sort(key=lambda f: float(f.ImagePositionPatient[2]))
    hu = np.stack([to_hu(f.pixel_array, float(f.RescaleSlope), float(f.RescaleIntercept)) for f in files])
    found = find_head(hu, (5.6, 0.488, 0.488))
    # Read off the pictures: the head spans rows 60-480 and columns 60-450; the holder's arms reach column 40 and 465.
    (z0, z1), (y0, y1), (x0, x1) = found.box
    assert (z0, z1) == (0, 28)
    assert 30 <= y0 <= 62
    assert 475 <= y1 <= 495
    assert 48 <= x0 <= 66
    assert 440 <= x1 <= 460
    assert 2800 < found.mask.sum() * 5.6 * 0.488**2 / 1000 < 4200
