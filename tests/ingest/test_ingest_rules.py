"""Rules of a conversion: what headers, scan filter, condition and selection keep, and that it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from converter_sources import image, series

from headctssl.dataset.manifest import load_raw_dataset
from headctssl.errors import DataError, UsageError
from headctssl.ingest.convert import ConvertResult, convert
from headctssl.ingest.report import read_report
from headctssl.ingest.screening import parse_selection
from headctssl.ingest.selection import Selection

Command = Callable[..., tuple[int, str, str]]
STUDY = "1.2.3.4"


def kernel(name: object, **tags: object) -> dict[str, object]:
    return {"ConvolutionKernel": name, "StudyDescription": "CT HEAD WITHOUT IV CONTRAST", "KVP": "120", **tags}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One study: soft thick, soft of two values, bone, and a scout that headers reject."""
    source = tmp_path_factory.mktemp("study")
    series(source / "soft", 1, head=True, study_uid=STUDY, series_number=2, tags=kernel("Hr40s"))
    series(source / "list", 2, head=True, study_uid=STUDY, series_number=3, tags=kernel(["Hr40s", "3"]))
    series(source / "bone", 3, head=True, study_uid=STUDY, series_number=4, tags=kernel("Hr64h"))
    series(source / "short", 4, study_uid=STUDY, series_number=5, tags=kernel("Hr40s"), drop=range(5, 12))
    return source


def run(source: Path, **options: object) -> ConvertResult:
    return convert(source, 900, source_format="dicom", num_workers=1, quiet=True, **options)


def names(result: ConvertResult) -> list[str]:
    return sorted(verdict.source.split()[0] for verdict in result.accepted)


def test_without_rules_every_series_that_can_be_a_head_is_kept(study: Path, roots: Path) -> None:
    result = run(study)
    assert names(result) == ["bone", "list", "soft"]
    assert result.left_out == ()
    # By its headers, before its pixels.
    records = {record.status + record.stage: record for record in read_report(result.folder).scans}
    assert set(records) == {"acceptimage", "rejectheaders"}
    assert records["rejectheaders"].read_with == ""
    assert load_raw_dataset(900).cases["convolution_kernel"].tolist() == ["Hr64h", "['Hr40s', '3']", "Hr40s"]


def test_the_scan_filter_keeps_what_it_lists(study: Path, roots: Path, tmp_path: Path) -> None:
    (tmp_path / "allow.csv").write_text(
        "Study Description,KVP,Convolution Kernel\n"
        "CT CHEST,120,Hr64h\n"
        "CT HEAD WITHOUT IV CONTRAST,120.0,\"['Hr40s', '3']\"\n"
    )
    result = run(study, scan_filter=tmp_path / "allow.csv")
    assert names(result) == ["list"]
    assert result.accepted[0].notes[0].startswith("Allowed by allow.csv, line 3:")
    left = {entry.source.split()[0]: entry.reason for entry in result.left_out}
    assert set(left) == {"soft", "bone"}
    assert "no line has this kernel" in left["soft"]
    assert "no line has these three together" in left["bone"]
    stages = [record.stage for record in read_report(result.folder).scans if record.status == "left_out"]
    assert stages == ["scan_filter", "scan_filter"]


def test_a_condition_is_asked_before_reading_where_it_can(study: Path, roots: Path) -> None:
    result = run(study, where="convolution_kernel == 'Hr64h' or slice_thickness_mm < 1")
    assert names(result) == ["bone"]
    assert {entry.reason.split(":")[0] for entry in result.left_out} == {
        "It does not satisfy --where convolution_kernel == 'Hr64h' or slice_thickness_mm < 1"
    }
    with pytest.raises(UsageError, match="Unknown column in --where 'kernel'"):
        run(study, where="kernel == 'Hr64h'")


