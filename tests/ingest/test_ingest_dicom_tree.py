"""DICOM trees: whatever lies in a folder is a scan, another stack, or told; and each file is opened once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_writer import Options, write_dicom
from pydicom.uid import generate_uid

import headctssl.ingest.dicom_tree as dicom_tree
from headctssl.dataset.image_io import read_series
from headctssl.ingest.dicom import find_scans
from headctssl.ingest.scan import Found, Scan

SHAPE = (12, 10, 9)
UIDS = {"study_uid": "1.2.3", "series_uid": "1.2.3.4"}


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)


def reasons(found: Found) -> set[str]:
    return {entry.reason for entry in found.ignored}


def values(scan: Scan) -> np.ndarray:
    return read_series(scan.files).hu


def notes(scan: Scan) -> tuple[str, ...]:
    return read_series(scan.files).info.notes


def test_a_tree_of_everything(tmp_path: Path, hu: np.ndarray) -> None:
    deep = tmp_path / "a" / "b" / "c"
    write_dicom(deep, hu, names="none")  # without suffixes
    write_dicom(tmp_path / "two", hu, prefix="x")  # two series in one folder
    write_dicom(tmp_path / "two", hu + np.int16(1), prefix="y", series_number=5)
    files = write_dicom(tmp_path / "part1", hu + np.int16(2), **UIDS)  # one series over two folders
    (tmp_path / "part2").mkdir()
    for file in files[:4]:
        file.rename(tmp_path / "part2" / file.name)
    shutil.copy(files[8], tmp_path / "copy.dcm")
    shutil.copy(files[8], tmp_path / ".hidden.dcm")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.ima").write_text("hello" * 100)
    (deep / "up").symlink_to(tmp_path, target_is_directory=True)  # a loop
    (tmp_path / "again").symlink_to(tmp_path / "two", target_is_directory=True)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    found = find_scans(tmp_path)
    names = [scan.source for scan in found.scans]
    assert len(names) == 4
    assert "a/b/c (12 slices)" in names
    assert ". (12 slices)" in names  # of the series over two folders: the folder that holds both
    assert sum("series 5" in name for name in names) == 1
    assert reasons(found) == {
        "1 DICOMDIR (an index; the files themselves are read)",
        "2 files that are not DICOM",
        "2 links to a folder that was entered already",
        "2 links that lead nowhere, or special files",
    }
    assert [verdict.source for verdict in found.rejected] == ["empty.dcm", "text.ima"]
    assert found.remarks == ("1 slices were there more than once and were taken once.",)
    over_two = next(scan for scan in found.scans if scan.identity == "study:1.2.3:series:1.2.3.4:patient:4711")
    np.testing.assert_array_equal(values(over_two), hu + np.int16(2))
    assert len({str(scan.files) for scan in found.scans}) == 4


def test_facts_of_a_series(tmp_path: Path, hu: np.ndarray) -> None:
    options = Options(tilt_deg=-17.0, tag_sign=-1, spacing_mm=(4.0, 0.45, 0.5), bits=12, syntax="implicit")
    tags: dict[str, Any] = {"ContrastBolusAgent": "Omnipaque", "BurnedInAnnotation": "NO", "PatientAge": "018M"}
    write_dicom(tmp_path, hu, options, drop=(5,), tags=tags)
    facts = find_scans(tmp_path).scans[0].facts
    assert facts is not None
    assert (facts.modality, facts.sop_class) == ("CT", "1.2.840.10008.5.1.4.1.1.2")
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert (facts.series_number, facts.series_description) == (2, "Head 5.0 Hr40s")
    assert (facts.study_description, facts.protocol_name, facts.body_part) == ("CT HEAD", "Head routine", "HEAD")
    assert (facts.kvp, facts.convolution_kernel, facts.slice_thickness_mm) == ("120", "['Hr40s', '3']", 4.0)
    assert (facts.manufacturer, facts.model) == ("ACME", "Scan 64")
    assert (facts.contrast, facts.burned_in, facts.temporal) == (True, False, False)
    assert (facts.num_images, facts.num_positions, facts.images_per_position, facts.frames) == (11, 11, 1, 11)
    assert facts.orientation == "axial"
    assert (facts.median_gap_mm, facts.smallest_gap_mm, facts.largest_gap_mm) == (4.0, 4.0, 8.0)
    assert facts.tilt_deg == pytest.approx(17.0, abs=0.01)
    assert (facts.rows, facts.columns, facts.pixel_spacing_mm) == (10, 9, (0.45, 0.5))
    assert (facts.transfer_syntaxes, facts.photometric, facts.bits) == (("1.2.840.10008.1.2",), "MONOCHROME2", 12)
    assert (facts.age, facts.sex, facts.study_date) == ("1.5", "F", "20200229")


def test_facts_and_reports_name_nobody_but_the_scan_knows_whom_to_take_out(tmp_path: Path, hu: np.ndarray) -> None:
    tags = {"ReferringPhysicianName": "Grey^Meredith^^Dr", "OperatorsName": "CT"}
    write_dicom(tmp_path, hu, tags=tags)
    scan = find_scans(tmp_path).scans[0]
    for word in ("Doe", "Jane", "4711", "A998877", "Nowhere", "2020", "1927", "Grey"):
        assert word not in repr(scan.facts)
        assert word not in repr(scan.columns)
    assert {"Doe", "Jane", "4711", "A998877", "19270304", "Grey", "Meredith"} <= set(scan.identifying)
    assert not {"Dr", "CT", ""} & set(scan.identifying)
    assert scan.subject == "4711"


def test_an_enhanced_file_has_the_facts_of_its_frames(tmp_path: Path, hu: np.ndarray) -> None:
    for kind in ("enhanced", "legacy"):
        write_dicom(tmp_path / kind, hu, enhanced=kind, names="none", shuffle_frames=True)
    for scan in find_scans(tmp_path).scans:
        facts = scan.facts
        assert facts is not None
        assert (facts.num_images, facts.frames, facts.num_positions) == (1, 12, 12)
        assert (facts.median_gap_mm, facts.kvp, facts.slice_thickness_mm) == (5.0, "120", 5.0)
        np.testing.assert_array_equal(values(scan), hu)


def test_orientations_and_sizes_within_one_series_are_split(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path, hu, prefix="a", **UIDS)
    write_dicom(tmp_path, hu[:4], prefix="c", plane="coronal", **UIDS)
    write_dicom(tmp_path, hu[:3, :8], prefix="s", **UIDS)
    write_dicom(tmp_path, hu[:2], prefix="z", spacing_mm=(5.0, 0.7, 0.7), **UIDS)
    found = find_scans(tmp_path)
    assert [len(scan.files) for scan in found.scans] == [12, 4, 3, 2]
    assert [scan.facts.orientation for scan in found.scans if scan.facts] == ["axial", "coronal", "axial", "axial"]
    assert len({scan.identity for scan in found.scans}) == 4
    assert all(scan.identity.startswith("study:1.2.3:series:1.2.3.4:part:") for scan in found.scans)
    assert "1 series held several stacks" in found.remarks[0]
    np.testing.assert_array_equal(values(found.scans[0]), hu)


@pytest.mark.parametrize(
    "tags",
    [
        {"ConvolutionKernel": "Hr60s"},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"EchoNumbers": "2"},
    ],
    ids=str,
)
def test_kernels_and_image_types_that_share_the_head_are_split(
    tmp_path: Path, hu: np.ndarray, tags: dict[str, Any]
) -> None:
    write_dicom(tmp_path, hu, prefix="a", **UIDS)
    write_dicom(tmp_path, hu[:6] + np.int16(5), prefix="b", origin_lps=(-20.0, -30.0, 57.5), tags=tags, **UIDS)
    found = find_scans(tmp_path)
    assert [len(scan.files) for scan in found.scans] == [12, 6]
    np.testing.assert_array_equal(values(found.scans[0]), hu)


def test_base_and_vertex_with_two_kernels_and_thicknesses_stay_one_scan(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path, hu[:6], prefix="base", spacing_mm=(2.5, 0.5, 0.5), **UIDS)
    above: dict[str, Any] = {"origin_lps": (-20.0, -30.0, 57.5), "tags": {"ConvolutionKernel": "H40s"}}
    write_dicom(tmp_path, hu[6:], prefix="vertex", **above, **UIDS)
    found = find_scans(tmp_path)
    assert [len(scan.files) for scan in found.scans] == [12]
    facts = found.scans[0].facts
    assert facts is not None
    assert (facts.smallest_gap_mm, facts.largest_gap_mm) == (2.5, 5.0)


def acquired(numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    return {k: {"AcquisitionNumber": number} for k, number in enumerate(numbers)}


@pytest.mark.parametrize(
    "numbers",
    [
        [1 + k % 2 for k in range(24)],
        [1 + k // 2 + 12 * (k % 2) for k in range(24)],  # a number for each slice
        [1 + k // 8 + 3 * (k % 2) for k in range(24)],  # four slices for each turn of the gantry
    ],
    ids=["spirals", "slices", "turns"],
)
def test_two_runs_through_the_head_in_one_series_are_two_scans(
    tmp_path: Path, hu: np.ndarray, numbers: list[int]
) -> None:
    both = np.repeat(hu, 2, axis=0)
    both[1::2] += np.int16(7)
    write_dicom(tmp_path, both, slice_tags=acquired(numbers), **UIDS)
    found = find_scans(tmp_path)
    assert [len(scan.files) for scan in found.scans] == [12, 12]
    for scan, expected in zip(found.scans, (hu, hu + np.int16(7)), strict=True):
        np.testing.assert_array_equal(values(scan), expected)
        assert not any("same part of the body" in note for note in notes(scan))
    names = [scan.identity.partition(":patient")[0].rpartition("|")[2] for scan in found.scans]
    assert names == ["acquisition 1", f"acquisition {numbers[1]}"]
    assert "(orientation, size, kernel, image type or acquisition)" in found.remarks[0]


@pytest.mark.parametrize(
    ("numbers", "heights"),
    [
        ([*range(1, 13)], np.arange(12) * 5.0),  # a number for each slice
        ([*range(12, 0, -1)], np.arange(12) * 5.0),
        ([1] * 6 + [2] * 6, [*np.arange(6) * 2.5, *(17.5 + np.arange(6) * 5.0)]),  # thin base, thick vertex
        ([2] * 6 + [1] * 6, np.arange(12) * 5.0),  # the vertex first
        ([1] * 6 + [2] * 6, [*np.arange(6) * 2.5, *(11.5 + np.arange(6) * 5.0)]),  # they touch
    ],
    ids=["slices", "downwards", "thicknesses", "vertex first", "touching"],
)
def test_acquisitions_that_follow_each_other_are_one_scan(
    tmp_path: Path, hu: np.ndarray, numbers: list[int], heights: Sequence[float]
) -> None:
    write_dicom(tmp_path, hu, heights_mm=heights, slice_tags=acquired(numbers), **UIDS)
    found = find_scans(tmp_path)
    assert [scan.identity for scan in found.scans] == ["study:1.2.3:series:1.2.3.4:patient:4711"]
    assert not any("Acquisitions" in note for note in read_series(found.scans[0].files).info.notes)


def test_acquisitions_at_the_same_positions_are_a_series_over_time(tmp_path: Path, hu: np.ndarray) -> None:
    both = np.concatenate([hu, hu + np.int16(7)])
    heights = [*np.arange(12) * 5.0, *np.arange(12) * 5.0]
    write_dicom(tmp_path, both, heights_mm=heights, slice_tags=acquired([1] * 12 + [2] * 12))
    (scan,) = find_scans(tmp_path).scans
    assert len(scan.files) == 24
    assert scan.facts is not None
    assert scan.facts.images_per_position == 2


def test_acquisitions_that_share_a_part_only_are_one_scan_with_a_note(tmp_path: Path, hu: np.ndarray) -> None:
    heights = [*np.arange(6) * 5.0, *(16.0 + np.arange(6) * 5.0)]
    write_dicom(tmp_path, hu, heights_mm=heights, slice_tags=acquired([1] * 6 + [2] * 6))
    (scan,) = find_scans(tmp_path).scans
    assert any("Acquisitions 1 and 2 show the same part of the body over 9 mm" in n for n in notes(scan))


def test_numbers_in_no_order_do_not_tear_a_series_to_pieces(tmp_path: Path, hu: np.ndarray) -> None:
    numbers = [5, 1, 9, 3, 11, 2, 7, 12, 4, 8, 6, 10]
    write_dicom(tmp_path, hu, slice_tags=acquired(numbers))
    (scan,) = find_scans(tmp_path).scans
    assert len(scan.files) == 12
    assert any("show the same part of the body" in note for note in notes(scan))


def test_directions_that_differ_by_rounding_are_one_stack(tmp_path: Path, hu: np.ndarray) -> None:
    slice_tags = {k: {"ImageOrientationPatient": ["1", "0.00001", "0", "0", "1", "0"]} for k in range(0, 12, 3)}
    write_dicom(tmp_path, hu, slice_tags=slice_tags)
    assert [len(scan.files) for scan in find_scans(tmp_path).scans] == [12]


def test_what_is_no_ct_stack_is_counted_and_known_with_its_facts(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path / "ct", hu)
    write_dicom(tmp_path / "mr", hu[:3], tags={"Modality": "MR"})
    write_dicom(tmp_path / "scout", hu[:1], plane="coronal", tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    capture = "1.2.840.10008.5.1.4.1.1.7"
    places = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    write_dicom(tmp_path / "capture", hu[:2], tags={"SOPClassUID": capture, **places})
    report = {"Modality": "SR", "Rows": None, "Columns": None, "PixelData": None, **places}
    write_dicom(tmp_path / "report", hu[:1], tags=report)
    found = find_scans(tmp_path)
    assert [scan.source for scan in found.scans] == ["ct (12 slices)"]
    assert reasons(found) == {
        "3 files of modality MR",
        "1 localisers",
        "2 secondary captures",
        "1 files of modality SR",
    }
    known = {scan.source: scan.facts for scan in found.others if scan.facts}
    assert set(known) == {"mr (3 slices)", "scout (1 slices)", "capture (2 pictures)"}
    assert known["mr (3 slices)"].modality == "MR"
    assert known["capture (2 pictures)"].sop_class == capture
    assert known["scout (1 slices)"].orientation == "coronal"
    assert not found.rejected


def test_a_dose_sheet_in_a_series_is_left_out_and_told(tmp_path: Path, hu: np.ndarray) -> None:
    sheet = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "ImageType": ["DERIVED", "SECONDARY"]}
    write_dicom(tmp_path, hu, slice_tags={11: sheet}, **UIDS)
    found = find_scans(tmp_path)
    assert [scan.identity for scan in found.scans] == ["study:1.2.3:series:1.2.3.4:patient:4711"]
    assert len(found.scans[0].files) == 11
    assert reasons(found) == {"1 pictures without a place in the patient, in a series that has one"}
    assert [len(scan.files) for scan in found.others] == [1]


def test_a_series_without_any_position_is_offered_so_that_it_is_rejected(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path, hu, tags={"ImagePositionPatient": None})
    scan = find_scans(tmp_path).scans[0]
    assert scan.facts is not None
    assert (scan.facts.num_images, scan.facts.num_positions) == (12, 0)


def test_damaged_files_are_named(tmp_path: Path, hu: np.ndarray) -> None:
    files = write_dicom(tmp_path, hu)
    for file, length in zip(files[:3], (100, 200, 600), strict=True):
        file.write_bytes(file.read_bytes()[:length])
    (tmp_path / "0004.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    found = find_scans(tmp_path)
    assert [verdict.source for verdict in found.rejected] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm"]
    assert all(verdict.reasons[0].startswith("The file is not readable DICOM: ") for verdict in found.rejected)
    assert not any(str(tmp_path) in verdict.reasons[0] for verdict in found.rejected)
    assert [len(scan.files) for scan in found.scans] == [8]


def test_repeats_with_other_uids_are_left_out_and_other_pictures_are_not(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path / "a", hu, duplicate=(2, 7))
    write_dicom(tmp_path / "b", hu, duplicate=(2, 7), duplicate_differs=True)
    found = find_scans(tmp_path)
    facts = {scan.source: scan.facts for scan in found.scans if scan.facts}
    assert facts["a (12 slices)"].images_per_position == 1
    assert facts["b (14 slices)"].images_per_position == 2
    assert not facts["b (14 slices)"].temporal
    assert found.remarks == ("2 slices had the place and the pixels of another and were left out.",)


def test_a_series_over_time_is_seen(tmp_path: Path, hu: np.ndarray) -> None:
    for phase in range(4):
        pictures = hu[:3] + np.int16(phase)
        write_dicom(tmp_path, pictures, prefix=f"p{phase}", tags={"AcquisitionNumber": phase + 1}, **UIDS)
    facts = find_scans(tmp_path).scans[0].facts
    assert facts is not None
    assert (facts.num_images, facts.num_positions, facts.images_per_position) == (12, 3, 4)
    assert facts.temporal


def test_slices_that_all_carry_one_uid_are_no_copies(tmp_path: Path, hu: np.ndarray) -> None:
    """Some programs that take names out give every slice the same SOP instance UID."""
    write_dicom(tmp_path, hu, tags={"SOPInstanceUID": generate_uid()})
    found = find_scans(tmp_path)
    assert not found.remarks
    np.testing.assert_array_equal(values(found.scans[0]), hu)


def test_identities_do_not_depend_on_the_place_nor_on_the_order(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path / "in" / "a", hu, prefix="a", **UIDS)
    write_dicom(tmp_path / "in" / "a", hu[:3], prefix="b", plane="sagittal", **UIDS)
    write_dicom(tmp_path / "in" / "b", hu[:5], tags={"SeriesInstanceUID": None, "StudyInstanceUID": None})
    before = {scan.identity for scan in find_scans(tmp_path / "in").scans}
    (tmp_path / "in").rename(tmp_path / "moved")
    for number, file in enumerate(sorted((tmp_path / "moved" / "a").iterdir(), reverse=True)):
        file.rename(tmp_path / "moved" / f"{number:03d}")
    assert {scan.identity for scan in find_scans(tmp_path / "moved").scans} == before
    assert len(before) == 3


def test_a_series_without_patient_id_is_of_the_one_patient_of_its_study(tmp_path: Path, hu: np.ndarray) -> None:
    nobody = {"PatientID": None}
    write_dicom(tmp_path / "a", hu, study_uid="1.2.3")
    write_dicom(tmp_path / "b", hu, study_uid="1.2.3", series_uid="1.2.3.9", tags=nobody)
    write_dicom(tmp_path / "c", hu, study_uid="1.2.4", tags=nobody)  # whose study names nobody
    write_dicom(tmp_path / "d", hu, study_uid="1.2.5", tags=nobody)  # whose study names two
    for number in ("1", "2"):
        write_dicom(tmp_path / f"d{number}", hu, study_uid="1.2.5", tags={"PatientID": f"P{number}"})
    report = {"Modality": "SR", "Rows": None, "Columns": None, "PixelData": None, "PatientID": "P7"}
    write_dicom(tmp_path / "e", hu, study_uid="1.2.6", tags=nobody)
    write_dicom(tmp_path / "report", hu[:1], study_uid="1.2.6", tags=report)
    found = find_scans(tmp_path)
    subjects = {scan.source.split(" ")[0]: scan.subject for scan in found.scans}
    others = {"c": "study:1.2.4", "d": "study:1.2.5", "d1": "P1", "d2": "P2"}
    assert subjects == {"a": "4711", "b": "4711", "e": "P7", **others}
    assert "2 scans without a PatientID have that of the other series of their study." in found.remarks
    alone = find_scans(tmp_path / "b").scans[0]
    assert alone.identity == next(scan.identity for scan in found.scans if scan.source.startswith("b "))


def test_processes_find_the_same(tmp_path: Path, hu: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(3):
        write_dicom(tmp_path / f"s{k}", hu, series_number=k)
    (tmp_path / "broken.dcm").write_bytes(b"x")
    monkeypatch.setattr("headctssl.ingest.dicom_tree._CHUNK", 8)
    assert find_scans(tmp_path, num_workers=2) == find_scans(tmp_path, num_workers=1)


def test_texts_of_other_character_sets_are_read(tmp_path: Path, hu: np.ndarray) -> None:
    tags = {"SpecificCharacterSet": "ISO_IR 192", "StudyDescription": "Schädel", "PatientName": "Müller^Jörg"}
    write_dicom(tmp_path, hu, tags=tags)
    scan = find_scans(tmp_path).scans[0]
    assert scan.facts is not None
    assert scan.facts.study_description == "Schädel"
    assert {"Müller", "Jörg"} <= set(scan.identifying)


def test_odd_optional_values_are_unknown(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(tmp_path, hu)
    for file in tmp_path.iterdir():
        content = (
            file.read_bytes().replace(b"120 ", b"12kV").replace(b"093Y", b"0??Y").replace(b"20200229", b"yesterda")
        )
        file.write_bytes(content)
    facts = find_scans(tmp_path).scans[0].facts
    assert facts is not None
    assert (facts.kvp, facts.age, facts.study_date) == ("", "", "")
    assert pydicom.dcmread(tmp_path / "0001.dcm", stop_before_pixels=True).get_item("KVP").value == b"12kV"


def test_the_search_of_a_large_tree_tells_how_far_it_is(
    tmp_path: Path, hu: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dicom(tmp_path, hu)
    find_scans(tmp_path, quiet=False)
    assert capsys.readouterr().out == ""  # not of one that takes some seconds
    monkeypatch.setattr(dicom_tree, "_CHUNK", 1)
    find_scans(tmp_path, quiet=False)
    assert capsys.readouterr().out.splitlines()[-1] == "headers read of 12 files, in lots of 1: 12/12"
