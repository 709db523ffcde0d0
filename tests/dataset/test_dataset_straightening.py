"""Straightening: landmarks drawn in patient space are where they were drawn, and headers foretell the grid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import (
    GE_COLUMN,
    GE_FIRST,
    GE_PIXEL_MM,
    GE_ROW,
    centroid,
    draw,
    ge_positions,
    landmarks,
    largest_error_mm,
    write_series,
    write_sheared_nifti,
)

from headctssl.dataset.image_io import read, read_header
from headctssl.dataset.raw_image import Geometry
from headctssl.dataset.straightening import SliceStack, gap_notes
from headctssl.errors import ImageReadError
from headctssl.volume.straighten import Stack

SIZE = (224, 224)
SIDE_MM = SIZE[0] * GE_PIXEL_MM
SIGMA_MM = 5.0
REACH_MM = 17.0
EXACT_MM = 0.1


@pytest.fixture(scope="module")
def tilted_series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Slices with the geometry of the real GE series: 18.5 degrees; gaps of 4.0 (13), 1.08, 7.0 mm (13)."""
    positions = ge_positions()
    points = landmarks(positions, GE_ROW, GE_COLUMN, SIDE_MM, SIDE_MM)
    hu = draw(points, positions, GE_ROW, GE_COLUMN, GE_PIXEL_MM, SIZE, SIGMA_MM)
    folder = tmp_path_factory.mktemp("tilted")
    write_series(folder, hu, positions, GE_ROW, GE_COLUMN, GE_PIXEL_MM)
    return folder, points


@pytest.mark.parametrize("keep_detail", [False, True])
def test_landmarks_of_a_tilted_uneven_series_are_in_place(
    tilted_series: tuple[Path, np.ndarray], keep_detail: bool
) -> None:
    folder, points = tilted_series
    volume = read(folder, keep_detail=keep_detail)
    # Where the gap changes from 4 to 7 mm, linear interpolation blurs one side of a ball more than the other, which
    # moves its centre of mass along the normal; in the plane it is exact there too. The ramps below prove the place.
    heights = (points - GE_FIRST) @ np.cross(GE_COLUMN, GE_ROW)
    apart = np.abs(heights - 56.0) > REACH_MM
    assert apart.sum() >= 6
    assert largest_error_mm(volume.hu, volume.affine, points[apart], REACH_MM) < EXACT_MM
    normal_spl = np.cross(GE_COLUMN, GE_ROW)[::-1]
    for point in points[~apart]:
        error = centroid(volume.hu, volume.affine, point[::-1], REACH_MM) - point[::-1]
        assert np.linalg.norm(error - (error @ normal_spl) * normal_spl) < EXACT_MM
    assert volume.spacing_mm == pytest.approx((1.0 if keep_detail else 4.0, GE_PIXEL_MM, GE_PIXEL_MM), abs=1e-6)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert volume.info.tilt_deg == pytest.approx(18.5, abs=0.01)
    assert volume.info.slice_gaps_mm == (1.08, 4.0, 7.0)
    assert volume.info.straightened
    header = read_header(folder, keep_detail=keep_detail)
    assert header.shape == volume.hu.shape
    assert header.spacing_mm == pytest.approx(volume.spacing_mm)


