"""CQ500: folders as the archives unpack, reads.csv as published, the majority of three readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from converter_sources import by_source, convert_as_documented, series, told, write_csv

from headctssl.errors import DataError
from headctssl.ingest.converters.cq500 import LABELS, find_scans

NAMES = (
    "ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right", "ChronicBleed", "Fracture",
    "CalvarialFracture", "OtherFracture", "MassEffect", "MidlineShift",
)  # fmt: skip
HEADER = ["name", "Category", *(f"R{reader}:{name}" for reader in (1, 2, 3) for name in NAMES)]


def line(number: int, votes: Mapping[str, str], category: str = "B1") -> list[str]:
    """A line of reads.csv: the findings that are named have votes such as "110", the others "000"."""
    return [f"CQ500-CT-{number}", category, *(votes.get(name, "000")[r].strip() for r in range(3) for name in NAMES)]


def study(root: Path, number: int, name: str, seed: int, **options: object) -> Path:
    folder = root / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / name
    files = series(folder, seed, tags={"PatientID": f"CQ500CT{number}"}, **options)
    for k, file in enumerate(files):
        file.rename(folder / f"CT{k:06d}.dcm")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "cq500"
    study(root, 1, "CT Plain", 1, study_uid="1.2.1")
    study(root, 1, "CT PLAIN THIN", 2, study_uid="1.2.1")
    study(root, 12, "CT 5mm", 3)
    study(root / "qct07", 123, "CT Plain", 4)
    rows = [
        line(1, {"ICH": "110", "IPH": "100", "BleedLocation-Left": "111"}),
        line(12, {"ICH": "011", "SDH": "1 0", "Fracture": " 00"}, "B2"),
        line(400, {}),
    ]
    write_csv(root / "reads.csv", HEADER, rows)
    return root


def test_cq500_labels_are_what_two_of_three_readers_say(source: Path) -> None:
    found = find_scans(source)
    scans = by_source(found)
    assert len(scans) == 4
    plain, thin, fifth, other = (
        dict(next(scan.columns for name, scan in scans.items() if part in name))
        for part in ("CT1/Unknown Study/CT Plain", "CT PLAIN THIN", "CT 5mm", "qct07")
    )
    assert (plain["ICH"], plain["IPH"], plain["BleedLocation-Left"], plain["MidlineShift"]) == ("1", "0", "1", "0")
    assert {name: thin[name] for name in NAMES} == {name: plain[name] for name in NAMES}
    assert (fifth["ICH"], fifth["SDH"], fifth["Fracture"], fifth["cq500_batch"]) == ("1", "", "0", "B2")
    assert not set(other) & set(NAMES)
    assert [spec.name for spec in found.labels] == list(NAMES)
    assert "1 series of no study in it, 1 of its studies without a series" in told(found)


def test_cq500_one_study_as_the_source_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "CQ500CT7 CQ500CT7", 1)  # whose PatientID says nothing
    monkeypatch.chdir(tmp_path / "CQ500CT7 CQ500CT7")
    assert [scan.subject for scan in find_scans(Path()).scans] == ["CQ500-CT-7"]


def test_cq500_series_of_a_patient_are_one_subject(source: Path) -> None:
    found = find_scans(source)
    assert sorted(scan.subject for scan in found.scans) == ["CQ500-CT-1", "CQ500-CT-1", "CQ500-CT-12", "CQ500-CT-123"]
    sessions = {scan.session for scan in found.scans if scan.subject == "CQ500-CT-1"}
    assert len(sessions) == 1


def test_cq500_sides_of_a_bleed_are_mirrors() -> None:
    mirrors = {spec.name: spec.mirror for spec in LABELS}
    assert mirrors["BleedLocation-Left"] == "BleedLocation-Right"
    assert mirrors["BleedLocation-Right"] == "BleedLocation-Left"
    assert {mirrors[name] for name in NAMES if "Location" not in name} == {"self"}


def test_cq500_without_its_table_has_no_labels(source: Path) -> None:
    (source / "reads.csv").unlink()
    found = find_scans(source)
    assert found.labels == ()
    assert len(found.scans) == 4
    assert "no reads.csv" in told(found)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ([name for name in HEADER if name != "R2:EDH"], [], "lacks columns"),
        (HEADER, [line(1, {}), line(1, {})], "is there twice"),
        (HEADER, [line(1, {"ICH": "021"})], "R2:ICH of CQ500-CT-1"),
        (HEADER, [["patient 1", "B1", *["0"] * 42]], "is no study"),
    ],
)
def test_cq500_faults_of_its_table_are_named(
    source: Path, header: list[str], rows: list[list[str]], message: str
) -> None:
    write_csv(source / "reads.csv", header, rows)
    with pytest.raises(DataError, match=message):
        find_scans(source)


def test_cq500_becomes_a_dataset(tmp_path: Path, roots: Path) -> None:
    root = tmp_path / "in"
    study(root, 7, "CT Plain", 5, head=True)
    write_csv(root / "reads.csv", HEADER, [line(7, {"ICH": "111", "BleedLocation-Right": "110"})])
    code, data = convert_as_documented("cq500", root)
    assert (code, len(data.cases)) == (0, 1)
    row = data.labels().iloc[0]
    assert (row["ICH"], row["BleedLocation-Right"], row["BleedLocation-Left"]) == (1, 1, 0)
    assert data.info.licence.startswith("CC BY-NC-SA")
    text = (data.folder / "cases.csv").read_text() + (data.folder / "ingest_report.json").read_text()
    assert "CQ500" not in text
