"""Tests of intensity in DICOM: wrong rescaling and wrong signs are told, repaired when asked, and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crude_heads import crude_head
from dicom_writer import Options, write_dicom
from numpy.typing import NDArray

from headctssl.dataset.image_io import read
from headctssl.ingest.dicom import find_scans
from headctssl.ingest.verdict import judge, judge_facts

SPACING = (6.0, 4.0, 4.0)


def head() -> NDArray[np.int16]:
    """A head in noisy air, with bone up to about 2000 HU."""
    hu = crude_head(4, shape=(32, 56, 56), spacing=SPACING).hu.astype(np.float64)
    rng = np.random.default_rng(0)
    hu[hu < -900] += rng.normal(0, 8, int((hu < -900).sum()))
    hu[hu > 500] += rng.normal(300, 300, int((hu > 500).sum()))
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("12 bits read as signed", {"bits": 12, "tags": {"PixelRepresentation": 1}}, "12-bit"),
    ("intercept forgotten", {"tags": {"RescaleIntercept": 0}}, "HU + 1024"),
    ("intercept twice", {"tags": {"RescaleIntercept": -2048}}, "HU - 1024"),
    ("signed read as unsigned", {"signed": True, "rescale": (1.0, 0.0), "tags": {"PixelRepresentation": 0}}, "16 bits"),
]


@pytest.mark.parametrize(("name", "options", "told"), FAULTS, ids=[row[0] for row in FAULTS])
def test_wrong_values_are_told_and_repaired(tmp_path: Path, name: str, options: dict[str, Any], told: str) -> None:
    hu = head()
    write_dicom(tmp_path / "clean", hu, Options(spacing_mm=SPACING))
    write_dicom(tmp_path / "faulty", hu, Options(spacing_mm=SPACING, **options))
    clean = read(tmp_path / "clean")
    assert judge(clean) == ("accept", ())
    status, reasons = judge(read(tmp_path / "faulty"))
    assert status == "reject"
    assert told in reasons[0]
    repaired = read(tmp_path / "faulty", repair_intensity=True)
    np.testing.assert_array_equal(repaired.hu, clean.hu)
    assert judge(repaired) == ("accept", ())


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"Modality": "MR"}, "MR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "scout"),
        ({"BurnedInAnnotation": "YES"}, "burnt into"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projection"),
    ],
)
def test_what_the_headers_of_written_series_say(tmp_path: Path, tags: dict[str, Any], told: str) -> None:
    write_dicom(tmp_path / "in", head(), Options(spacing_mm=SPACING, tags=tags))
    found = find_scans(tmp_path / "in")
    scans = [*found.scans, *found.others]
    if not scans:
        assert any(told in entry.reason for entry in found.ignored)
        return
    (scan,) = scans
    assert scan.facts is not None
    status, reasons = judge_facts(scan.facts)
    assert status == "reject"
    assert any(told in reason for reason in reasons)