@pytest.mark.parametrize("keep_detail", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_voxel_of_a_tilted_uneven_stack_is_in_place(axis: int, keep_detail: bool) -> None:
    """A ramp along S, P or L, 50 HU per mm: the value of each voxel tells where it is in the patient."""
    origins = ge_positions()[:, ::-1]
    shape = (28, 200, 30)
    affine = np.eye(4)
    affine[:3, 1], affine[:3, 2] = GE_ROW[::-1] * GE_PIXEL_MM, GE_COLUMN[::-1] * GE_PIXEL_MM
    geometry = Geometry("dicom", shape, affine, origins)
    rows, columns = np.arange(200)[:, None, None], np.arange(30)[:, None]
    in_plane = rows * affine[:3, 1] + columns * affine[:3, 2]  # (rows, columns, 3) mm
    places = origins[:, None, None, :] + in_plane
    centre = float(places[..., axis].mean())
    ramp = np.rint(50.0 * (places[..., axis] - centre)).astype(np.int16)
    stack = SliceStack(geometry, "x")
    hu, new = stack.straight(ramp, keep_detail=keep_detail)
    # Voxels that only stored ones went into: those that keep the value of a constant picture.
    covered = stack.straight(np.full(shape, 1000, np.int16), keep_detail=keep_detail)[0] == 1000
    index = np.stack(np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij"), axis=-1)
    # Beyond the last slice's centre its copy fills the rest of its thickness: no ramp there.
    top = int(
        (stack.stack.heights_mm[-1] - stack.stack.heights_mm[0]) / stack.stack.new_gap_mm(keep_detail=keep_detail)
    )
    covered[top + 1 :] = False
    there = (index @ new[:3, :3].T + new[:3, 3])[..., axis]
    error_mm = np.abs(hu / 50.0 + centre - there)
    assert covered.mean() > 0.5
    assert error_mm[covered].max() < EXACT_MM


def test_the_landmarks_would_be_off_if_the_stack_were_taken_as_straight(
    tilted_series: tuple[Path, np.ndarray],
) -> None:
    import SimpleITK

    folder, points = tilted_series
    reader = SimpleITK.ImageSeriesReader()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine = affine[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
    error = largest_error_mm(SimpleITK.GetArrayFromImage(image), affine, points[:1], 30.0)
    assert error > 1.0


def test_landmarks_of_a_sheared_nifti_are_in_place(tmp_path: Path) -> None:
    positions = ge_positions()[0] + np.arange(44)[:, None] * np.array([0.0, 0.0, 2.5])
    points = landmarks(positions, GE_ROW, GE_COLUMN, SIDE_MM, SIDE_MM)
    hu = draw(points, positions, GE_ROW, GE_COLUMN, GE_PIXEL_MM, SIZE, SIGMA_MM)
    path = tmp_path / "sheared.nii.gz"
    write_sheared_nifti(path, hu, positions, GE_ROW, GE_COLUMN, GE_PIXEL_MM)
    volume = read(path)
    assert largest_error_mm(volume.hu, volume.affine, points, REACH_MM) < EXACT_MM
    assert volume.spacing_mm[0] == pytest.approx(2.3)  # 2.5 mm * cos(18.5) = 2.37, rounded down to 0.1 mm
    assert volume.info.tilt_deg == pytest.approx(18.5, abs=0.01)
    assert read_header(path).shape == volume.hu.shape


def test_a_straight_even_oblique_series_keeps_every_voxel(tmp_path: Path) -> None:
    normal = np.cross(GE_COLUMN, GE_ROW)
    positions = np.array([10.0, 20.0, 30.0]) + np.arange(12)[:, None] * 3.0 * normal
    hu = np.random.default_rng(0).integers(-1000, 1000, (12, 20, 24)).astype(np.int16)
    write_series(tmp_path, hu, positions, GE_ROW, GE_COLUMN, 0.9)
    volume = read(tmp_path)
    assert not volume.info.straightened
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_allclose(volume.affine[:3, 3], [30.0, 20.0, 10.0], atol=1e-6)
    assert volume.spacing_mm == pytest.approx((3.0, 0.9, 0.9), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.6, 8.0), min_size=1, max_size=12),
    st.floats(-30.0, 30.0),
    st.booleans(),
    st.booleans(),
)
def test_headers_foretell_the_shape_for_any_stack(gaps: list[float], tilt: float, even: bool, detail: bool) -> None:
    heights = np.concatenate([[0.0], np.cumsum([gaps[0]] * len(gaps) if even else gaps)])
    shift = heights * np.tan(np.radians(tilt))
    origins = np.stack([heights, shift, 0.3 * shift], axis=1)
    affine = np.eye(4)
    affine[:3, 0] = (origins[-1] - origins[0]) / (len(origins) - 1)
    affine[1, 1], affine[2, 2] = 0.5, 0.7
    stack = SliceStack(Geometry("dicom", (len(origins), 9, 8), affine, origins), "x")
    hu, placed = stack.straight(np.zeros((len(origins), 9, 8), np.int16), keep_detail=detail)
    shape, foretold = stack.grid(keep_detail=detail)
    assert shape == hu.shape
    np.testing.assert_allclose(foretold, placed)


def test_the_stacking_axis_of_a_sheared_file_is_found_in_any_order(tmp_path: Path) -> None:
    import nibabel as nib

    positions = ge_positions()[0] + np.arange(24)[:, None] * np.array([0.0, 0.0, 4.0])
    points = landmarks(positions, GE_ROW, GE_COLUMN, 110.0, 110.0)
    hu = draw(points, positions, GE_ROW, GE_COLUMN, 1.0, (110, 110), SIGMA_MM)
    write_sheared_nifti(tmp_path / "a.nii", hu, positions, GE_ROW, GE_COLUMN, 1.0)
    image = nib.load(tmp_path / "a.nii")
    columns = [2, 0, 1, 3]
    turned = nib.Nifti1Image(np.asarray(image.dataobj).transpose(2, 0, 1), image.affine[:, columns])
    nib.save(turned, tmp_path / "b.nii")
    one, other = read(tmp_path / "a.nii"), read(tmp_path / "b.nii")
    np.testing.assert_array_equal(one.hu, other.hu)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    assert largest_error_mm(other.hu, other.affine, points, REACH_MM) < EXACT_MM


def test_rows_and_columns_that_are_not_at_right_angles_are_refused() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 1] = [0.3, 2.0, 0.4]
    affine[:3, 0] = [2.0, 0.3, 0.4]
    with pytest.raises(ImageReadError, match="right angles"):
        SliceStack(Geometry("nifti", (9, 9, 9), affine), "file.nii")


