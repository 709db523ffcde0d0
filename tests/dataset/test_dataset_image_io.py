"""Image input and output: formats agree, values are exact, and what cannot be read is named."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from crude_heads import crude_head
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from stacks import write_series

from headctssl.dataset.image_io import find_images, is_image, read, read_header, source_digest, stem, write_nifti
from headctssl.dataset.intensity import check_intensity
from headctssl.errors import ImageReadError
from headctssl.types import Volume

ROW, COLUMN = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])


def positions(count: int, gap: float = 2.0) -> np.ndarray:
    return np.array([5.0, -7.0, 11.0]) + np.arange(count)[:, None] * np.array([0.0, 0.0, gap])


@pytest.fixture
def head() -> Volume:
    return crude_head(3, bleeds=("left",), shape=(20, 26, 24), spacing=(9.0, 8.5, 8.0))


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def test_a_written_volume_is_read_again_bit_for_bit(tmp_path: Path, head: Volume) -> None:
    for name in ("a.nii.gz", "a.nii"):
        write_nifti(tmp_path / name, head)
        again = read(tmp_path / name)
        np.testing.assert_array_equal(again.hu, head.hu)
        np.testing.assert_allclose(again.affine, head.affine, atol=1e-5)
        assert again.info.notes == ()
    write_nifti(tmp_path / "b.nii.gz", head)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "a.nii.gz", "b.nii.gz"]
    reference = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(reference.dataobj).transpose(2, 1, 0), head.hu)


def test_axes_are_superior_posterior_left(tmp_path: Path) -> None:
    array = np.full((5, 6, 7), -1000, np.int16)  # x towards R, y towards A, z towards S
    array[4, 0, 0], array[0, 5, 0], array[0, 0, 6] = 100, 200, 300
    hu = read(save(tmp_path / "a.nii", array, np.diag([2.0, 3.0, 4.0, 1.0]))).hu
    assert hu.shape == (7, 6, 5)
    assert hu[0, 5, 0] == 100  # the most rightward voxel has the lowest left index; posterior is at the end
    assert hu[0, 0, 4] == 200
    assert hu[6, 5, 4] == 300


@settings(max_examples=20, deadline=None)
@given(
    order=st.sampled_from(list(itertools.permutations(range(3)))),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_order_and_direction_of_stored_axes_gives_the_same_volume(
    tmp_path_factory: pytest.TempPathFactory, order: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    stored = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    affine = np.diag([-1.0, -1.5, 3.0, 1.0])
    affine[:3, 3] = [3.0, 4.0, 5.0]
    folder = tmp_path_factory.mktemp("axes")
    straight = read(save(folder / "a.nii", stored, affine))
    turned, matrix = stored.transpose(order), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            matrix[:3, 3] += matrix[:3, axis] * (turned.shape[axis] - 1)
            matrix[:3, axis] *= -1
            turned = np.flip(turned, axis)
    other = read(save(folder / "b.nii", np.ascontiguousarray(turned), matrix))
    np.testing.assert_array_equal(straight.hu, other.hu)
    np.testing.assert_allclose(straight.affine, other.affine, atol=1e-5)


def test_nifti_nrrd_metaimage_and_dicom_agree(tmp_path: Path, head: Volume) -> None:
    spacing, origin = head.spacing_mm, head.affine[:3, 3]
    head = Volume(head.hu, head.affine.copy(), head.info)
    image = SimpleITK.GetImageFromArray(head.hu)
    image.SetSpacing((8.0, 8.0, 9.0))
    image.SetOrigin(tuple(origin[::-1]))
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"), useCompression=True)
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii.gz"))
    places = origin[::-1] + np.arange(20)[:, None] * np.array([0.0, 0.0, 9.0])
    write_series(tmp_path / "series", head.hu, places, ROW, COLUMN, 8.0)
    formats = {}
    for name in ("a.nrrd", "a.mha", "a.nii.gz", "series"):
        volume = read(tmp_path / name)
        np.testing.assert_array_equal(volume.hu, head.hu)
        np.testing.assert_allclose(volume.affine[:3, 3], origin, atol=1e-4)
        assert volume.spacing_mm == pytest.approx((9.0, 8.0, 8.0), abs=1e-5)
        header = read_header(tmp_path / name)
        assert header.shape == volume.hu.shape
        formats[name] = header.source_format
    assert formats == {"a.nrrd": "nrrd", "a.mha": "metaimage", "a.nii.gz": "nifti", "series": "dicom"}
    assert spacing[1] == 8.5


@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [(np.uint8, 7.1234, -1024.0), (np.int16, 1.0, 0.0), (np.uint16, 0.5, -1000.25), (np.float32, 1.0, 0.0)],
)
@pytest.mark.parametrize("endian", ["<", ">"])
def test_values_are_rescaled_and_rounded_as_nibabel_does(
    tmp_path: Path, dtype: type[np.generic], slope: float, inter: float, endian: str
) -> None:
    stored = np.random.default_rng(1).integers(0, 255, (5, 6, 7)).astype(dtype)
    header = nib.Nifti1Header(endianness=endian)
    image = nib.Nifti1Image(stored, np.eye(4), header)
    image.header.set_data_dtype(np.dtype(dtype).newbyteorder(endian))
    image.header.set_slope_inter(slope, inter)
    path = tmp_path / "a.nii"
    # Written by hand: nibabel would rescale the array again.
    with open(path, "wb") as file:
        image.header["magic"], image.header["vox_offset"] = b"n+1", 352
        image.header.write_to(file)
        file.write(bytes(4))
        file.write(stored.astype(np.dtype(dtype).newbyteorder(endian)).tobytes(order="F"))
    expected = np.rint(np.asarray(nib.load(path).dataobj, np.float64)).clip(-1024)
    found = read(path).hu
    assert np.abs(np.sort(found.ravel()) - np.sort(expected.ravel())).max() <= (1 if slope == 0.5 else 0)
    np.testing.assert_allclose(found[:, ::-1, ::-1], expected.transpose(2, 1, 0), atol=1)


def test_padding_below_air_becomes_minus_1024(tmp_path: Path) -> None:
    array = np.full((4, 4, 4), -1500, np.int16)
    array[0] = 40
    assert set(np.unique(read(save(tmp_path / "a.nii", array)).hu)) == {-1024, 40}


def test_each_dicom_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1500, (4, 6, 5)).astype(np.int16) * 2 // 2 * 1
    hu -= hu % 2
    rescale = [(1.0, -1024.0), (2.0, -1024.0), (1.0, -2000.0), (2.0, -1000.0)]
    write_series(tmp_path, hu, positions(4), ROW, COLUMN, 1.0, rescale=rescale)
    np.testing.assert_array_equal(read(tmp_path).hu, hu)


def test_what_is_kept_of_a_dicom_header_identifies_nobody(tmp_path: Path) -> None:
    hu = np.full((4, 6, 5), -1000, np.int16)
    write_series(tmp_path, hu, positions(4), ROW, COLUMN, 1.0)
    info = read(tmp_path).info
    assert dict(info.metadata) == {
        "kvp": "120",
        "convolution_kernel": "['Hr40s', '3']",
        "slice_thickness_mm": "4",
        "manufacturer": "ACME",
    }
    assert not any(word in repr(info) for word in ("Doe", "Jane", "4711", "2020", "HEAD"))


def test_a_missing_slice_is_noted_left_empty_and_filled_only_when_asked(tmp_path: Path) -> None:
    hu = np.full((11, 6, 5), -1000, np.int16) + (np.arange(11) * 20).astype(np.int16)[:, None, None]
    kept = [k for k in range(11) if k != 4]
    write_series(tmp_path, hu[kept], positions(11)[kept], ROW, COLUMN, 1.0)
    volume = read(tmp_path)
    assert any("1 slice(s) may be missing" in note and "left empty" in note for note in volume.info.notes)
    expected = hu.copy()
    expected[4] = -1024
    np.testing.assert_array_equal(volume.hu, expected)
    filled = read(tmp_path, fill_gaps=True)
    assert any("filled by linear interpolation" in note for note in filled.info.notes)
    np.testing.assert_array_equal(filled.hu, hu)


def dicom_fault(folder: Path, kind: str) -> None:
    hu = np.full((4, 6, 5), -1000, np.int16) + np.arange(4, dtype=np.int16)[:, None, None]
    places = positions(4)
    if kind == "one position":
        places[:] = places[0]
    write_series(folder, hu[:1] if kind == "one slice" else hu, places, ROW, COLUMN, 1.0)
    more = {"names": ["x.dcm"], "uid": str(pydicom.dcmread(folder / "0000.dcm").SeriesInstanceUID)}
    beyond = places[-1:] + np.array([0, 0, 2.0])
    if kind == "several series":
        write_series(folder, hu[:1], beyond, ROW, COLUMN, 1.0, names=["x.dcm"])
    elif kind == "no orientation":
        write_series(folder, hu[:1], beyond, ROW, COLUMN, 1.0, **more, ImageOrientationPatient=None)
    elif kind == "other orientation":
        write_series(folder, hu[:1], beyond, np.array([0, 0, -1.0]), COLUMN, 1.0, **more)
    elif kind == "repeated":
        write_series(folder, hu[1:2], places[:1], ROW, COLUMN, 1.0, **more)
    elif kind == "other size":
        write_series(folder, np.full((1, 7, 5), 0, np.int16), beyond, ROW, COLUMN, 1.0, **more)
    elif kind == "MR":
        write_series(folder, hu[:1], beyond, ROW, COLUMN, 1.0, **more, Modality="MR")
    elif kind == "frames":
        write_series(folder, hu[:1], beyond, ROW, COLUMN, 1.0, **more, NumberOfFrames=3)
    elif kind == "truncated":
        content = (folder / "0001.dcm").read_bytes()
        (folder / "0001.dcm").write_bytes(content[:-30])
    elif kind == "no number":
        content = (folder / "0001.dcm").read_bytes().replace(b"-7.0000000", b"-7.00x0000")
        (folder / "0001.dcm").write_bytes(content)
    elif kind == "not DICOM":
        (folder / "0001.dcm").write_bytes(b"hello" * 100)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("one position", "4 slices at one position"),
        ("one slice", "one slice"),
        ("several series", "2 series"),
        ("no orientation", "x.dcm without ImageOrientationPatient"),
        ("other orientation", "several orientations"),
        ("repeated", "2 slices at one position"),
        ("other size", "several values of Rows"),
        ("MR", "modality 'MR' in x.dcm"),
        ("frames", "3 frames"),
        ("truncated", "0001.dcm"),
        ("no number", "no number"),
        ("not DICOM", "0001.dcm without DICOM's mark"),
    ],
)
def test_a_folder_that_is_not_one_series_is_refused(tmp_path: Path, kind: str, told: str) -> None:
    dicom_fault(tmp_path, kind)
    with pytest.raises(ImageReadError, match="one DICOM series") as error:
        read(tmp_path)
    assert told in str(error.value.got)
    assert error.value.expected
    assert error.value.do


def faulty_file(folder: Path, kind: str) -> Path:
    path = folder / "a.nii.gz"
    hu = np.random.default_rng(0).integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    good = gzip.compress(nib.Nifti1Image(hu, np.eye(4)).to_bytes(), mtime=0)
    if kind == "empty folder":
        (folder / "empty").mkdir()
        return folder / "empty"
    if kind == "folder of text":
        (folder / "text").mkdir()
        (folder / "text" / "a.txt").write_text("x")
        return folder / "text"
    if kind == "missing":
        return folder / "b.nii.gz"
    if kind == "suffix":
        (folder / "a.png").write_bytes(b"x")
        return folder / "a.png"
    if kind == "nan":
        values = hu.astype(np.float32)
        values[1, 2, 3] = np.nan
        return save(path, values)
    if kind == "4d":
        return save(path, np.zeros((4, 4, 4, 3), np.int16))
    if kind == "2d":
        return save(path, np.zeros((4, 4), np.int16))
    if kind == "rgb":
        return save(path, np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    if kind == "no volume":
        image = nib.Nifti1Image(hu, np.eye(4))
        image.header["srow_z"] = 0
        image.header["sform_code"], image.header["qform_code"] = 1, 0
        content = bytearray(image.header.binaryblock + bytes(4) + hu.tobytes(order="F"))
        path = folder / "a.nii"
        content[344:348] = b"n+1\0"
        content[108:112] = np.float32(352).tobytes()
        path.write_bytes(bytes(content))
        return path
    if kind == "nrrd":
        (folder / "a.nrrd").write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n\n123")
        return folder / "a.nrrd"
    content = {
        "png": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "truncated": good[: len(good) // 2],
        "header only": good[:200],
        "flipped bit": good[:900] + bytes([good[900] ^ 8]) + good[901:],
        "short": gzip.compress(gzip.decompress(good)[:-10]),
        "empty": b"",
        "text": b"hello" * 200,
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "png", "truncated", "header only", "flipped bit", "short", "empty", "text", "nan", "4d", "2d", "rgb",
        "no volume", "nrrd", "empty folder", "folder of text", "missing", "suffix",
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_what_got_expected_and_do(tmp_path: Path, kind: str) -> None:
    path = faulty_file(tmp_path, kind)
    with pytest.raises(ImageReadError) as error:
        read(path)
    told = error.value
    assert path.name in told.what
    assert told.got
    assert told.expected
    assert told.do
    if kind in ("4d", "nan"):
        assert {"4d": "4 dimensions", "nan": "1 of 1728 voxels"}[kind] in told.got


def test_a_file_with_a_fourth_dimension_of_one_is_a_volume(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6, 1)).astype(np.int16)
    assert read(save(tmp_path / "a.nii.gz", array)).hu.shape == (6, 5, 4)
    image = SimpleITK.GetImageFromArray(array.reshape(1, 6, 5, 4), isVector=False)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert read(tmp_path / "a.nrrd").hu.shape == (6, 5, 4)


def test_a_file_without_orientation_says_so(tmp_path: Path, head: Volume) -> None:
    image = nib.Nifti1Image(head.hu, None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.save(image, tmp_path / "a.nii")
    assert any("states no orientation" in note for note in read(tmp_path / "a.nii").info.notes)


def test_values_that_are_not_hounsfield_units_are_noticed(head: Volume) -> None:
    assert check_intensity(head.hu).kind == "HU"
    for wrong, kind in [
        (head.hu + 1024, "not_hu"),  # an offset left in
        (np.where(head.hu < -500, 0, head.hu + 1024), "not_hu"),  # Cormack units
        ((head.hu > -500).astype(np.int16), "not_hu"),  # a mask
        (np.clip((head.hu + 20) * 2, 0, 255), "not_hu"),  # a brain window
        (np.clip(head.hu, -300, 3000), "doubtful"),  # clipped, perhaps
    ]:
        fault = check_intensity(wrong.astype(np.int16)).fault
        assert fault is not None
        assert fault.kind == kind
    air_around = head.hu.copy()
    air_around[:, :, :2] = -1024
    assert check_intensity(air_around).kind == "HU"


def test_air_added_by_straightening_does_not_hide_wrong_units(tmp_path: Path) -> None:
    hu = np.full((12, 40, 40), 1060, np.int16)
    places = positions(12) + np.arange(12)[:, None] * np.array([0.0, 1.0, 0.0])
    write_series(tmp_path, hu, places, ROW, COLUMN, 1.0)
    volume = read(tmp_path)
    assert volume.info.straightened
    assert (volume.hu == -1024).any()
    assert any("not Hounsfield units" in note for note in volume.info.notes)


def test_the_digest_of_a_source_changes_with_its_content(tmp_path: Path, head: Volume) -> None:
    write_nifti(tmp_path / "a.nii.gz", head)
    sha, size, _ = source_digest(tmp_path / "a.nii.gz")
    assert sha == hashlib.sha256((tmp_path / "a.nii.gz").read_bytes()).hexdigest()
    assert size == (tmp_path / "a.nii.gz").stat().st_size
    image = SimpleITK.GetImageFromArray(head.hu)
    SimpleITK.WriteImage(image, str(tmp_path / "b.mhd"))
    SimpleITK.WriteImage(image, str(tmp_path / "b.nhdr"))
    for name in ("b.mhd", "b.nhdr"):
        header = source_digest(tmp_path / name)
        data = next(p for p in tmp_path.glob("b.*raw*") if p.name in (tmp_path / name).read_text())
        data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
        assert source_digest(tmp_path / name)[0] != header[0]
    files = write_series(tmp_path / "s", head.hu[:3], positions(3), ROW, COLUMN, 1.0)
    before = source_digest(tmp_path / "s")
    assert before == source_digest(tmp_path / "s")
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(bytes(content))
    assert source_digest(tmp_path / "s")[0] != before[0]


def test_images_are_found_in_a_tree(tmp_path: Path, head: Volume) -> None:
    write_nifti(tmp_path / "sub/a.nii.gz", head)
    write_series(tmp_path / "series/one", head.hu[:3], positions(3), ROW, COLUMN, 1.0)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub/.hidden.nii").write_text("x")
    (tmp_path / "no").mkdir()
    found = find_images(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["series/one", "sub/a.nii.gz"]
    assert [stem(p) for p in found] == ["one", "a"]
    assert not is_image(tmp_path / "notes.txt")
    assert not is_image(tmp_path / "no")


def test_a_real_tilted_jpeg_2000_slice_is_decoded(tmp_path: Path) -> None:
    """pydicom ships one slice of a tilted head CT, JPEG 2000; a second one is put beside it to make a stack."""
    name = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    if name is None:
        pytest.skip("this pydicom does not ship the file")
    data = pydicom.dcmread(name)
    (tmp_path / "a.dcm").write_bytes(Path(name).read_bytes())
    data.SOPInstanceUID = str(data.SOPInstanceUID) + ".1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    x, y, z = (float(v) for v in data.ImagePositionPatient)
    data.ImagePositionPatient = [x, y, z + 5.0]
    data.save_as(tmp_path / "b.dcm")
    volume = read(tmp_path)
    assert volume.info.source_format == "dicom"
    assert volume.info.original_shape == (2, int(data.Rows), int(data.Columns))
    assert volume.info.notes == () or not any("Hounsfield" in note for note in volume.info.notes)


def test_importing_the_reader_loads_neither_torch_nor_simpleitk() -> None:
    code = "import json, sys, headctssl.dataset.image_io; print(json.dumps([m in sys.modules for m in sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "torch", "SimpleITK"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [False, False]
