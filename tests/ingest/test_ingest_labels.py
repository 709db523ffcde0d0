"""Labels of scans that are there: corrected, taken back, added later, and of one scan said twice."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from converter_sources import image

from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.ingest.convert import convert

HEADER = "image,bleed,subject_id,split,site,age\n"


class Source:
    """Two heads with a table of labels, converted as often as a test wants."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.labels, self.capsys = folder / "in", folder / "labels.csv", capsys
        for number in (1, 2):
            image(self.folder / f"s{number}.nii.gz", number)

    def convert(self, *lines: str, header: str = HEADER, **options: object) -> str:
        """Convert with these lines as the table of labels (none: without one); what was printed."""
        if lines:
            self.labels.write_text(header + "".join(f"{line}\n" for line in lines))
            options["labels"] = self.labels
        convert(self.folder, 900, source_format="folder", num_workers=1, **options)
        return " ".join(self.capsys.readouterr().out.split())

    @property
    def data(self) -> RawDataset:
        return load_raw_dataset(900)

    @property
    def cases(self) -> pd.DataFrame:
        """The rows by the age of the patient, which tells which scan it is."""
        return self.data.cases.set_index("age")


@pytest.fixture
def source(tmp_path: Path, roots: Path, capsys: pytest.CaptureFixture[str]) -> Source:
    return Source(tmp_path, capsys)


LINES = ("s1,1,P1,train,north,51", "s2,0,P2,test,south,52")


def test_the_same_labels_again_are_no_change(source: Source) -> None:
    source.convert(*LINES)
    before = source.data.cases
    assert "--overwrite" not in source.convert("s1,1.0,P1,train,north,51", LINES[1])
    assert "--overwrite" not in source.convert()
    pd.testing.assert_frame_equal(source.data.cases, before)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("s1,0,P1,train,north,51", "bleed: '1' there, '0' in labels.csv"),
        ("s1,,P1,train,north,51", "bleed: '1' there, empty in labels.csv"),
        ("s1,1,P1,val,north,51", "split: 'train' there, 'val' in labels.csv"),
        ("s1,1,P9,train,north,51", "subject_id: 'subject_"),
    ],
)
def test_a_correction_of_a_scan_that_is_there_is_told_and_overwrite_takes_it(
    source: Source, line: str, told: str
) -> None:
    source.convert(*LINES)
    before = source.data.cases
    out = source.convert(line, LINES[1])
    first = source.cases.loc["51", "case_id"]
    assert f"1 cases that are there already have other values in labels.csv (first: {first}, {told}" in out
    assert "; --overwrite takes them." in out
    pd.testing.assert_frame_equal(source.data.cases, before)
    assert "--overwrite takes them" not in source.convert(line, LINES[1], overwrite=True)
    assert not source.data.cases.equals(before)
    assert "--overwrite takes them" not in source.convert(line, LINES[1])


def test_overwrite_takes_empty_cells_of_columns_that_the_table_has_and_keeps_the_others(source: Source) -> None:
    source.convert(*LINES)
    table = source.data.folder / "cases.csv"
    table.write_text(
        "\n".join(f"{line},{'note' if k == 0 else 'mine'}" for k, line in enumerate(table.read_text().splitlines()))
    )
    source.convert("s1,,P1,,,51", LINES[1], overwrite=True)
    row = source.cases.loc["51"]
    assert (row["bleed"], row["split"], row["site"], row["note"]) == ("", "", "", "mine")
    assert source.cases.loc["52", "bleed"] == "0"
    assert "kvp" not in row or row["kvp"] == ""


def test_a_scan_without_a_line_keeps_its_cells_with_overwrite(source: Source) -> None:
    source.convert(*LINES)
    source.convert(LINES[0], overwrite=True)
    assert (source.cases.loc["52", "bleed"], source.cases.loc["52", "split"]) == ("0", "test")


def test_labels_that_come_later_are_told_and_enter_with_overwrite(source: Source) -> None:
    source.convert()
    assert source.data.info.labels == ()
    out = source.convert("s1,1,51", "s2,0,52", header="image,bleed,age\n")
    assert "2 cases that are there already have other values in labels.csv (first: case_" in out
    assert "bleed: empty there, '1' in labels.csv)" in out
    assert source.data.info.labels == ()
    source.convert("s1,1,51", "s2,0,52", header="image,bleed,age\n", overwrite=True)
    assert [spec.name for spec in source.data.info.labels] == ["bleed"]
    assert dict(source.cases["bleed"]) == {"51": "1", "52": "0"}


def test_a_column_without_any_value_adds_none(source: Source) -> None:
    source.convert("s1,1,", "s2,0,", header="image,bleed,remark\n")
    assert "remark" not in source.data.cases.columns


def test_one_scan_with_contradicting_lines_is_told_and_has_no_label(source: Source) -> None:
    (source.folder / "twin.nii.gz").write_bytes((source.folder / "s1.nii.gz").read_bytes())
    (source.folder / "twin_of_s2.nii.gz").write_bytes((source.folder / "s2.nii.gz").read_bytes())
    header = "image,bleed,fracture,shift,subject_id,age\n"
    out = source.convert(
        "s1,1,,1,P1,51", "twin,0,1,1,P1,51", "s2,0,1,0,P2,52", "twin_of_s2,0.0,1,0,P9,52", header=header
    )
    assert "2 scans are in the source more than once with other values" in out
    assert "(first: bleed of s1.nii.gz and twin.nii.gz: '1' and '0'). Labels and splits that contradict" in out
    row = source.cases.loc["51"]
    assert (row["bleed"], row["fracture"], row["shift"]) == ("", "1", "1")
    other = source.cases.loc["52"]
    assert (other["bleed"], other["fracture"]) == ("0", "1")
    assert "--overwrite" not in source.convert(
        "s1,1,,1,P1,51", "twin,0,1,1,P1,51", "s2,0,1,0,P2,52", "twin_of_s2,0,1,0,P9,52", header=header
    )
