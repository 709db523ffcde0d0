"""Odd files: headers and tables that are a little wrong are told or read, and never stop the others."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from crude_heads import crude_head
from dying import dies_at_a_multiple_of_7
from stacks import write_series

from headctssl.dataset.dicom_series import is_dicom
from headctssl.dataset.image_io import data_files, find_images, read, read_header, source_digest, write_nifti
from headctssl.dataset.parallel import map_items
from headctssl.errors import DataError, ImageReadError
from headctssl.types import Volume


@pytest.fixture(scope="module")
def head() -> Volume:
    return crude_head(1, shape=(24, 40, 40), spacing=(8.0, 6.0, 6.0))


def test_data_files_of_detached_headers_are_listed(tmp_path: Path, head: Volume) -> None:
    image = SimpleITK.GetImageFromArray(head.hu)
    for name in ("a.mhd", "a.nhdr", "b.mha", "b.nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    assert len(data_files(tmp_path / "a.nhdr")) == 1
    assert [p.name for p in data_files(tmp_path / "a.mhd")] == ["a.raw"]
    assert data_files(tmp_path / "b.mha") == data_files(tmp_path / "b.nrrd") == []
    (tmp_path / "c.mha").write_bytes((tmp_path / "a.mhd").read_bytes())
    assert [p.name for p in data_files(tmp_path / "c.mha")] == ["a.raw"]


@pytest.mark.parametrize("value", ["LIST", "LIST 2", "slice%03d.raw 1 24 1"])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_in_many_files_are_refused(tmp_path: Path, head: Volume, value: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(head.hu), str(path))
    data = data_files(path)[0].name
    path.write_text(path.read_text().replace(data, value))
    for call in (read, read_header, source_digest):
        with pytest.raises(ImageReadError) as error:
            call(path)
        assert "several files" in str(error.value.got)


def fails_in_odd_ways(item: int) -> int:
    if item == 1:
        raise KeyError("xyzt")
    if item == 2:
        raise DataError("known")
    return item


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_any_type_is_the_result_of_its_item(num_workers: int) -> None:
    results = dict(map_items(fails_in_odd_ways, [0, 1, 2, 3], num_workers))
    assert (results[0], results[3]) == (0, 3)
    assert isinstance(results[1], DataError)
    assert results[1].got == "KeyError: 'xyzt'"
    assert isinstance(results[2], DataError)
    assert results[2].what == "known"


def test_a_nifti_with_an_unknown_unit_is_read_in_mm(tmp_path: Path, head: Volume) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, head)
    content = bytearray(path.read_bytes())
    content[123] = 7
    path.write_bytes(bytes(content))
    volume = read(path)
    assert volume.spacing_mm == pytest.approx(head.spacing_mm)
    assert any("unit code 7" in note for note in volume.info.notes)


def test_a_file_that_cannot_be_opened_is_not_dicom(tmp_path: Path) -> None:
    assert not is_dicom(tmp_path / "gone.dcm")


def test_without_codes_the_axes_are_those_the_note_names(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.save(image, tmp_path / "a.nii")
    axes = ", ".join(nib.aff2axcodes(nib.load(tmp_path / "a.nii").affine))
    assert any(f"taken as {axes}." in note for note in read(tmp_path / "a.nii").info.notes)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("qform_code", [0, 1])
def test_a_spacing_of_0_is_not_read_as_1_mm(
    tmp_path: Path, name: str, qform_code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None).to_bytes())
    content[80:92] = bytes(12)  # pixdim[1:4]
    content[252:256] = bytes([qform_code, 0, 0, 0])  # and sform_code
    path = tmp_path / name
    path.write_bytes(gzip.compress(bytes(content)) if name.endswith("gz") else bytes(content))
    for call in (read, read_header):
        with pytest.raises(ImageReadError) as error:
            call(path)
        assert error.value.got == "voxel sizes of 0 x 0 x 0 and no sform"
    assert capfd.readouterr() == ("", ""), "nibabel logs how it mends a header, and names no file"


def test_a_spacing_of_0_beside_an_sform_does_no_harm(tmp_path: Path, head: Volume) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, head)
    content = bytearray(path.read_bytes())
    content[80:92] = bytes(12)
    path.write_bytes(bytes(content))
    assert read(path).spacing_mm == pytest.approx(head.spacing_mm)


def series(folder: Path, head: Volume, **tags: object) -> Path:
    positions = np.arange(len(head.hu))[:, None] * np.array([0.0, 0.0, 8.0])
    write_series(folder, head.hu, positions, np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]), 6.0, **tags)
    return folder


def overwrite_text(folder: Path, old: bytes, new: bytes) -> None:
    """Replace a value of the same length in every file: pydicom itself does not write wrong numbers."""
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("kvp", [b"120 kV", b"80\\140", b"12,000", b"1.2.30"])
def test_odd_optional_numbers_are_unknown_and_reject_nothing(tmp_path: Path, head: Volume, kvp: bytes) -> None:
    folder = series(tmp_path / "s", head, KVP="123456", SliceThickness="4.0")
    overwrite_text(folder, b"123456", kvp)
    volume = read(folder)
    assert np.array_equal(volume.hu, head.hu)
    assert "kvp" not in dict(volume.info.metadata)
    assert dict(volume.info.metadata)["slice_thickness_mm"] == "4"


def test_a_wrong_number_in_the_geometry_names_its_tag(tmp_path: Path, head: Volume) -> None:
    folder = series(tmp_path / "s", head)
    overwrite_text(folder, b"6.0000000\\6.0000000", b"6,0000000\\6,0000000")
    for call in (read, read_header):
        with pytest.raises(ImageReadError) as error:
            call(folder)
        assert "0000.dcm: PixelSpacing is no number" in str(error.value.got)


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "SCAN.NII", "SCAN.NRRD", "SCAN.MHA"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, head: Volume, name: str) -> None:
    if "nii" in name.lower():
        write_nifti(tmp_path / name, head)
        assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.endswith("GZ")
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(head.hu), str(tmp_path / name.lower()))
        (tmp_path / name.lower()).rename(tmp_path / name)
    assert read(tmp_path / name).hu.shape == head.hu.shape


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path, head: Volume) -> None:
    (tmp_path / "a").mkdir()
    write_nifti(tmp_path / "a" / "x.nii.gz", head)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert find_images(tmp_path) == [tmp_path / "a" / "x.nii.gz"]


def test_a_process_that_dies_takes_only_its_own_item_with_it() -> None:
    results = dict(map_items(dies_at_a_multiple_of_7, range(1, 17), 2))
    died = [number for number in range(1, 17) if isinstance(results[number - 1], DataError)]
    assert died == [7, 14]
    assert "A worker process died" in results[6].what
    assert [results[number - 1] for number in range(1, 17) if number not in died] == [
        number for number in range(1, 17) if number not in died
    ]


def test_where_every_process_dies_not_every_item_is_tried() -> None:
    results = dict(map_items(dies_at_a_multiple_of_7, [7] * 12, 2))
    assert sorted(results) == list(range(12))
    assert all(isinstance(result, DataError) for result in results.values())


def test_no_warning_of_pydicom_names_a_file(
    tmp_path: Path, head: Volume, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    positions = np.array([[0.0, 0.0, 8.0 * k] for k in range(len(head.hu))])
    row, column = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    tags = {"SpecificCharacterSet": "ISO_IR 999", "StudyDescription": "Sch\u00e4del", "StudyDate": "garbage"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = write_series(tmp_path / "Doe", head.hu, positions, row, column, 6.0, **tags)
    first, second = (path.read_bytes() for path in files[:2])
    files[0].write_bytes(first.replace(b"1.2.840.10008.1.2.1", b"1.2.84\xcf.10008.1.2.1"))
    files[1].write_bytes(second[:-100])
    with pytest.raises(ImageReadError):
        read(tmp_path / "Doe")
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")
