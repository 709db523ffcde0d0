"""Cells and source files: what converters make of the values, tables and folders they find."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from converter_sources import PAGES, convert_as_documented, series, stub, write_csv

from headctssl.errors import DataError
from headctssl.ingest.converters import CONVERTERS, load_converter
from headctssl.ingest.converters.cells import (
    age_cell,
    any_of,
    binary_cell,
    binary_columns,
    info_columns,
    is_ct,
    sex_cell,
    split_cell,
)
from headctssl.ingest.converters.source_files import find_named, identified, lines_of, read_object
from headctssl.ingest.scan import Scan


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_source_has_a_page_with_its_command(name: str) -> None:
    assert f"--from {name}\n" in (PAGES / f"{name}.md").read_text(encoding="utf-8").replace(" --labels labels.csv", "")
    assert f"[{name}](sources/{name}.md)" in (PAGES.parent / "README.md").read_text(encoding="utf-8")


def test_the_command_of_the_page_on_dicom_runs(tmp_path: Path, roots: Path) -> None:
    series(tmp_path / "export/patient/study", head=True)
    code, data = convert_as_documented("dicom", tmp_path / "export")
    assert (code, len(data.cases)) == (0, 1)


@pytest.mark.parametrize("name", [name for name in CONVERTERS if name not in ("dicom", "folder", "cq500", "rsna")])
def test_a_folder_of_another_layout_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"--from {name}") as error:
        load_converter(name)(tmp_path)
    assert error.value.got == "an empty folder"


@pytest.mark.parametrize("name", ["cq500", "rsna"])
def test_archives_of_slices_are_folders(name: str, tmp_path: Path) -> None:
    assert load_converter(name)(tmp_path).scans == ()
    with pytest.raises(DataError, match=f"--from {name}"):
        load_converter(name)(stub(tmp_path / "a.nii"))


@pytest.mark.parametrize("name", ["CT", "ct", "NCCT", "CTA", "CT_noncontrast", "head CT", "0000-CT"])
def test_names_of_ct(name: str) -> None:
    assert is_ct(name)


@pytest.mark.parametrize("name", ["", "T1w", "PET", "PET/CT", "CBCT", "act", "CTP", "MR", "ct-MRI", "noNorm"])
def test_names_of_other_modalities(name: str) -> None:
    assert not is_ct(name)


@pytest.mark.parametrize(
    ("text", "years"),
    [("45", "45"), ("45.0", "45"), ("045Y", "45"), ("93", "90"), ("89+", "89"), ("6 months", "0.5"), ("n/a", ""),
     ("old", ""), ("10 days", "0.0274"), (26, "26"), ("-3", "")],
)  # fmt: skip
def test_ages(text: object, years: str) -> None:
    assert age_cell(text) == years


def test_sexes_and_splits() -> None:
    assert [sex_cell(v) for v in ("male", "F", "Other", 1, "")] == ["M", "F", "O", "", ""]
    assert [split_cell(v) for v in ("Training", "validation", "test", "fold 1")] == ["train", "val", "test", ""]


def test_binary_cells_and_wholes() -> None:
    assert [binary_cell(text, "x") for text in ("1", "0", "1.0", "", "n/a")] == ["1", "0", "1", "", ""]
    with pytest.raises(DataError, match="bleed of line 3"):
        binary_cell("2", "bleed of line 3")
    assert [any_of(v) for v in (["0", "1", ""], ["0", "0"], ["0", ""], [])] == ["1", "0", "", ""]
    rows = [{"bleed": "1", "age": "1", "site": "0", "empty": ""}, {"bleed": "", "site": "2"}]
    assert binary_columns(rows) == ["bleed"]


def test_metadata_keeps_what_is_known_and_names_nobody() -> None:
    info = {
        "Age": 95, "gender": "female", "SliceThickness": 2.5, "model_name": "Scan 64", "ICH": True, "handedness": "n/a",
        "patient_name": "Doe", "PatientID": "4711", "date_of_birth": "1950-01-01", "birthdate": "1950", "split": "test",
        "case_id": "x", "scores": [1, 2], "weight": None, "site ": " north  wing ", "scan_date": "2020-01-02",
    }  # fmt: skip
    assert dict(info_columns(info)) == {
        "age": "90", "sex": "F", "slice_thickness_mm": "2.5", "model": "Scan 64", "ICH": "1", "site": "north wing",
        "scan_date": "2020-01-02",
    }  # fmt: skip


def test_tables_are_read_line_by_line_and_their_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbf a , b\n 1 ,\n\n2,3\n4\n")
    assert list(lines_of(path, ("a",))) == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}, {"a": "4", "b": ""}]
    with pytest.raises(DataError, match="lacks columns") as error:
        list(lines_of(path, ("a", "c")))
    assert (error.value.got, error.value.expected) == ("a, b", "c")
    path.write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match="line 3 has more cells"):
        list(lines_of(path))
    path.write_bytes("a\nM\xfcller\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        list(lines_of(path))
    path.write_text("[1]")
    with pytest.raises(DataError, match="does not fit"):
        read_object(path)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_object(path)


def test_named_files_are_found_near_the_top_and_only_once(tmp_path: Path) -> None:
    deep = write_csv(tmp_path / "a" / "b" / "Reads.CSV", ["name"], [])
    write_csv(tmp_path / "a" / "b" / "c" / "reads.csv", ["name"], [])
    assert find_named(tmp_path, "reads.csv") == deep
    assert find_named(tmp_path, "reads.csv", depth=1) is None
    write_csv(tmp_path / "d" / "b" / "reads.csv", ["name"], [])
    with pytest.raises(DataError, match=r"several files reads\.csv"):
        find_named(tmp_path, "reads.csv")


def test_scans_are_known_by_content_and_unreadable_ones_are_named(tmp_path: Path) -> None:
    first, same = stub(tmp_path / "a.nii", 1), stub(tmp_path / "b.nii", 1)
    locked = tmp_path / "c.mhd"
    locked.write_text("ElementDataFile = LIST\n")
    there, gone = stub(tmp_path / "m.nii", 2), tmp_path / "gone.nii"
    scans = [
        Scan("a", first, "", masks=(("segmentation", there), ("anatomy_mask", gone))),
        *(Scan(path.name, path, "") for path in (same, locked, gone, tmp_path)),
    ]
    result = identified(scans)
    assert [scan.source for scan in result.scans] == ["a", "b.nii"]
    assert result.scans[0].identity == result.scans[1].identity != ""
    assert result.scans[0].masks == (("segmentation", there),)
    assert result.remarks == ("1 masks do not exist and are left out: anatomy_mask of a.",)
    reasons = {verdict.source: verdict.reasons[0] for verdict in result.rejected}
    assert set(reasons) == {"c.mhd", "gone.nii", tmp_path.name}
    assert "does not exist" in reasons["gone.nii"]
    assert not any(str(tmp_path) + os.sep in reason for reason in reasons.values())