def stack_of(gaps: list[float]) -> Stack:
    heights = np.concatenate([[0.0], np.cumsum(gaps)])
    return Stack.of(heights[:, None] * np.array([1.0, 0.0, 0.0]), [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])


def test_notes_on_gaps() -> None:
    assert gap_notes(stack_of([5.0] * 20)) == []
    missing = [5.0] * 8 + [10.0] + [5.0] * 8
    assert "1 slice(s) may be missing: a gap of 10.00 mm above slice 9 of 18" in gap_notes(stack_of(missing))[0]
    filled = gap_notes(stack_of(missing), fill_gaps=True)[0]
    assert "1 missing slice(s) filled" in filled
    assert "may be missing" not in filled
    ge = gap_notes(stack_of([4.0] * 13 + [1.08] + [7.0] * 13))
    assert ge == ["Several slice distances in one stack: 4, 7 mm."]


@pytest.mark.parametrize(
    ("gaps", "holes"),
    [
        ([5.0, 10.0, 5.0], [1]),
        ([5.0, 8.7, 5.0], []),  # 1.74 times the usual gap: uneven, nothing missing
        ([5.0, 8.8, 5.0], [1]),
        ([2.0] * 5 + [4.0, 4.0] + [2.0] * 5, [5, 6]),  # two slices, each alone
        ([2.0] * 5 + [4.0] * 5, []),  # the scan goes on with thicker slices
        ([4.0] * 5 + [8.0] + [4.0] * 5 + [7.0] * 14, [5]),  # twice the gap of its part, though not of the whole
        ([4.0] * 13 + [1.08] + [7.0] * 6 + [14.0] + [7.0] * 6, [20]),
        ([3.0], []),
        ([1.0, 30.0], [1]),
    ],
)
def test_a_hole_is_a_gap_far_above_the_usual_one_of_its_part(gaps: list[float], holes: list[int]) -> None:
    assert stack_of(gaps).holes.tolist() == holes


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("headctssl_test_data", "")
    if not folder:
        pytest.skip("headctssl_test_data is not set")
    return Path(folder)


@pytest.mark.realdata
def test_the_real_tilted_series_comes_out_straight_and_even(real_data: Path) -> None:
    volume = read(real_data / "head_ct_ge_tilt")
    assert volume.hu.shape == (37, 611, 512)
    assert volume.spacing_mm == pytest.approx((4.0, GE_PIXEL_MM, GE_PIXEL_MM), abs=1e-5)
    assert volume.info.tilt_deg == pytest.approx(18.5, abs=0.01)
    assert volume.info.slice_gaps_mm == (1.08, 4.0, 7.0)
    assert int(volume.hu.min()) == -1024  # padding of -1500 in the file
    brain = volume.hu[(volume.hu > 0) & (volume.hu < 80)]
    assert np.bincount(brain).argmax() == pytest.approx(31, abs=2)  # 31 in the stored slices
    assert not any("Hounsfield" in note for note in volume.info.notes)


@pytest.mark.realdata
def test_the_real_sheared_nifti_is_straightened(real_data: Path) -> None:
    volume = read(real_data / "sheared_nifti" / "shear.nii.gz")
    assert volume.info.straightened
    assert volume.info.tilt_deg == pytest.approx(18.5, abs=0.01)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)


@pytest.mark.realdata
def test_real_files_that_are_not_in_hounsfield_units_are_noticed(real_data: Path) -> None:
    for name in ("scct_template/scct_cormack_units.nii", "headsq/headsq_quarter_raw_units.nrrd"):
        assert any("not Hounsfield units" in note for note in read(real_data / name).info.notes), name
    for name in ("scct_template/scct_hu.nii.gz", "not_head/nnunet_body_example_ct_sm.nii.gz"):
        assert read(real_data / name).info.notes == (), name


@pytest.mark.realdata
def test_real_faulty_series(real_data: Path) -> None:
    folder = real_data / "dicom_faulty_series" / "failing"
    assert read(folder / "gantrytilting/001").info.tilt_deg == pytest.approx(14.0, abs=0.01)
    for name in ("001", "002"):
        assert any("may be missing" in note for note in read(folder / "sliceincrement" / name).info.notes)
    with pytest.raises(ImageReadError, match="one DICOM series") as error:
        read(folder / "notavolume/001")
    assert "4 slices at one position" in str(error.value.got)
    with pytest.raises(ImageReadError, match="MR"):
        read(folder / "slicecount/001")
