"""Ingest page: every scan is counted once, pictures and reasons are shown, and nothing outside is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_html import checked

from headctssl.cli.main import run_command
from headctssl.errors import DataError, UsageError
from headctssl.ingest.report import ScanRecord, write_report
from headctssl.ingest.thumbnail import write_thumbnail
from headctssl.reporting.ingest_page import MOST_OF_A_KIND, ingest_page
from headctssl.reporting.report import report
from headctssl.types import Volume, VolumeInfo


def record(number: int, status: str, **fields: object) -> ScanRecord:
    return ScanRecord.model_validate({"case_id": f"case_{number:04d}", "status": status, **fields})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset's folder with a report of 30 scans, ten of each verdict that is not simple, and their pictures."""
    folder = tmp_path / "Dataset007_Clinic"
    folder.mkdir()
    volume = Volume(
        np.random.default_rng(0).integers(-1000, 80, (6, 8, 8)).astype(np.int16),
        np.eye(4),
        VolumeInfo("nifti", (6, 8, 8), (1, 1, 1)),
    )
    records = []
    for k in range(10):
        known = {
            "original_spacing_mm": (5.0, 0.5, 0.5),
            "kvp": "120",
            "tilt_deg": float(k),
            "hu_peaks": (-1000, 30 + k, None),
        }
        records.append(record(k, "accept", subject_id=f"subject_{k // 2}", convolution_kernel="H31s", **known))
        picture = f"ingest_thumbnails/case_{10 + k:04d}.png"
        write_thumbnail(folder / picture, volume)
        records.append(record(10 + k, "reject", reasons=(f"It has {k + 1} slices <too few>.",), thumbnail=picture))
        records.append(record(20 + k, "left_out", stage="scan_filter", reasons=("Not on the list.",)))
    write_report(folder, "check", records)
    return folder


def test_counts_reasons_and_pictures(dataset: Path) -> None:
    page = ingest_page(dataset)
    facts = dict(page.facts)
    assert facts == {
        "scans offered": "30",
        "in the dataset": "10",
        "patients": "5",
        "of them to look at": "0",
        "rejected": "10",
        "left out by a rule": "10",
    }
    sections = {section.title: section for section in page.sections}
    assert sections["What became of the scans"].tables[0].rows == (
        ("accepted", "-", "10"),
        ("rejected", "by its image", "10"),
        ("left out by a rule", "by the scan filter", "10"),
    )
    reasons = sections["Reasons"].tables[0].rows
    assert reasons == (
        ("rejected", "10", "It has 1 slices <too few>."),
        ("left out by a rule", "10", "Not on the list."),
    ), "reasons that differ in their numbers are one"
    quantities = {row[0]: row[1:] for row in sections["The scans of the dataset"].tables[0].rows}
    assert quantities["slice spacing as stored, mm"] == ("10", "5", "5", "5")
    assert quantities["peak of soft tissue, HU"] == ("10", "30", "35", "39")
    assert "age, years (at most 90)" not in quantities, "nothing is said of what no scan states"
    pictures = sections["Scans to look at"].pictures
    assert len(pictures) == MOST_OF_A_KIND
    assert pictures[0].caption.startswith("case_0010: rejected. It has 1 slices")
    assert len(sections["List: rejected (10)"].tables[0].rows) == 10


def test_page_is_one_file_without_a_network(dataset: Path) -> None:
    path = report(dataset, quiet=True)
    assert path == dataset / "ingest_report.html"
    text = path.read_text(encoding="utf-8")
    assert "&lt;too few&gt;" in text
    assert "<too few>" not in text
    checked(path)
    assert report(dataset, output=dataset / "page.html", quiet=True) == dataset / "page.html"


def test_command_writes_it_and_faults_are_told(dataset: Path, tmp_path: Path) -> None:
    assert run_command("report", [str(dataset), "--quiet"]) == 0
    assert (dataset / "ingest_report.html").is_file()
    (dataset / "ingest_report.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="ingest_report"):
        report(dataset, quiet=True)
    with pytest.raises(UsageError, match="nothing to report on"):
        report(tmp_path, quiet=True)


def test_nothing_but_accepted_scans_is_said_in_words(tmp_path: Path) -> None:
    write_report(tmp_path, "check", [record(1, "accept")])
    page = ingest_page(tmp_path)
    assert page.sections[1].paragraphs == ("Every scan was accepted as it is.",)
    assert [section.title for section in page.sections][-1] == "The scans of the dataset"
    assert page.sections[-1].charts == (), "nothing is known of it, so nothing is drawn"