def test_a_condition_on_what_only_reading_tells(roots: Path, tmp_path: Path) -> None:
    image(tmp_path / "in/a.nii.gz")
    options = {"source_format": "folder", "num_workers": 1, "quiet": True}
    result = convert(tmp_path / "in", 900, where="gantry_tilt_deg > 5", **options)
    assert (len(result.accepted), len(result.left_out), result.exit_code) == (0, 1, 0)
    assert "gantry_tilt_deg is 0" in result.left_out[0].reason
    assert not result.folder.exists()
    result = convert(tmp_path / "in", 900, where="gantry_tilt_deg < 5 and quality is unknown", **options)
    assert len(result.accepted) == 1


def test_one_series_per_study(study: Path, roots: Path) -> None:
    result = run(study, select="kernel=bone,per_study=1")
    assert names(result) == ["bone"]
    assert len(result.left_out) == 2
    again = run(study, select="kernel=bone,per_study=1")
    assert (len(again.accepted), len(again.skipped), len(again.left_out)) == (0, 1, 2)


def test_a_chosen_series_that_its_image_rejects_makes_room_for_the_next(roots: Path, tmp_path: Path) -> None:
    series(tmp_path / "in/best", 1, head=True, study_uid=STUDY, tags=kernel("Hr40s"))
    for file in (tmp_path / "in/best").iterdir():
        file.write_bytes(file.read_bytes()[:-100])  # its headers are good
    series(tmp_path / "in/next", 2, head=True, study_uid=STUDY, tags=kernel("Hr64h"))
    result = run(tmp_path / "in", select="one")
    assert [v.source.split()[0] for v in result.rejected] == ["best"]
    assert names(result) == ["next"]
    again = run(tmp_path / "in", select="one")
    assert [len(again.accepted), len(again.rejected), len(again.skipped)] == [0, 1, 1]
    assert "not read again" in again.rejected[0].reasons[-1]


def test_what_select_takes() -> None:
    assert parse_selection("all") == Selection()
    assert parse_selection("one") == Selection(per_study=1)
    wanted = Selection(kernel="soft", thickness="thinnest", orientation="axial", per_study=2)
    assert parse_selection("kernel=soft, thickness=thinnest,orientation=axial,per_study=2") == wanted
    for wrong in ("", "soft", "kernel=hard", "kernels=soft", "per_study=0"):
        with pytest.raises(UsageError, match=r"select"):
            parse_selection(wrong)


def test_a_dry_run_shows_every_scan_and_why(study: Path, roots: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "allow.csv").write_text(
        "Study Description,KVP,Convolution Kernel\nCT HEAD WITHOUT IV CONTRAST,120,Hr40s\n"
        "CT HEAD WITHOUT IV CONTRAST,120,Hr64h\n"
    )
    code, out, _ = command(
        *("convert", study, "-d", 7, "--from", "dicom", "--num_workers", 1, "--dry_run"),
        *("--scan_filter", tmp_path / "allow.csv", "--select", "one", "--where", "kvp >= 100"),
    )
    assert code == 1
    assert not roots.exists()
    flat = " ".join(out.replace("│", " ").split())
    for told in (
        "What would become of the scans",
        "accept soft (24 slices) Allowed by allow.csv, line 2",
        "reject short (5 slices)",
        "left out list (24 slices) allow.csv:",
        "left out bone (24 slices) per_study=1: another series of its study is preferred, for its kernel.",
        "1 accept, 0 review, 1 reject, 2 left out, 0 there already.",
        "Dry run: nothing was written.",
    ):
        assert told in flat, told


def test_rules_that_cannot_be_read_are_told_before_anything_is_searched(study: Path, roots: Path) -> None:
    with pytest.raises(UsageError, match="--where cannot be read"):
        run(study, where="kvp =")
    with pytest.raises(DataError, match="does not exist"):
        run(study, scan_filter="nowhere.csv")
    with pytest.raises(UsageError, match="--select"):
        run(study, select="best")
    assert not roots.exists()
