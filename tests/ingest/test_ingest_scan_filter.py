"""Scan filter: HeadCT-Foundation's allow-list, exactly, in every spelling of a voltage and a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from headctssl.errors import DataError
from headctssl.ingest.scan_filter import kernel_parts, read_scan_filter

LIST = """Study Description,KVP,Convolution Kernel
CT HEAD WITHOUT IV CONTRAST,120.0,"['Hr40s', '3']"
CT HEAD WITHOUT IV CONTRAST,120.0,H37s
Head^ROUTINE_HEAD (Adult),80.0,"['Qr40s', '2']"
CT HEAD WITHOUT IV CONTRAST,120.0,"['Hr40s', '3']"
"""


def cells(description: str, kvp: str, kernel: str) -> dict[str, str]:
    return {"study_description": description, "kvp": kvp, "convolution_kernel": kernel}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "criterion.csv"
    file.write_text(LIST)
    return file


@pytest.mark.parametrize(
    ("kvp", "kernel", "line"),
    [
        ("120", "['Hr40s', '3']", 2),
        ("120.0", "Hr40s\\3", 2),
        ("120.00", "[Hr40s, 3]", 2),
        ("'120'", '["Hr40s", "3"]', 2),
        (" 1.2e2 ", "H37s", 3),
        ("120", "['H37s']", 3),
        ("120", "Hr40s", None),  # the list allows it with its second value only
        ("120", "['Hr40s', '1']", None),
        ("120", "['3', 'Hr40s']", None),
        ("120", "h37s", None),
        ("100", "H37s", None),
        ("80", "['Qr40s', '2']", None),  # of another description
    ],
)
def test_triples_are_compared_exactly(path: Path, kvp: str, kernel: str, line: int | None) -> None:
    passed, why = read_scan_filter(path).decide(cells("CT HEAD  WITHOUT IV CONTRAST", kvp, kernel))
    assert passed is (line is not None)
    assert f"criterion.csv, line {line}:" in why if line else "no line has" in why


def test_a_dropped_scan_is_told_what_no_line_has(path: Path) -> None:
    decide = read_scan_filter(path).decide
    assert "no line has this study description." in decide(cells("CT CHEST", "120", "H37s"))[1]
    assert "no line has this KVP nor this kernel." in decide(cells("CT HEAD WITHOUT IV CONTRAST", "90", "B"))[1]
    assert "no line has these three together" in decide(cells("CT HEAD WITHOUT IV CONTRAST", "80", "H37s"))[1]
    assert "KVP, Convolution Kernel not known" in decide({"study_description": "CT HEAD"})[1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Study Description,KVP\na,1\n", "no column Convolution Kernel"),
        ("Study Description,KVP,Convolution Kernel\n", "line 2"),
        ("Study Description,KVP,Convolution Kernel\na,,H37s\n", "line 2"),
        ("Study Description,KVP,Convolution Kernel\na,120,H37s\na,high,H37s\n", "line 3"),
        ("Study Description;KVP;Convolution Kernel\n", "semicolons"),
    ],
)
def test_what_is_no_allow_list_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        read_scan_filter(tmp_path / "f.csv")
    with pytest.raises(DataError, match="does not exist"):
        read_scan_filter(tmp_path / "none.csv")


def test_headings_may_be_written_as_columns_of_cases(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("site,kvp,study_description,ConvolutionKernel\nx,120,CT HEAD,H37s\n")
    assert read_scan_filter(tmp_path / "f.csv").decide(cells("CT HEAD", "120", "H37s"))[0]


def test_kernel_parts() -> None:
    assert kernel_parts("Hr40s") == ("Hr40s",)
    assert kernel_parts("[]") == kernel_parts("  ") == ()
    assert kernel_parts("[__import__('os')]") == ("__import__('os')",)
