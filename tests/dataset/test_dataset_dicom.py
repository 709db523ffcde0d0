"""DICOM series: what is written is read exactly, by geometry alone, in every encoding; what is no volume is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from stacks import largest_error_mm

sys.path.insert(0, str(Path(__file__).parents[1] / "ingest"))
from dicom_writer import SYNTAXES, Options, slice_positions, write_dicom

from headctssl.dataset.image_io import read, read_header, read_series
from headctssl.errors import ImageReadError

SHAPE = (6, 20, 24)


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)


def assert_exact(folder: Path, hu: np.ndarray, options: Options | None = None) -> None:
    """The volume has the written values and every corner pixel lies within 0.01 mm of where it was written."""
    options = options or Options()
    volume = read(folder)
    np.testing.assert_array_equal(volume.hu, hu)
    positions, directions = slice_positions(options, len(hu))
    corner = np.array([len(hu) - 1, hu.shape[1] - 1, hu.shape[2] - 1, 1])
    found = (volume.affine @ corner)[:3]
    _, rows, columns = options.spacing_mm
    expected = positions[-1] + directions[3:] * rows * corner[1] + directions[:3] * columns * corner[2]
    np.testing.assert_allclose(found, expected[::-1], atol=0.01)
    np.testing.assert_allclose(volume.affine[:3, 3], positions[0][::-1], atol=0.01)
    assert volume.spacing_mm == pytest.approx(options.spacing_mm, abs=0.001)
    assert volume.info.displacement_mm == 0.0
    assert read_header(folder).shape == volume.hu.shape


@pytest.mark.parametrize(
    "changes",
    [
        *({"syntax": name} for name in SYNTAXES),
        {"bits": 12},
        {"signed": True, "rescale": (1.0, 0.0)},
        {"signed": True, "bits": 12, "rescale": (1.0, 250.0)},
        {"rescale": [(1.0, -1024.0 - 10 * k) for k in range(6)]},
        {"photometric": "MONOCHROME1"},
        {"photometric": "MONOCHROME1", "syntax": "jpegls"},
        {"photometric": "MONOCHROME1", "syntax": "big"},
        {"photometric": "MONOCHROME1", "syntax": "deflated"},
        {"shuffle": True},
        {"instance_numbers": "reversed"},
        {"instance_numbers": "same"},
        {"instance_numbers": "none", "shuffle": True},
        {"names": "none"},
        {"preamble": False},
        {"preamble": False, "names": "none"},
        {"tags": {"SliceLocation": "7", "SpacingBetweenSlices": "99", "GantryDetectorTilt": "25"}},
        {"spacing_mm": (0.6, 0.3331, 0.4272)},
        {"enhanced": "enhanced"},
        {"enhanced": "legacy"},
        {"enhanced": "enhanced", "shared": True},
        {"enhanced": "legacy", "shared": True, "syntax": "rle"},
        {"enhanced": "enhanced", "shuffle_frames": True, "syntax": "jpegls"},
        {"enhanced": "enhanced", "syntax": "big"},
        {"enhanced": "enhanced", "syntax": "deflated"},
        {"enhanced": "legacy", "rescale": [(1.0, -1024.0 - 10 * k) for k in range(6)], "shuffle_frames": True},
        {"enhanced": "enhanced", "photometric": "MONOCHROME1", "names": "none"},
    ],
    ids=str,
)
def test_what_is_written_is_read_exactly(tmp_path: Path, hu: np.ndarray, changes: dict[str, Any]) -> None:
    options = Options(**changes)
    write_dicom(tmp_path, hu, options)
    assert_exact(tmp_path, hu, options)
    kernel = "Hr40s" if changes.get("enhanced") == "enhanced" else "['Hr40s', '3']"
    metadata = dict(read(tmp_path).info.metadata)
    assert (metadata["kvp"], metadata["convolution_kernel"]) == ("120", kernel)


@pytest.mark.parametrize("tilt", [18.5, -18.5, 25.0, -7.0])
@pytest.mark.parametrize("sign", [1, -1, None])
def test_tilt_comes_from_positions_whatever_its_tag_says(tmp_path: Path, tilt: float, sign: int | None) -> None:
    """Balls drawn in patient space are found within 0.3 mm after straightening, for both signs and conventions."""
    options = Options(spacing_mm=(2.0, 1.0, 1.0), tilt_deg=tilt, tag_sign=sign, origin_lps=(-32, -40, 10))
    positions, directions = slice_positions(options, 36)
    row, column = directions[3:], directions[:3]
    balls = np.array([positions[n] + y * row + x * column for n, y, x in ((8, 20, 20), (26, 52, 40), (18, 36, 30))])
    # Distances of every pixel of every slice from every ball; 72 x 60 pixels of 1 mm.
    grid = np.arange(72)[:, None, None] * row + np.arange(60)[None, :, None] * column
    places = positions[:, None, None, :] + grid
    drawn = sum(np.exp(-((places - ball) ** 2).sum(axis=-1) / (2 * 3.0**2)) for ball in balls)
    write_dicom(tmp_path, np.rint(-1000 + 1500 * drawn).astype(np.int16), options)
    volume = read(tmp_path)
    assert volume.info.tilt_deg == pytest.approx(abs(tilt), abs=0.01)
    assert volume.info.straightened
    step = 2.0 * np.tan(np.radians(abs(tilt)))
    assert volume.info.displacement_mm == pytest.approx(35 * step, abs=0.02)
    assert any(f"up to {35 * step:.1f} mm" in note for note in volume.info.notes)
    assert largest_error_mm(volume.hu, volume.affine, balls, 10.0) < 0.3


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_other_planes_come_out_superior_posterior_left(tmp_path: Path, hu: np.ndarray, plane: str) -> None:
    write_dicom(tmp_path, hu, plane=plane, spacing_mm=(2.0, 1.0, 1.0))
    volume = read(tmp_path)
    # Rows grow downwards; slices of both planes as stored here are turned to the order (z, y, x).
    expected = hu[:, ::-1, :].transpose(1, 0, 2) if plane == "coronal" else hu[:, ::-1, :].transpose(1, 2, 0)
    normal = np.cross(*slice_positions(Options(plane=plane), 1)[1].reshape(2, 3))
    axis = 1 if plane == "coronal" else 2
    expected = expected if normal[{1: 1, 2: 0}[axis]] > 0 else np.flip(expected, axis)
    np.testing.assert_array_equal(volume.hu, expected)


def test_left_handed_and_oblique_axes_are_read_in_place(tmp_path: Path, hu: np.ndarray) -> None:
    angle = np.radians(12.0)
    turned = (np.cos(angle), np.sin(angle), 0.0, -np.sin(angle), np.cos(angle), 0.0)
    write_dicom(tmp_path / "oblique", hu, direction=turned)
    assert_exact(tmp_path / "oblique", hu, Options(direction=turned))
    mirrored = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # columns grow to the right: the normal points down
    write_dicom(tmp_path / "mirrored", hu, direction=mirrored)
    np.testing.assert_array_equal(read(tmp_path / "mirrored").hu, hu[::-1, :, ::-1])


def test_two_thicknesses_are_one_stack_and_even_slices_come_out(tmp_path: Path, hu: np.ndarray) -> None:
    heights = [0.0, 2.0, 4.0, 6.0, 12.0, 18.0, 24.0]
    write_dicom(tmp_path, np.repeat(hu[:1], 7, axis=0), heights_mm=heights)
    volume = read(tmp_path)
    assert volume.info.slice_gaps_mm == (2.0, 6.0)
    assert any("Several slice distances in one stack: 2, 6 mm" in note for note in volume.info.notes)
    assert not any("may be missing" in note for note in volume.info.notes)
    np.testing.assert_array_equal(volume.hu, np.repeat(hu[:1], len(volume.hu), axis=0))


def test_slices_that_are_there_twice_are_taken_once_and_told(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path, hu, duplicate=(1, 4))
    assert_exact(tmp_path, hu)
    assert "2 slice(s) were there twice, with the same pixels, and were taken once." in read(tmp_path).info.notes


def test_another_picture_at_the_same_position_is_no_volume(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path, hu, duplicate=(3,), duplicate_differs=True)
    for call in (read, read_header):
        with pytest.raises(ImageReadError) as error:
            call(tmp_path)
        assert "several images at one position: 2 slices at one position" in str(error.value.got)


def test_monochrome1_without_rescaling_is_a_picture_and_is_inverted(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 4095, SHAPE).astype(np.int16)
    tags = {"RescaleSlope": None, "RescaleIntercept": None}
    write_dicom(tmp_path, stored, bits=12, rescale=(1.0, 0.0), photometric="MONOCHROME1", tags=tags)
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.hu, 4095 - stored)
    assert any("MONOCHROME1 without rescaling" in note for note in volume.info.notes)


def test_padding_becomes_air_and_punches_no_hole(tmp_path: Path) -> None:
    """Padding of 0 HU reaches in from the border; a voxel of 0 HU in the middle of the head stays."""
    hu = np.full((4, 9, 9), 40, np.int16)
    hu[:, 0], hu[:, 4, 4] = 0, 0
    write_dicom(tmp_path / "a", hu, signed=True, rescale=(1.0, 0.0), tags={"PixelPaddingValue": 0})
    found = read(tmp_path / "a").hu
    assert set(np.unique(found[:, 0])) == {-1024}
    assert set(np.unique(found[:, 4, 4])) == {0}
    below = np.where(hu == 0, np.int16(-2000), hu)
    for file in write_dicom(tmp_path / "b", below, signed=True, rescale=(1.0, 0.0)):
        data = pydicom.dcmread(file)
        data.add_new("PixelPaddingValue", "US", 63536)  # -2000, written as if pixels had no sign
        data.save_as(file)
    found = read(tmp_path / "b").hu
    assert set(np.unique(found[hu == 0])) == {-1024}
    assert set(np.unique(found[hu == 40])) == {40}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slice_tags": {2: {"RescaleSlope": "0"}}}, "0003.dcm: RescaleSlope of 0"),
        ({"slice_tags": {2: {"PixelSpacing": ["0.5", "0"]}}}, "PixelSpacing"),
        ({"slice_tags": {2: {"ImagePositionPatient": ["1", "2"]}}}, "0003.dcm: ImagePositionPatient [1.0, 2.0]"),
        ({"tags": {"ImageOrientationPatient": None}}, "without ImageOrientationPatient"),
        ({"tags": {"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}}, "directions"),
        ({"tags": {"ImageOrientationPatient": ["2", "0", "0", "0", "0.5", "0"]}}, "directions"),
        ({"enhanced": "enhanced", "tags": {"PerFrameFunctionalGroupsSequence": None}}, "functional groups of 0 frames"),
        ({"enhanced": "enhanced", "tags": {"NumberOfFrames": 5}}, "functional groups of 6 frames"),
        ({"enhanced": "enhanced", "duplicate": (2,), "tags": {"SamplesPerPixel": 3}}, "colour"),
    ],
    ids=str,
)
def test_a_header_that_gives_no_volume_is_refused_by_name(
    tmp_path: Path, hu: np.ndarray, changes: dict[str, Any], told: str
) -> None:
    write_dicom(tmp_path, hu, **changes)
    with pytest.raises(ImageReadError, match="one DICOM series") as error:
        read(tmp_path)
    assert told in str(error.value.got)


def test_a_frame_without_a_position_is_named(tmp_path: Path, hu: np.ndarray) -> None:
    file = write_dicom(tmp_path, hu, enhanced="enhanced")[0]
    data = pydicom.dcmread(file)
    del data.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    data.save_as(file)
    with pytest.raises(ImageReadError) as error:
        read(tmp_path)
    assert "frame 4 of 0001.dcm without ImagePositionPatient" in str(error.value.got)


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpegls"])
def test_a_frame_or_slice_that_is_cut_off_is_named(tmp_path: Path, hu: np.ndarray, syntax: str) -> None:
    many = write_dicom(tmp_path / "many", hu, enhanced="enhanced", syntax=syntax)[0]
    one = write_dicom(tmp_path / "one", hu, syntax=syntax)[3]
    for file, name in ((many, "of 0001.dcm"), (one, "0004.dcm")):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) - (700 if syntax == "explicit" else 300)])
        with pytest.raises(ImageReadError) as error:
            read(file.parent)
        assert name in str(error.value.got)


def test_enhanced_files_of_one_series_are_one_stack(tmp_path: Path, hu: np.ndarray) -> None:
    first = Options(series_uid="1.2.3.4", study_uid="1.2.3", enhanced="enhanced")
    write_dicom(tmp_path, hu[:4], first, prefix="a")
    write_dicom(tmp_path, hu, first, prefix="b", drop=(0, 1, 2, 3))
    assert_exact(tmp_path, hu)


def test_a_hole_is_filled_only_when_asked_in_a_series_too(tmp_path: Path, hu: np.ndarray) -> None:
    ramp = (np.arange(9, dtype=np.int16) * 100)[:, None, None] + np.zeros((9, 5, 5), np.int16)
    files = write_dicom(tmp_path, ramp, drop=(4, 5))
    volume = read(tmp_path)
    assert any(n.startswith("2 slice(s) may be missing: a gap of 15.00 mm above slice 4") for n in volume.info.notes)
    assert (volume.hu[4:6] == -1024).all()
    np.testing.assert_array_equal(np.delete(volume.hu, (4, 5), axis=0), np.delete(ramp, (4, 5), axis=0))
    filled = read_series(files, fill_gaps=True)
    np.testing.assert_array_equal(filled.hu, ramp)


@pytest.fixture
def chest(real_data: Path) -> Path:
    return real_data / "not_head" / "cornerstone_CTImage_chest"


LOSSLESS = """BigEndianExplicit DeflatedExplicit JPEG2000LosslessOnly JPEGLSLossless JPEGProcess14SV1 JPEGProcess14T
LittleEndianExplicit LittleEndianImplicit RLELossless"""


@pytest.mark.realdata
def test_lossless_encodings_of_a_real_slice_agree_bit_for_bit(chest: Path, tmp_path: Path) -> None:
    """As pairs of slices: the second is the same file with another position, for a volume needs two."""
    pictures: dict[str, np.ndarray] = {}
    for file in sorted(chest.glob("*.dcm")):
        folder = tmp_path / file.name
        folder.mkdir()
        content = file.read_bytes()
        (folder / "a.dcm").write_bytes(content)
        data = pydicom.dcmread(file)
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], 9.7]
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        data.save_as(folder / "b.dcm")
        volume = read(folder)
        np.testing.assert_array_equal(volume.hu[0], volume.hu[1])
        pictures[file.name] = volume.hu[0]
    assert len(pictures) == 16
    first = pictures["CTImage.dcm"]
    lossless = [name for name in pictures if any(f"_{word}" in name for word in LOSSLESS.split())]
    assert len(lossless) == 9
    for name in lossless:
        np.testing.assert_array_equal(pictures[name], first, err_msg=name)
    for name in pictures.keys() - {*lossless, "CTImage.dcm"}:  # with loss, but still the same picture in HU
        assert np.corrcoef(pictures[name].ravel(), first.ravel())[0, 1] > 0.99, name


@pytest.mark.realdata
def test_the_shear_of_a_real_nifti_is_straightened_to_half_a_millimetre_at_its_corners(
    real_data: Path, tmp_path: Path
) -> None:
    """Balls drawn near the eight corners of the real grid and its centre are found where the sheared affine says."""
    source = nib.load(real_data / "sheared_nifti" / "shear.nii.gz")
    shape, affine = source.shape, np.asarray(source.affine)
    inset = np.array([18.0, 18.0, 4.0])
    corners = [np.where(high, np.array(shape) - 1 - inset, inset) for high in np.ndindex(2, 2, 2)]
    balls = [affine[:3, :3] @ index + affine[:3, 3] for index in (*corners, np.array(shape) / 2)]
    array = np.full(shape, -1000.0, np.float32)
    for ball in balls:
        near = np.linalg.inv(affine) @ [*ball, 1.0]
        box = tuple(slice(max(0, int(n - r)), int(n + r) + 1) for n, r in zip(near[:3], (22, 22, 5), strict=True))
        index = np.stack(
            np.meshgrid(*(np.arange(b.start, min(b.stop, s)) for b, s in zip(box, shape, strict=True)), indexing="ij"),
            axis=-1,
        )
        away = ((index @ affine[:3, :3].T + affine[:3, 3] - ball) ** 2).sum(axis=-1)
        array[box] += 1500 * np.exp(-away / (2 * 2.4**2))
    image = nib.Nifti1Image(np.rint(array).astype(np.int16), affine)
    image.set_sform(affine, code=1)
    nib.save(image, tmp_path / "balls.nii.gz")
    volume = read(tmp_path / "balls.nii.gz")
    points = np.array(balls) * [-1.0, -1.0, 1.0]  # R, A, S -> L, P, S
    assert largest_error_mm(volume.hu, volume.affine, points, 9.0) < 0.5
    real = read(real_data / "sheared_nifti" / "shear.nii.gz")
    np.testing.assert_allclose(real.affine, volume.affine)
    assert real.info.displacement_mm == pytest.approx(53 * 2.371 * np.sin(np.radians(18.5)), rel=1e-3)


@pytest.mark.realdata
def test_real_series_tell_their_displacement(real_data: Path) -> None:
    info = read(real_data / "head_ct_ge_tilt").info
    table_mm = 13 * 4.22 + 1.14 + 13 * 7.38
    assert info.displacement_mm == pytest.approx(table_mm * np.sin(np.radians(18.5)), abs=0.05)
