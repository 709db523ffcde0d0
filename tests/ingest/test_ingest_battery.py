"""Battery: every fault that an export can have, beside clean scans; each is told, none stops or replaces another."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from battery_inputs import HEAD_SPACING, Image, Input, head
from faulty_exports import EXPORT_INPUTS, LITTER
from faulty_images import IMAGE_INPUTS
from faulty_series import SERIES_INPUTS

from headctssl.dataset.image_io import read
from headctssl.dataset.table import read_table
from headctssl.ingest.convert import ConvertResult, convert
from headctssl.ingest.journal import SOURCES_FILE
from headctssl.ingest.report import REPORT_FILE, IngestReport, ScanRecord
from headctssl.reporting.report import report as page
from headctssl.settings import read_json

DICOM_INPUTS = [*SERIES_INPUTS, *EXPORT_INPUTS]
# What a dataset must not hold: the patient of every input is called so, and so are the folders and files.
SECRETS = ("leakmann", "änne", "maria", "lk0", "petzmann", "doe^", "4711", "nowhere", "1927", "20200229", "29.02.2020")
FAULTY = [one for one in (*DICOM_INPUTS, *IMAGE_INPUTS) if not one.clean]


@dataclass(frozen=True)
class Batch:
    """What became of one source with every input in it."""

    source: Path
    result: ConvertResult
    printed: str
    expected: dict[str, Image | None]  # by folder of the input
    records: dict[str, ScanRecord]  # by case id
    shown: dict[str, str]  # case id -> what the user is told on the screen
    sources: dict[str, tuple[str, str]]  # case id -> (source, status)

    def of(self, folder: str) -> list[ScanRecord]:
        """The records of one input."""
        return [
            self.records[case]
            for case, (source, _) in self.sources.items()
            if source == folder or source.startswith((f"{folder}/", f"{folder} ("))
        ]


def folder_of(number: int, one: Input) -> str:
    return f"LK{number:04d} {one.name}"


def run_batch(root: Path, inputs: Sequence[Input], source_format: str, monkeypatch: pytest.MonkeyPatch) -> Batch:
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"headctssl_{kind}", str(root / kind))
    expected: dict[str, Image | None] = {}
    for number, one in enumerate(inputs):
        folder = root / "Leakmann in" / folder_of(number, one)
        folder.mkdir(parents=True)
        expected[folder.name] = one.make(folder, head(number))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        result = convert(root / "Leakmann in", 900, source_format=source_format, num_workers=1)
    report = read_json(result.folder / REPORT_FILE, IngestReport)
    table = read_table(root / "raw" / SOURCES_FILE)
    sources = {str(row["case_id"]): (str(row["source"]), str(row["status"])) for row in table.to_dict("records")}
    page(result.folder, output=result.folder / "ingest_report.html", quiet=True)
    shown = {v.case_id: " ".join((*v.reasons, *v.notes)) for v in (*result.rejected, *result.accepted)}
    records = {record.case_id: record for record in report.scans}
    return Batch(root / "Leakmann in", result, told.getvalue(), expected, records, shown, sources)


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> dict[str, Batch]:
    root = tmp_path_factory.mktemp("battery")
    return {
        "folder": run_batch(root / "images", IMAGE_INPUTS, "folder", patched),
        "dicom": run_batch(root / "dicom", DICOM_INPUTS, "dicom", patched),
    }


ALL = [
    pytest.param(kind, number, one, id=f"{kind}: {one.name[:50]}")
    for kind, inputs in (("dicom", DICOM_INPUTS), ("folder", IMAGE_INPUTS))
    for number, one in enumerate(inputs)
]


@pytest.mark.parametrize(("kind", "number", "one"), ALL)
def test_every_input_gets_its_verdict(batches: dict[str, Batch], kind: str, number: int, one: Input) -> None:
    batch = batches[kind]
    records = batch.of(folder_of(number, one))
    assert sorted(record.status for record in records) == sorted(status for status, _ in one.expected)
    for status, told in one.expected:
        found = [record for record in records if record.status == status]
        texts = [" ".join((*record.reasons, *record.notes, batch.shown.get(record.case_id, ""))) for record in found]
        assert any(told in text for text in texts), texts


@pytest.mark.parametrize("kind", ["dicom", "folder"])
def test_clean_scans_come_out_exactly_as_they_went_in(batches: dict[str, Batch], kind: str) -> None:
    """0 HU and 0.01 mm; every head carries its number, so that none can stand for another."""
    batch, data = batches[kind], load(batches[kind])
    inputs = DICOM_INPUTS if kind == "dicom" else IMAGE_INPUTS
    for number, one in enumerate(inputs):
        if not one.clean:
            continue
        (record,) = batch.of(folder_of(number, one))
        volume = read(data / "images" / f"{record.case_id}.nii.gz")
        np.testing.assert_array_equal(volume.hu, batch.expected[folder_of(number, one)], err_msg=one.name)
        np.testing.assert_allclose(volume.spacing_mm, HEAD_SPACING, atol=0.01, err_msg=one.name)
        if kind == "dicom" and one.name != "prone":
            np.testing.assert_allclose(volume.affine[:3, 3], (40.0, -30.0, -20.0), atol=0.01, err_msg=one.name)


def load(batch: Batch) -> Path:
    return batch.result.folder


@pytest.mark.parametrize("kind", ["dicom", "folder"])
def test_nothing_is_lost_nothing_is_made_up(batches: dict[str, Batch], kind: str) -> None:
    """Every record has an input, the table has one row and one image for each accepted one, and what is told agrees."""
    batch = batches[kind]
    inputs = DICOM_INPUTS if kind == "dicom" else IMAGE_INPUTS
    owned = [record.case_id for number, one in enumerate(inputs) for record in batch.of(folder_of(number, one))]
    assert sorted(owned) == sorted(batch.records)
    assert set(batch.sources) == set(batch.records)
    kept = {record.case_id for record in batch.records.values() if record.status in ("accept", "review")}
    table = read_table(load(batch) / "cases.csv")
    assert sorted(table["case_id"]) == sorted(kept)
    assert {path.name for path in (load(batch) / "images").iterdir()} == {f"{case}.nii.gz" for case in kept}
    assert set(table.loc[table["quality"] == "review", "case_id"]) == {
        record.case_id for record in batch.records.values() if record.status == "review"
    }
    told = (*batch.result.accepted, *batch.result.rejected)
    others = {case for case, record in batch.records.items() if record.stage == "headers"} - {v.case_id for v in told}
    assert len(told) + len(others) == len(batch.records)
    assert batch.result.exit_code == 1
    counts = [entry.reason for entry in batch.result.ignored]
    for fragment in (*(LITTER if kind == "dicom" else ()), *(one.counted for one in inputs if one.counted)):
        assert any(fragment in reason for reason in counts), (fragment, counts)
    if kind == "dicom":
        assert not batch.result.skipped
        assert "18 slices were there more than once" in batch.printed
        assert "2 slices had the place and the pixels of another" in batch.printed
    else:
        assert [entry.reason.startswith("the same scan as") for entry in batch.result.skipped] == [True]


@pytest.mark.parametrize("kind", ["dicom", "folder"])
def test_a_second_time_nothing_is_read_and_nothing_changes(batches: dict[str, Batch], kind: str) -> None:
    batch = batches[kind]
    before = [(path, path.read_bytes()) for path in sorted(load(batch).rglob("*.*"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("headctssl_raw", str(load(batch).parent))
        patch.setattr("headctssl.ingest.one_scan.read_series", None)
        patch.setattr("headctssl.ingest.one_scan.read", None)
        again = convert(batch.source, 900, source_format=kind, num_workers=1, quiet=True)
    assert not again.accepted
    assert len(again.rejected) == len(batch.result.rejected)
    assert len(again.skipped) == len(batch.result.accepted) + len(batch.result.skipped)
    assert [(path, path.read_bytes()) for path in sorted(load(batch).rglob("*.*"))] == before


def test_the_sign_of_a_tilt_comes_from_positions_alone(batches: dict[str, Batch]) -> None:
    batch = batches["dicom"]
    straight: dict[str, list[Image]] = {"+15": [], "-15": []}
    for number, one in enumerate(DICOM_INPUTS):
        if one.name.startswith("tilt "):
            (record,) = batch.of(folder_of(number, one))
            volume = read(load(batch) / "images" / f"{record.case_id}.nii.gz")
            # The number that a head carries lies in the air of its first slice.
            straight[one.name.split()[1]].append(volume.hu[2:])
    assert [len(found) for found in straight.values()] == [3, 2]
    for found in straight.values():
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])
    assert not np.array_equal(straight["+15"][0], straight["-15"][0])


@pytest.mark.parametrize("kind", ["dicom", "folder"])
def test_nobody_is_named_in_the_dataset(batches: dict[str, Batch], kind: str) -> None:
    batch = batches[kind]
    files = [path for path in load(batch).rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix in (".json", ".csv", ".html", ".txt", ".md")]
    assert {path.name for path in texts} == {"dataset.json", "cases.csv", REPORT_FILE, "ingest_report.html"}
    secrets = (*SECRETS, str(batch.source.parent).lower())
    for path in files:
        content = path.read_text(encoding="utf-8") if path in texts else ""
        content = re.sub(r"base64,[A-Za-z0-9+/=]+", "", content)  # the pictures of the page
        where = f"{path.relative_to(load(batch))}\n{content}".lower()
        for secret in secrets:
            # Digits within a hash or a number of days are chance: the key is another one in every run.
            found = re.search(rf"(?<![0-9a-f]){secret}(?![0-9a-f])" if secret.isdigit() else re.escape(secret), where)
            assert found is None, (path.name, secret, where[max(0, found.start() - 200) : found.end() + 100])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
@pytest.mark.parametrize("kind", ["dicom", "folder"])
def test_what_may_not_be_opened_is_told(tmp_path: Path, patched: pytest.MonkeyPatch, kind: str) -> None:
    inputs = [
        next(one for one in (DICOM_INPUTS if kind == "dicom" else IMAGE_INPUTS) if one.clean and one.counted == "")
    ]
    source = run_batch(tmp_path, inputs, kind, patched).source
    (source / "closed").mkdir(mode=0)
    try:
        result = convert(source, 900, source_format=kind, num_workers=1, quiet=True)
    finally:
        (source / "closed").chmod(0o700)
    assert any("1 folders that cannot be opened" in entry.reason for entry in result.ignored)


def test_there_are_enough_faults_and_each_has_a_name() -> None:
    assert len(FAULTY) >= 75
    names = Counter(one.name for one in (*DICOM_INPUTS, *IMAGE_INPUTS))
    assert names.most_common(1)[0][1] <= 2
