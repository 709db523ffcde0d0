"""Every file and series of the folder of real CT files: verdict, tilt, spacing and reason, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from headctssl.dataset.image_io import read, read_series
from headctssl.errors import ImageReadError
from headctssl.ingest.dicom import find_scans
from headctssl.ingest.verdict import appraise, judge_facts
from headctssl.types import Triple, Volume

pytestmark = pytest.mark.realdata


@dataclass(frozen=True)
class Row:
    """What is expected of one file or series."""

    name: str  # path in the folder of real data
    verdict: str  # accept, review, reject; "ignored": no CT, told by its modality
    reason: str = ""  # a part of one of the reasons
    tilt_deg: float | None = None  # None: not read as a volume
    spacing_mm: Triple | None = None  # (z, y, x) of the volume as read
    note: str = ""  # a part of one of the notes
    repaired: str = ""  # verdict with --repair_intensity, where that differs
    repaired_reason: str = ""


FAULTY = "dicom_faulty_series/failing"
CHEST = "not_head/cornerstone_CTImage_chest/CTImage.dcm"
NO_HU = "not Hounsfield units"
MASK = "look like a mask"
PICTURE = "windowed 8-bit picture"
FOUR = "It has 4 slices"
ONE = "It has 1 slice;"

SERIES = (
    Row("head_ct_ge_tilt", "accept", "", 18.5, (4.0, 0.488, 0.488), note="Several slice distances in one stack: 4, 7"),
    Row(f"{FAULTY}/gantrytilting/001", "reject", FOUR, 14.0, (4.8, 0.418, 0.418)),
    Row(f"{FAULTY}/sliceincrement/001", "reject", FOUR, 0.0, (5.0, 0.430, 0.430), note="1 slice(s) may be missing"),
    Row(f"{FAULTY}/sliceincrement/002", "reject", FOUR, 15.5, (0.7, 0.512, 0.512), note="1 slice(s) may be missing"),
    Row(f"{FAULTY}/notavolume/001", "reject", "over time (perfusion, 4D, bolus tracking)"),
    Row(f"{FAULTY}/slicecount/001", "ignored", "modality MR"),
    Row(f"{FAULTY}/sliceorientation/001", "ignored", "modality MR"),
)

FILES = (
    Row("scct_template/scct_hu.nii.gz", "accept", "", 0.0, (2.0, 2.0, 2.0)),
    Row("scct_template/scct_cormack_units.nii", "reject", "Cormack units", 0.0, (2.0, 2.0, 2.0), repaired="accept"),
    Row("scct_template/scgrey.nii.gz", "reject", MASK, 0.0, (2.0, 2.0, 2.0)),
    Row("scct_template/scwhite.nii.gz", "reject", MASK, 0.0, (2.0, 2.0, 2.0)),
    Row("scct_template/sccsf.nii.gz", "reject", MASK, 0.0, (2.0, 2.0, 2.0)),
    Row(
        "headsq/headsq_quarter_raw_units.nrrd",
        "reject",
        "HU + 1024",
        0.0,
        (1.5, 3.2, 3.2),
        repaired="review",
        repaired_reason="The vertex is cut off",
    ),
    Row("sheared_nifti/shear.nii.gz", "review", "No skull around brain", 18.5, (2.2, 0.482, 0.482)),
    Row("not_head/nnunet_body_example_ct_sm.nii.gz", "reject", "a trunk, not a head", 0.0, (3.0, 3.0, 3.0)),
    Row(f"{FAULTY}/slicecount/001_ground_truth.nii.gz", "reject", PICTURE, 0.0, (1.0, 1.0, 1.0)),
    Row(f"{FAULTY}/slicecount/001_ground_truth_reoriented.nii.gz", "reject", PICTURE, 0.0, (1.0, 1.0, 1.0)),
    Row(f"{FAULTY}/sliceincrement/002_ground_truth.nii.gz", "reject", "It has 5 slices", 0.0, (0.778, 0.512, 0.512)),
    Row(
        f"{FAULTY}/sliceincrement/002_ground_truth_reoriented.nii.gz",
        "reject",
        "It has 5 slices",
        0.0,
        (0.778, 0.512, 0.512),
    ),
)

ENCODINGS = (
    Row(CHEST, "reject", ONE),
    Row(f"{CHEST}_BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm", "reject", ONE),
    Row(f"{CHEST}_DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm", "reject", ONE),
    Row(f"{CHEST}_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm", "reject", ONE),
    Row(f"{CHEST}_JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm", "reject", "derived from other images"),
    Row(f"{CHEST}_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm", "reject", ONE),
    Row(f"{CHEST}_JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81.dcm", "reject", "compressed with loss (JPEG-LS"),
    Row(f"{CHEST}_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm", "reject", "Its pixels have 8 bits"),
    Row(f"{CHEST}_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm", "reject", "with loss (JPEG, 12 bits)"),
    Row(f"{CHEST}_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm", "reject", "with loss (JPEG)"),
    Row(f"{CHEST}_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm", "reject", "with loss (JPEG)"),
    Row(f"{CHEST}_JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57.dcm", "reject", ONE),
    Row(f"{CHEST}_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm", "reject", ONE),
    Row(f"{CHEST}_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm", "reject", ONE),
    Row(f"{CHEST}_LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2.dcm", "reject", ONE),
    Row(f"{CHEST}_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm", "reject", ONE),
)


def ids(rows: tuple[Row, ...]) -> list[str]:
    return [Path(row.name).name if "CTImage" in row.name else row.name for row in rows]


def check_geometry(row: Row, volume: Volume) -> None:
    assert volume.info.tilt_deg == pytest.approx(row.tilt_deg, abs=0.1)
    assert volume.spacing_mm == pytest.approx(row.spacing_mm, abs=1e-3)
    assert any(row.note in note for note in volume.info.notes) or not row.note


@pytest.mark.parametrize("row", SERIES, ids=ids(SERIES))
def test_series(real_data: Path, row: Row) -> None:
    found = find_scans(real_data / row.name)
    if row.verdict == "ignored":
        assert found.scans == ()
        assert any(row.reason in entry.reason for entry in found.ignored)
        return
    (scan,) = found.scans
    assert scan.facts is not None
    status, reasons = judge_facts(scan.facts)
    if row.tilt_deg is None:
        with pytest.raises(ImageReadError, match=r"4 slices at one position"):
            read_series(scan.files)
    else:
        volume = read_series(scan.files)
        check_geometry(row, volume)
        assert scan.facts.tilt_deg == pytest.approx(row.tilt_deg, abs=0.1)
        judged = appraise(volume, scan.facts)
        assert judged.status == status
        reasons = judged.reasons
    assert status == row.verdict
    assert any(row.reason in reason for reason in reasons) or not row.reason
    assert (status == "accept") == (reasons == ())


@pytest.mark.parametrize("row", FILES, ids=ids(FILES))
@pytest.mark.parametrize("repair", [False, True], ids=["as stored", "repaired"])
def test_files(real_data: Path, row: Row, *, repair: bool) -> None:
    volume = read(real_data / row.name, repair_intensity=repair)
    check_geometry(row, volume)
    judged = appraise(volume)
    changed = repair and row.repaired != ""
    assert judged.status == (row.repaired if changed else row.verdict), judged.reasons
    reason = row.repaired_reason if changed else row.reason
    assert any(reason in told for told in judged.reasons) or not reason
    assert (judged.status == "accept") == (judged.reasons == ())
    assert any(note.startswith("Repaired intensity") for note in volume.info.notes) == changed


@pytest.mark.parametrize("row", ENCODINGS, ids=ids(ENCODINGS))
def test_one_chest_slice_in_every_encoding(real_data: Path, tmp_path: Path, row: Row) -> None:
    (tmp_path / "slice.dcm").symlink_to(real_data / row.name)  # a folder of its own, without a copy
    (scan,) = find_scans(tmp_path).scans
    assert scan.facts is not None
    status, reasons = judge_facts(scan.facts)
    assert status == row.verdict
    assert any(row.reason in reason for reason in reasons)
    assert "The header names another part of the body." in reasons


def test_the_table_names_everything_there_is(real_data: Path) -> None:
    listed = {row.name for row in (*SERIES, *FILES, *ENCODINGS)}
    files = [p for p in real_data.rglob("*") if p.is_file() and p.name not in ("README.md", "LICENSE")]
    missing = [
        name
        for file in files
        if (name := file.relative_to(real_data).as_posix()) not in listed
        and file.parent.relative_to(real_data).as_posix() not in listed
    ]
    assert missing == []


def test_the_repaired_template_is_the_template_in_hounsfield_units(real_data: Path) -> None:
    folder = real_data / "scct_template"
    repaired = read(folder / "scct_cormack_units.nii", repair_intensity=True)
    assert (repaired.hu == read(folder / "scct_hu.nii.gz").hu).all()
