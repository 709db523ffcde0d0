"""Finding the head: holders, tables, necks, narrow fields of view, padding, thick slices."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from headctssl.errors import DataError
from headctssl.types import Triple
from headctssl.volume.head import _eroded, _filled, _grown, find_head

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


BLOCK = ((10, 66), (20, 84), (20, 80))  # voxels of 2.5 mm: 140 x 160 x 150 mm


def block() -> np.ndarray:
    """A block of brain in air on a grid of 2.5 mm, where the search looks at every voxel and boxes are exact."""
    hu = np.full((76, 110, 110), -1000, np.int16)
    hu[tuple(slice(a, b) for a, b in BLOCK)] = 35
    return hu


def block_box(hu: np.ndarray) -> tuple[tuple[int, int], ...]:
    return find_head(hu, (2.5, 2.5, 2.5)).box


def test_a_table_that_touches_the_head_is_no_part_of_it() -> None:
    hu = block()
    hu[:, 84:87, :] = 60  # 7.5 mm thick, as long and wide as the scan
    (z0, z1), (y0, y1), (x0, x1) = block_box(hu)
    assert (y0, y1 <= 87) == (20, True)
    assert 0 <= 10 - z0 <= 2  # what is left of it is within 5 mm of the head
    assert 0 <= z1 - 66 <= 2
    assert 0 <= 20 - x0 <= 2
    assert 0 <= x1 - 80 <= 2


def test_foam_beside_the_head_is_no_part_of_it() -> None:
    hu = block()
    hu[10:66, 84:104, 20:80] = -500
    assert block_box(hu) == BLOCK


def test_thin_parts_of_the_head_are_kept_and_a_wall_beside_it_is_not() -> None:
    hu = block()
    hu[30:40, 85, 20:80] = 200  # a wall 2.5 mm from the head, within reach of what grows thin parts back
    assert block_box(hu) == BLOCK
    hu[30:40, 50, 80:82] = 35  # an ear, 2.5 mm thick and 5 mm long
    assert block_box(hu) == (BLOCK[0], BLOCK[1], (20, 82))


def test_air_inside_the_head_belongs_to_it() -> None:
    hu = block()
    hu[:, 46:56, 46:56] = -1000  # an airway of 25 mm, open above and below
    found = find_head(hu, (2.5, 2.5, 2.5))
    assert found.box == BLOCK
    assert found.mask[tuple(slice(a, b) for a, b in BLOCK)].all()


@pytest.mark.parametrize(
    ("shape", "head"),
    [
        ((2, 64, 64), True),  # one slice of 5 mm, 128 ml
        ((4, 28, 28), False),  # 10 x 70 x 70 mm, 49 ml
        ((48, 16, 48), False),  # 230 ml, but 40 mm from front to back: a wrist
        ((48, 48, 16), False),
        ((20, 32, 32), True),  # 320 ml and 80 mm: the smallest heads
    ],
)
def test_the_size_of_a_head(shape: tuple[int, int, int], head: bool) -> None:
    hu = np.pad(np.full(shape, 35, np.int16), ((0, 0), (20, 20), (20, 20)), constant_values=-1000)
    if head:
        assert block_box(hu) == ((0, shape[0]), (20, 20 + shape[1]), (20, 20 + shape[2]))
    else:
        with pytest.raises(DataError, match="no head"):
            block_box(hu)


def data_folder() -> Path:
    folder = os.environ.get("headctssl_test_data")
    if not folder:
        pytest.skip("headctssl_test_data is not set: no real CT files here")
    return Path(folder)


@pytest.mark.realdata
def test_the_head_of_a_real_tilted_scan_without_its_holder() -> None:
    import pydicom

    from headctssl.volume.hounsfield import rescaled, unpadded

    files = [pydicom.dcmread(p) for p in sorted((data_folder() / "head_ct_ge_tilt").glob("*.dcm"))]
    files.sort(key=lambda f: float(f.ImagePositionPatient[2]))
    hu = np.stack([unpadded(rescaled(f.pixel_array, float(f.RescaleSlope), float(f.RescaleIntercept))) for f in files])
    found = find_head(hu, (5.6, 0.488, 0.488))
    # Read off the pictures: the head spans rows 60-480 and columns 60-450; the holder's arms reach column 40 and 465.
    (z0, z1), (y0, y1), (x0, x1) = found.box
    assert (z0, z1) == (0, 28)
    assert 30 <= y0 <= 62
    assert 475 <= y1 <= 495
    assert 48 <= x0 <= 66
    assert 440 <= x1 <= 460
    assert 2800 < found.mask.sum() * 5.6 * 0.488**2 / 1000 < 4200


def test_growing_and_eroding_equal_the_distances_of_all_voxels() -> None:
    """Steps at which a ball ends on voxels are among them; so are empty and full masks."""
    rng = np.random.default_rng(0)
    for number in range(120):
        shape = tuple(rng.integers(1, 24, 3))
        mask = rng.random(shape) < (0.0, 0.02, 0.5, 0.98, 1.0)[number % 5]
        step = tuple(rng.choice([3.0, 3.5, 3.68, 4.0, 5.0, 6.0, 7.0, 12.0], 3))
        for radius in (7.0, 12.0):
            far = ndimage.distance_transform_edt(~mask, sampling=step) if mask.any() else np.full(shape, np.inf)
            np.testing.assert_array_equal(_grown(mask, radius, step), far <= radius)
            deep = ndimage.distance_transform_edt(mask, sampling=step) if not mask.all() else np.full(shape, np.inf)
            np.testing.assert_array_equal(_eroded(mask, radius, step), deep > radius)


def test_holes_are_filled_plane_by_plane() -> None:
    rng = np.random.default_rng(1)
    for share in (0.3, 0.5, 0.6, 0.7, 1.0):
        mask = rng.random((6, 20, 17)) < share
        plane_by_plane = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
        np.testing.assert_array_equal(_filled(mask), plane_by_plane)
