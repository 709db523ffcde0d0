"""RSNA: slices in one flat folder, lines `ID_<slice>_<label>`, volumes by series with the labels of any slice."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path

import pytest
from converter_sources import COUNT, convert_as_documented, series, told, write_csv

from headctssl.dataset.image_io import read_series
from headctssl.errors import DataError
from headctssl.ingest.converters.rsna import find_scans

NAMES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
# The challenge's files keep few tags, and their UIDs are codes.
REMOVED = (
    "SOPClassUID", "FrameOfReferenceUID", "SeriesNumber", "PatientName", "PatientBirthDate", "PatientAge", "PatientSex",
    "AccessionNumber", "StudyDate", "StudyTime", "InstitutionName", "StudyDescription", "SeriesDescription",
    "ProtocolName", "BodyPartExamined", "Manufacturer", "ManufacturerModelName", "ImageType", "KVP",
    "ConvolutionKernel", "SliceThickness", "InstanceNumber", "GantryDetectorTilt",
)  # fmt: skip


def exam(folder: Path, number: int, patient: int, *, head: bool = False) -> list[str]:
    """One series in the flat folder; returns the ids of its slices from bottom to top."""
    count = 24 if head else COUNT
    ids = [f"ID_{number:04x}{(k * 7) % count:05x}" for k in range(count)]
    with warnings.catch_warnings():  # pydicom minds codes that are no UIDs; so the files are
        warnings.simplefilter("ignore")
        files = series(
            folder,
            number,
            head=head,
            prefix=f"{number}_",
            study_uid=f"ID_study{number}",
            series_uid=f"ID_series{number}",
            tags={"PatientID": f"ID_patient{patient}", **dict.fromkeys(REMOVED)},
            slice_tags={k: {"SOPInstanceUID": name} for k, name in enumerate(ids)},
        )
    for file, name in zip(files, ids, strict=True):
        file.rename(folder / f"{name}.dcm")
    return ids


def lines(ids: list[str], positive: dict[int, tuple[str, ...]]) -> list[tuple[str, int]]:
    """Lines of stage_2_train.csv for slices; `any` is set with any other."""
    found = []
    for k, name in enumerate(ids):
        has = positive.get(k, ())
        found += [(f"{name}_{label}", int(label in has or (label == "any" and bool(has)))) for label in NAMES]
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "rsna-intracranial-hemorrhage-detection"
    train = root / "stage_2_train"
    rows = lines(exam(train, 1, 1), {3: ("subdural",), 4: ("subdural", "epidural")})
    rows += lines(exam(train, 2, 1), {})
    rows += lines(exam(train, 3, 2), {})[:-6]  # its last slice has no line
    exam(root / "stage_2_test", 4, 3)
    write_csv(root / "stage_2_train.csv", ["ID", "Label"], [*reversed(rows), *rows[:6]])
    return root


def cells(source: Path, series_uid: str) -> dict[str, str]:
    (scan,) = [scan for scan in find_scans(source).scans if series_uid in scan.identity]
    return dict(scan.columns)


def test_rsna_slices_are_grouped_by_series(source: Path) -> None:
    found = find_scans(source)
    assert sorted(len(scan.files) for scan in found.scans) == [COUNT] * 4
    for scan in found.scans:
        assert len({file.stem[:7] for file in scan.files}) == 1  # the number of the exam
    assert sorted(scan.subject for scan in found.scans) == ["ID_patient1", "ID_patient1", "ID_patient2", "ID_patient3"]
    assert found.rejected == ()


def test_rsna_a_series_has_the_labels_of_any_slice(source: Path) -> None:
    first = cells(source, "ID_series1")
    assert {name: first[name] for name in NAMES} == {
        **dict.fromkeys(NAMES, "0"),
        "subdural": "1",
        "epidural": "1",
        "any": "1",
    }
    assert first["rsna_folder"] == "stage_2_train"
    second = cells(source, "ID_series2")
    assert {second[name] for name in NAMES} == {"0"}


def test_rsna_what_nobody_labelled_is_unknown(source: Path) -> None:
    partly, test = cells(source, "ID_series3"), cells(source, "ID_series4")
    assert {partly[name] for name in NAMES} == {""}
    assert {test[name] for name in NAMES} == {""}
    assert test["rsna_folder"] == "stage_2_test"


def test_rsna_one_of_its_folders_takes_the_table_beside_it(source: Path) -> None:
    found = find_scans(source / "stage_2_train")
    assert len(found.scans) == 3
    assert [spec.name for spec in found.labels] == list(NAMES)
    assert find_scans(source / "stage_2_test").labels != ()
    assert "in no series" in told(find_scans(source / "stage_2_test"))


def test_rsna_one_of_its_folders_as_the_place_where_one_is(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = find_scans(source / "stage_2_train")
    monkeypatch.chdir(source / "stage_2_train")
    here = find_scans(Path())
    assert [(scan.identity, scan.columns) for scan in here.scans] == [(s.identity, s.columns) for s in named.scans]
    assert here.labels == named.labels


def test_rsna_codes_in_place_of_uids_are_no_cause_of_warnings(source: Path) -> None:
    """750,000 files with three such codes each would fill the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find_scans(source)
        read_series(found.scans[0].files)


def test_rsna_contradicting_lines_are_told_and_wrong_ones_refused(source: Path) -> None:
    table = source / "stage_2_train.csv"
    text = table.read_text()
    name = text.splitlines()[1].rpartition("_")[0]
    table.write_text(text + f"{name}_any,1\n{name}_any,0\n")
    assert "contradict each other" in told(find_scans(source))
    table.write_text(text + f"{name}_epidurall,1\n")
    with pytest.raises(DataError, match="names no label"):
        find_scans(source)
    table.write_text(text + f"{name}_any,maybe\n")
    with pytest.raises(DataError, match="is not a value"):
        find_scans(source)
    table.unlink()
    assert find_scans(source).labels == ()


def test_rsna_becomes_volumes(tmp_path: Path, roots: Path) -> None:
    root = tmp_path / "in"
    ids = exam(root / "stage_2_train", 9, 5, head=True)
    write_csv(root / "stage_2_train.csv", ["ID", "Label"], lines(ids, {2: ("intraventricular",)}))
    code, data = convert_as_documented("rsna", root)
    assert (code, len(data.cases)) == (0, 1)
    assert list(data.labels().iloc[0]) == [0, 0, 1, 0, 0, 1]
    assert "ID_" not in (data.folder / "cases.csv").read_text()


@pytest.mark.evidence
def test_rsna_labels_take_little_memory(tmp_path: Path) -> None:
    """Under 250 bytes a slice: 190 MB for the 752,803 slices of the real table."""
    count = 50_000
    with open(tmp_path / "stage_2_train.csv", "w", encoding="ascii") as handle:
        handle.write("ID,Label\n")
        for k in range(count):
            handle.writelines(f"ID_{k:09x}_{name},{int(k % 7 == 0)}\n" for name in NAMES)
    (tmp_path / "stage_2_train").mkdir()
    tracemalloc.start()
    found = find_scans(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{count} slices of stage_2_train.csv are in no series" in told(found)
    assert peak < 250 * count
