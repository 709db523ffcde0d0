"""BIDS: CT images wherever they lie, tables of three levels, side-car files, masks of derivatives by entities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from converter_sources import by_source, convert_as_documented, image, mask, stub, told, write_csv

from headctssl.errors import DataError
from headctssl.ingest.converters.bids import find_scans

A = "sub-01/ses-1/ct/sub-01_ses-1_ct.nii.gz"
B = "sub-01/ses-2/ct/sub-01_ses-2_acq-thin_ct.nii.gz"
C = "sub-02/anat/sub-02_CT.nii.gz"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "bids"
    for k, name in enumerate((A, B, C, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")):
        stub(root / name, k)
    people = [("sub-01", "93", "M", "1", "test", "n/a"), ("02", "n/a", "F", "0", "train", "right")]
    header = ("participant_id", "age", "sex", "ICH", "split", "handedness")
    write_csv(root / "participants.tsv", header, people, delimiter="\t")
    sessions = [("ses-1", "2020-01-02T10:00:00", "0"), ("ses-2", "2020-01-05T10:00:00", "1")]
    write_csv(root / "sub-01/sub-01_sessions.tsv", ("session_id", "acq_time", "ICH"), sessions, delimiter="\t")
    scans = [("ct/sub-01_ses-2_acq-thin_ct.nii.gz", "good")]
    write_csv(root / "sub-01/ses-2/sub-01_ses-2_scans.tsv", ("filename", "rating"), scans, delimiter="\t")
    (root / "ct.json").write_text(json.dumps({"Manufacturer": "ACME", "KVP": 120}))
    own = {"KVP": 100, "ConvolutionKernel": "Hr40s", "SliceThickness": 1, "PatientName": "Doe", "AcquisitionTime": "10"}
    (root / B).with_name("sub-01_ses-2_acq-thin_ct.json").write_text(json.dumps(own))
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "License": "CC0", "DatasetDOI": "doi:1/2"}))
    return root


def test_bids_cells_of_an_inner_table_win(source: Path) -> None:
    found = find_scans(source)
    scans = by_source(found)
    assert sorted(scans) == sorted((A, B, C))
    assert dict(scans[A].columns) == {
        "manufacturer": "ACME", "kvp": "120", "age": "90", "sex": "M", "ICH": "0", "split": "test",
        "study_date": "2020-01-02T10:00:00",
    }  # fmt: skip
    thin = dict(scans[B].columns)
    assert (thin["ICH"], thin["rating"], thin["kvp"]) == ("1", "good", "100")
    assert (thin["convolution_kernel"], thin["slice_thickness_mm"], thin["manufacturer"]) == ("Hr40s", "1", "ACME")
    assert dict(scans[C].columns)["handedness"] == "right"  # its JSON is of another suffix: CT is not ct
    assert "Doe" not in str(found)
    assert [spec.name for spec in found.labels] == ["ICH"]
    assert (found.licence, found.reference) == ("CC0", "doi:1/2")
    assert "1 images with the suffix T1w" in told(found)
    assert "copied as they are: rating, handedness." in told(found)


def test_bids_subjects_and_sessions(source: Path) -> None:
    scans = by_source(find_scans(source))
    assert scans[A].subject == scans[B].subject != scans[C].subject
    assert len({scans[name].session for name in (A, B, C)}) == 3
    assert scans[C].session == ""


def test_bids_masks_belong_to_the_image_of_the_same_entities(source: Path) -> None:
    folder = source / "derivatives/heads/sub-01/ses-2/ct"
    stem = "sub-01_ses-2_acq-thin"
    for name in ("dseg", "desc-brain_mask", "desc-deface_mask", "desc-lesion_mask", "space-MNI_dseg", "desc-brain_ct"):
        mask(folder / f"{stem}_{name}.nii.gz", source / B, {1: slice(0, 1)})
    mask(source / "derivatives/a/sub-01_ses-1_desc-brain_mask.nii.gz", source / A, {1: slice(0, 1)})
    mask(source / "derivatives/b/sub-01_ses-1_desc-head_mask.nii.gz", source / A, {1: slice(0, 1)})
    write_csv(
        source / "derivatives/heads/dseg.tsv", ("index", "name"), [(0, "none"), (1, "IPH"), (2, "SDH")], delimiter="\t"
    )
    found = find_scans(source)
    scans = by_source(found)
    assert dict(scans[B].masks) == {
        "segmentation": folder / f"{stem}_dseg.nii.gz",
        "anatomy_mask": folder / f"{stem}_desc-brain_mask.nii.gz",
        "anonymization_mask": folder / f"{stem}_desc-deface_mask.nii.gz",
    }
    assert len(scans) == 3  # a CT of derivatives is no scan
    assert found.segmentation_classes == (("IPH", 1), ("SDH", 2))
    text = told(found)
    assert "1 masks with desc-lesion are left out" in text
    assert "1 masks under derivatives belong to no CT image" in text  # of another space
    assert "A second anatomy_mask of one image is left out: derivatives/b/" in text
    write_csv(source / "derivatives/heads/sub-01/dseg.tsv", ("index", "name"), [(300, "far")], delimiter="\t")
    assert "it has values above 255" in told(find_scans(source))


def test_bids_segmentations_that_name_values_otherwise_are_refused(source: Path) -> None:
    for part, name, path in (("one", "IPH", A), ("two", "SDH", B)):
        stem = Path(path).name.replace("_ct.nii.gz", "_dseg")
        mask(source / f"derivatives/{part}/{stem}.nii.gz", source / path, {1: slice(0, 1)})
        write_csv(source / f"derivatives/{part}/{stem}.tsv", ("index", "name"), [(1, name)], delimiter="\t")
    with pytest.raises(DataError, match="names the values of its segmentation otherwise"):
        find_scans(source)


@pytest.mark.parametrize(
    ("table", "header", "lines", "told"),
    [
        ("participants.tsv", ("participant_id", "ICH"), [("sub-01", "0"), ("sub-01", "1")], "'sub-01'"),
        ("participants.tsv", ("participant_id", "ICH"), [("sub-01", "0"), ("01", "0")], "'sub-01'"),
        ("sub-01/sub-01_sessions.tsv", ("session_id", "ICH"), [("1", "0"), ("ses-1", "1")], "'sub-01 ses-1'"),
        (
            "sub-01/sub-01_scans.tsv",  # and in that of the session
            ("filename", "rating"),
            [("ses-2/ct/sub-01_ses-2_acq-thin_ct.nii.gz", "bad")],
            "acq-thin_ct.nii.gz'",
        ),
    ],
)
def test_bids_two_lines_about_the_same_are_refused(
    source: Path, table: str, header: tuple[str, ...], lines: list[tuple[str, ...]], told: str
) -> None:
    write_csv(source / table, header, lines, delimiter="\t")
    with pytest.raises(DataError, match=rf"_?{Path(table).name}: .*{told} is there twice"):
        find_scans(source)


def test_bids_lines_without_an_image_and_images_without_a_line_are_told(source: Path) -> None:
    text = told(find_scans(source))
    assert "without a CT image" not in text.replace("*_scans.tsv: 0 lines without a CT image, 2 CT images", "")
    people = [("1", "0"), ("sub-02", "1"), ("sub-03", "1")]  # `1` is not sub-01
    write_csv(source / "participants.tsv", ("participant_id", "ICH"), people, delimiter="\t")
    visits = [("ses-1", "0"), ("ses-3", "1"), ("ses-4", "1")]
    write_csv(source / "sub-01/sub-01_sessions.tsv", ("session_id", "ICH"), visits, delimiter="\t")
    lines = [("ct/sub-01_ses-2_ct.nii.gz", "good"), ("anat/sub-01_ses-2_T1w.nii.gz", "good")]
    write_csv(source / "sub-01/ses-2/sub-01_ses-2_scans.tsv", ("filename", "rating"), lines, delimiter="\t")
    text = told(find_scans(source))
    assert "participants.tsv: 2 lines without a CT image, 2 CT images without a line." in text
    assert "*_sessions.tsv: 2 lines without a CT image, 1 CT images without a line." in text
    assert "*_scans.tsv: 1 lines without a CT image, 3 CT images without a line." in text


def test_bids_without_subjects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--from bids"):
        find_scans(stub(tmp_path / "a.nii.gz").parent)


def test_bids_becomes_a_dataset(source: Path, roots: Path) -> None:
    for k, name in enumerate((A, B, C)):
        image(source / name, k)
    code, data = convert_as_documented("bids", source)
    assert (code, len(data.cases)) == (0, 3)
    text = (data.folder / "cases.csv").read_text()
    assert "2020" not in text
    assert "sub-0" not in text
    days = data.cases[data.cases["split"] == "test"]["study_day"].astype(int)
    assert abs(days.iloc[0] - days.iloc[1]) == 3
    assert set(data.cases["split"]) == {"test", "train"}
