"""Privacy: what is taken out of texts, what days tell, and that nothing of a patient reaches a dataset."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import pytest
from converter_sources import image, series
from hypothesis import given
from hypothesis import strategies as st

from headctssl.dataset.manifest import load_raw_dataset
from headctssl.errors import DataError, UsageError
from headctssl.ingest.candidate import make_candidate
from headctssl.ingest.convert import ConvertResult, convert
from headctssl.ingest.dicom import find_scans
from headctssl.ingest.privacy import (
    is_date_column,
    is_identifying_column,
    parse_date,
    scrub,
    study_day,
    subject_key,
    without_paths,
)
from headctssl.ingest.report import read_report

PATIENT = {
    "PatientName": "Doe^Jane^Li",
    "PatientID": "MRN7731",
    "PatientBirthDate": "19270304",
    "PatientAge": "093Y",
    "AccessionNumber": "ACC88",
    "ReferringPhysicianName": "House^Gregory",
    "InstitutionName": "Saint Nowhere Hospital, Dept. of Radiology",
    "ConvolutionKernel": ["Hr40s", "Jane 2020-02-27"],
    "Manufacturer": "ACME of Doe",
    "ManufacturerModelName": "Scan 64 MRN7731 Nowhere",
    "StudyDescription": "CT HEAD Doe, jane 04.03.1927 MRN7731 #123456 nowhere",
}


def run(source: Path, **options: object) -> ConvertResult:
    return convert(source, 900, num_workers=1, **{"source_format": "dicom", "quiet": True, **options})


@pytest.mark.parametrize(
    ("text", "words", "kept"),
    [
        ("CT HEAD WITHOUT IV CONTRAST", ["Doe"], "CT HEAD WITHOUT IV CONTRAST"),
        ("CT HEAD DOE_Jane (Adult)", ["Doe", "jane"], "CT HEAD #_# (Adult)"),
        ("Doerr's protocol", ["Doe"], "Doerr's protocol"),
        ("Head^X 5mm 2020-02-29", [], "Head^X 5mm #"),
        ("on 29.02.20, 2/3/2021 and 3 Mar 2020", [], "on #, # and #"),
        ("Feb 29, 2020", [], "#"),
        ("0.625/1.25 120kV 1.5x0.6", [], "0.625/1.25 120kV 1.5x0.6"),
        ("acc 1234567 x1234", [], "acc # x1234"),
        ("a (b) [c", ["(b)", "[c"], "a # #"),
        ("A B", ["A", ""], "A B"),  # one letter is no name
        ("2020-02-29T10:15:00 2020-02-29 10:15", [], "# #"),
        ("scan_2020_02_29_a HEAD20200229 20200229101500", [], "scan_#_a HEAD# #"),
        ("2020 voxels, 20201345", [], "2020 voxels, #"),  # no date, but a long number
    ],
)
def test_texts_lose_names_dates_and_long_numbers(text: str, words: list[str], kept: str) -> None:
    assert scrub(text, words) == kept


@given(st.text(max_size=30), st.text(min_size=2, max_size=8), st.text(max_size=30))
def test_a_word_between_blanks_never_stays(before: str, word: str, after: str) -> None:
    if word.strip() == word and len(word) > 1:
        assert f" {word} " not in scrub(f"{before} {word} {after}", [word]) or word in "#"


def test_sentences_lose_paths() -> None:
    path = Path("/data/Doe_Jane/ct")
    told = without_paths(f"{path}/0001.dcm and {path} and /mnt/Roe/x.nii failed: 3/4", [path, path / "0001.dcm"])
    assert told == "the scan and the scan and a path failed: 3/4"


def test_slices_named_by_numbers_do_not_garble_sentences() -> None:
    files = [Path(f"/data/a/{number}") for number in range(1, 40)] + [Path("/data/a/0012")]
    sentence = "It is a gap of 16.00 mm above slice 12 of 23, in 0012."
    assert without_paths(sentence, [Path("/data/a"), *files]) == sentence.replace("0012", "a file")


def test_quoted_descriptions_lose_numbers_too(tmp_path: Path, roots: Path) -> None:
    tags = {
        "PatientName": "Doe^Jane",
        "StudyDescription": "CT HEAD 98765432",
        "SeriesDescription": "MIP 87654321 20200229",
        "ConvolutionKernel": "Hr40",
    }
    series(tmp_path / "in/a", 1, head=True, tags=tags)
    allowed = tmp_path / "allowed.csv"
    allowed.write_text("Study Description,KVP,Convolution Kernel\nCT HEAD 98765432,120,Hr40\n")
    record = read_report(run(tmp_path / "in", scan_filter=allowed).folder).scans[0]
    assert record.reasons[0].startswith("The series is called 'MIP # #': is it a scan?")
    assert record.notes[0] == "Allowed by allowed.csv, line 2: 'CT HEAD #', 120 kV, kernel Hr40."


def test_files_of_a_folder_that_cannot_be_read_are_not_named(tmp_path: Path, roots: Path) -> None:
    image(tmp_path / "in/good.nii.gz")
    for name in ("001", "Roe_001_a.dcm", "Roe_001_b.dcm"):
        series(tmp_path / "in/Roe/001", 1, tags={"Modality": "MR"}, prefix=name, series_uid="1.2.3")
    result = run(tmp_path / "in", source_format="folder")
    assert "Roe/001" in result.rejected[0].reasons[0]  # the screen names it
    told = next(record.reasons[0] for record in read_report(result.folder).scans if record.status == "reject")
    assert told.startswith("the scan cannot be read as one DICOM series. Got: modality 'MR' in a file.")
    assert "Roe" not in told
    assert "001" not in told


def test_days_keep_intervals_and_hide_dates() -> None:
    key, other = bytes(range(32)), bytes(32)
    first, later = (int(study_day(key, "P1", date)) for date in ("20200227", "2020-03-01T10:00"))
    assert later - first == 3
    assert study_day(key, "P1", "20200227") == str(first)
    assert len({study_day(k, s, "20200227") for k in (key, other) for s in ("P1", "P2", "P3")}) == 6
    assert study_day(key, "", "20200227") == study_day(key, "P1", "20201345") == study_day(key, "P1", "2020") == ""
    days = [int(study_day(key, f"P{k}", "20200227")) for k in range(2000)]
    assert max(days) - min(days) > 300_000  # the number does not tell the year
    assert len({day % 7 for day in days}) == 7
    assert str(parse_date("20200229")) == "2020-02-29"


def test_nothing_of_the_patient_is_in_the_dataset(tmp_path: Path, roots: Path) -> None:
    source = tmp_path / "Doe_Jane_MRN7731"
    series(source / "v1", 1, head=True, tags={**PATIENT, "StudyDate": "20200227"})
    series(source / "v2", 2, head=True, tags={**PATIENT, "StudyDate": "20200301"})
    series(source / "Doe_scout", 3, tags={**PATIENT, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    broken = series(source / "broken", 4, head=True, tags={**PATIENT, "StudyDate": "20200301"})
    for file in broken:
        file.write_bytes(file.read_bytes()[:-100])
    (source / "Doe^Jane.dcm").write_bytes(b"x" * 200)
    (tmp_path / "key").write_text(bytes(range(32)).hex())  # not drawn: of a drawn one an id may have 1927 in it
    result = run(source, key=tmp_path / "key")
    assert len(result.accepted) == 2
    files = [path for path in result.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"cases.csv", "dataset.json", "ingest_report.json"}
    words = (
        b"doe",
        b"jane",
        b"7731",
        b"acc88",
        b"gregory",
        b"1927",
        b"202002",
        b"2020-0",
        b"nowhere",
        b"1.2.826",
        b"0001.dcm",
    )
    for path in files:
        content = path.read_bytes().lower() + str(path.relative_to(roots)).lower().encode()
        for word in (*words, str(tmp_path).encode().lower()):
            assert word not in content, (path.name, word)
    cases = load_raw_dataset(900).cases
    assert set(cases["study_description"]) == {"CT HEAD #, # # # ## #"}
    assert set(cases["convolution_kernel"]) == {"['Hr40s', '# #']"}
    assert set(cases["manufacturer"]) == {"ACME of #"}
    assert {record.model for record in read_report(result.folder).scans} == {"Scan 64 # #", ""}
    assert set(cases["age"]) == {"90"}
    first, second = sorted(int(day) for day in cases["study_day"])
    assert second - first == 3


@pytest.mark.parametrize(
    "kernel", ["H30s", "Hr40s", "STANDARD", "BONE", "BONEPLUS", "SOFT", "FC26", "UB", "H31f\\3", "Head Smooth"]
)
def test_kernels_stay_whatever_a_patient_and_an_institution_are_called(tmp_path: Path, kernel: str) -> None:
    names = {"PatientName": "Bone^Standard^Soft", "PatientID": "UB", "OperatorsName": "Head^Smooth"}
    place = {"InstitutionName": "STANDARD BONE HOSPITAL OF BONEPLUS SOFT TISSUE H30s FC26", "Manufacturer": "Bone & Co"}
    series(tmp_path, 1, tags={**names, **place, "ConvolutionKernel": kernel.split("\\")})
    cells = make_candidate(find_scans(tmp_path).scans[0], bytes(32), ()).cells
    assert cells["convolution_kernel"] == (kernel if "\\" not in kernel else "['H31f', '3']")
    assert cells["manufacturer"] == "# & Co"


@pytest.mark.parametrize(
    ("institution", "description", "kept"),
    [
        ("Nowhere University Hospital", "CT head NOWHERE protocol", "CT head # protocol"),
        ("Universitätsklinikum Nirgendheim", "Schädel Nirgendheim Klinik", "Schädel # Klinik"),
        ("Head and Neck Imaging Center, Medical School", "CT HEAD NECK Medical", "CT HEAD NECK Medical"),
        ("Mid Bay", "CT Bay, Mid Bay", "CT Bay, #"),  # its short words by themselves tell nothing
    ],
)
def test_words_of_the_institution_are_taken_out_of_descriptions(
    tmp_path: Path, institution: str, description: str, kept: str
) -> None:
    tags = {"SpecificCharacterSet": "ISO_IR 192", "InstitutionName": institution, "StudyDescription": description}
    series(tmp_path, 1, tags=tags)
    assert make_candidate(find_scans(tmp_path).scans[0], bytes(32), ()).cells["study_description"] == kept


def test_what_a_table_says_of_the_scanner_names_nobody(tmp_path: Path, roots: Path) -> None:
    image(tmp_path / "in/s1.nii.gz")
    table = tmp_path / "labels.csv"
    table.write_text("image,subject_id,manufacturer,model,convolution_kernel\ns1,P77,ACME P77,P77 x,H30s P77\n")
    run(tmp_path / "in", source_format="folder", labels=table)
    row = load_raw_dataset(900).cases.iloc[0]
    assert [row[name] for name in ("manufacturer", "model", "convolution_kernel")] == ["ACME #", "# x", "H30s #"]


def test_sources_are_listed_beside_the_key_for_its_owner_only(tmp_path: Path, roots: Path) -> None:
    series(tmp_path / "in/Doe", 1, head=True)
    series(tmp_path / "in/Roe", 2, drop=range(5, 12))
    key = tmp_path / "safe/key"
    result = run(tmp_path / "in", key=key)
    assert not (roots / ".subject_key").exists()
    sources = tmp_path / "safe/ingest_sources.csv"
    assert sources in result.files
    assert [stat.S_IMODE(path.stat().st_mode) for path in (key, sources)] == [0o600, 0o600]
    lines = {row["status"]: row for row in csv.DictReader(sources.open())}
    assert lines["accept"]["path"] == str(tmp_path / "in/Doe")
    assert lines["reject"]["source"] == "Roe (5 slices)"
    assert lines["accept"]["case_id"] == result.accepted[0].case_id
    assert sorted(path.name for path in key.parent.iterdir()) == ["ingest_sources.csv", "key"]


def test_another_key_is_noticed(tmp_path: Path, roots: Path) -> None:
    image(tmp_path / "in/a.nii.gz")
    folder = run(tmp_path / "in", source_format="folder").folder
    before = (folder / "cases.csv").read_bytes()
    with pytest.raises(DataError, match="made with another key"):
        run(tmp_path / "in", source_format="folder", key=tmp_path / "other")
    for inside in (folder / "key", folder / "images/key", tmp_path):
        with pytest.raises(UsageError, match="not one for a key"):
            run(tmp_path / "in", source_format="folder", key=inside)
    assert (folder / "cases.csv").read_bytes() == before
    key = roots / ".subject_key"
    assert subject_key(key, create=False) == subject_key(key, create=True)


@pytest.mark.parametrize("name", ["date", "study_date", "StudyDate", "scandate", "date_of_scan", "DateOfBirth", "DOB"])
def test_date_columns_are_known_by_name(name: str) -> None:
    assert is_date_column(name)
    assert not any(is_date_column(other) for other in ("candidate", "update", "outdated", "validation", "age", "day"))


@pytest.mark.parametrize(
    "name", ["PatientName", "patient name", "name", "MRN", "patient_id", "Last_Name", "e-mail", "ssn"]
)
def test_columns_that_tell_who_somebody_is_are_known_by_name(name: str) -> None:
    assert is_identifying_column(name)
    plain = ("model_name", "subject_id", "zipped", "filename", "admission", "patient_age", "device name", "mailed")
    assert not any(is_identifying_column(other) for other in plain)


def test_the_place_beside_the_key_must_be_writable(tmp_path: Path, roots: Path) -> None:
    image(tmp_path / "in/a.nii.gz")
    key = tmp_path / "safe/key"
    subject_key(key, create=True)
    (tmp_path / "safe/.ingest_Dataset900_HeadCT.jsonl").mkdir()  # stands for a folder that is read only
    with pytest.raises(UsageError, match="Nothing can be written beside the key"):
        run(tmp_path / "in", source_format="folder", key=key)


def test_dates_and_texts_of_a_table_of_labels(tmp_path: Path, roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        image(tmp_path / f"in/s{number}.nii.gz", number)
    table = tmp_path / "labels.csv"
    table.write_text(
        "image,subject_id,study_date,birth_date,visit_date,age,comment,bleed,PatientName\n"
        "s1,P77,2021-01-01,1930-01-01,20210203,91,P77 seen 2021-01-02,1,Doe\n"
        "s2,P77,2021-01-31,1930-01-01,03.02.2021,91,good,0,Doe\n"
    )
    run(tmp_path / "in", source_format="folder", labels=table, quiet=False)
    told = capsys.readouterr().out
    assert "'birth_date' was left out: a day of birth." in told
    assert "Dates of 'study_date' became days in 'study_day', counted" in told
    assert "'visit_day', counted from a secret origin of each subject. 1 were left out: not written as" in told
    cases = load_raw_dataset(900).cases
    assert "'PatientName' was left out: by its name it tells who a patient is." in told
    assert {"study_date", "birth_date", "PatientName"} & set(cases.columns) == set()
    days = sorted(int(day) for day in cases["study_day"])
    assert days[1] - days[0] == 30
    assert set(cases["age"]) == {"90"}
    assert set(cases["comment"]) == {"# seen #", "good"}
    assert sorted(cases["bleed"]) == ["0", "1"]
