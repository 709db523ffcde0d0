"""Report: what it holds for the page, its peaks, and the small pictures of scans that were not accepted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from converter_sources import image, series
from crude_heads import crude_head
from matplotlib.image import imread

from headctssl.dataset.image_io import write_nifti
from headctssl.errors import DataError
from headctssl.ingest.convert import convert
from headctssl.ingest.report import ScanRecord, hu_peaks, read_report, write_report
from headctssl.ingest.thumbnail import thumbnail
from headctssl.types import Volume


def head() -> Volume:
    return crude_head(1, shape=(24, 40, 40), spacing=(8.0, 6.0, 6.0))


def test_a_record_has_what_the_page_shows(tmp_path: Path, roots: Path) -> None:
    tags = {
        **{"KVP": "120", "ConvolutionKernel": "Hr40s", "SliceThickness": "8", "Manufacturer": "SIEMENS"},
        **{"ManufacturerModelName": "X1", "PatientAge": "061Y", "PatientSex": "F", "ContrastBolusAgent": "OMNIPAQUE"},
    }
    series(tmp_path / "in", 1, head=True, tags=tags)
    result = convert(tmp_path / "in", 900, source_format="dicom", num_workers=1, quiet=True)
    (record,) = read_report(result.folder).scans
    told = {name: getattr(record, name) for name in ("status", "stage", "kvp", "convolution_kernel", "manufacturer")}
    assert told == {
        "status": "accept",
        "stage": "image",
        "kvp": "120",
        "convolution_kernel": "Hr40s",
        "manufacturer": "SIEMENS",
    }
    assert (record.model, record.age, record.sex, record.contrast) == ("X1", "61", "F", "yes")
    assert (record.shape, record.spacing_mm, record.slice_thickness_mm) == ((24, 40, 40), (8.0, 6.0, 6.0), "8")
    assert (record.tilt_deg, record.displacement_mm, record.straightened) == (0.0, 0.0, False)
    assert record.hu_peaks[0] == pytest.approx(-1000, abs=4)
    assert record.hu_peaks[1] == pytest.approx(34, abs=6)
    assert record.subject_id.startswith("subject_")
    assert record.thumbnail == ""
    assert not (result.folder / "ingest_thumbnails").exists()


def test_what_was_not_accepted_has_a_picture(tmp_path: Path, roots: Path) -> None:
    image(tmp_path / "in/good.nii.gz")
    volume = head()
    write_nifti(tmp_path / "in/offset.nii.gz", Volume((volume.hu + 1024).astype(np.int16), volume.affine, volume.info))
    options = {"source_format": "folder", "num_workers": 1, "quiet": True}
    assert not convert(tmp_path / "in/offset.nii.gz", 901, **options).folder.exists()  # no dataset, no picture
    folder = convert(tmp_path / "in", 900, **options).folder
    (record,) = [r for r in read_report(folder).scans if r.status == "reject"]
    assert record.thumbnail == f"ingest_thumbnails/{record.case_id}.png"
    picture = imread(folder / record.thumbnail)
    assert picture.shape[:2] == (96, 288)
    assert len(list((folder / "ingest_thumbnails").iterdir())) == 1


def test_a_thumbnail_shows_three_slices_upright() -> None:
    hu = np.full((30, 60, 60), -1000, np.int16)
    hu[2:28, 5:55, 5:55] = 40
    hu[25:28] = np.where(hu[25:28] > 0, 1000, hu[25:28])  # bright on top
    hu[:, 5:10] = np.where(hu[:, 5:10] > 0, 600, hu[:, 5:10])  # and in front
    strip = thumbnail(Volume(hu, np.diag([5.0, 3.0, 3.0, 1.0]), head().info)).astype(int)
    axial, coronal, sagittal = strip[:, :96], strip[:, 96:192], strip[:, 192:]
    assert axial[:48, 48].max() > axial[48:, 48].max() + 50  # anterior up
    assert coronal[:48, 48].max() > coronal[48:, 48].max() + 50  # superior up
    assert sagittal[40:60, :48].max() > sagittal[40:60, 48:].max() + 50  # anterior left
    hu[2:3, 10:, 5:55] = 600
    strip = thumbnail(Volume(hu, np.diag([5.0, 3.0, 3.0, 1.0]), head().info)).astype(int)
    rows = np.flatnonzero(strip[:, 96 + 48] > 30)
    assert rows[-1] - rows[0] + 1 == pytest.approx(96 * 26 * 5 / 180, abs=2)  # at its true height


def test_peaks_of_values_that_are_no_hounsfield_units() -> None:
    volume = head()
    assert hu_peaks(Volume((volume.hu + 1024).astype(np.int16), volume.affine, volume.info))[0] is None
    ramp = np.tile(np.arange(0, 400, dtype=np.int16), (20, 20, 1))
    ramp = np.sort(np.repeat(ramp, 2, axis=2), axis=2)
    ramp[ramp > 150] = 300  # a slope up to the border, and one value of bone
    assert hu_peaks(Volume(ramp, volume.affine, volume.info))[::2] == (None, 300)


def test_the_file_is_one_line_per_scan_and_an_older_one_is_refused(tmp_path: Path) -> None:
    records = [ScanRecord(case_id=f"case_{k}", status="accept", age="3") for k in range(3)]
    path = write_report(tmp_path, "check", records)
    assert len(path.read_text().splitlines()) == 5
    assert json.loads(path.read_text())["scans"][1] == {"case_id": "case_1", "status": "accept", "age": "3"}
    assert read_report(tmp_path).scans == tuple(records)
    path.write_text('{"format": 1, "scans": [{"source": "Doe", "case_id": "c", "status": "accept"}]}')
    with pytest.raises(DataError, match="does not fit its schema") as error:
        read_report(tmp_path)
    assert "Move it away" in str(error.value.do)


def test_a_localiser_of_the_same_series_has_a_record_of_its_own(tmp_path: Path, roots: Path) -> None:
    same = {"study_uid": "1.2.3", "series_uid": "1.2.3.4"}
    series(tmp_path / "in", 1, head=True, **same)
    localiser = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    series(tmp_path / "in", 2, prefix="scout", plane="coronal", tags=localiser, **same)
    for _ in range(2):  # the second time the scan is there already and is not read
        folder = convert(tmp_path / "in", 900, source_format="dicom", num_workers=1, quiet=True).folder
        found = sorted((record.status, record.stage) for record in read_report(folder).scans)
        assert found == [("accept", "image"), ("reject", "headers")]
