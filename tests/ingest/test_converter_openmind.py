"""OpenMind: its metadata table with masks and quality, MR left out, anatomy masks the other way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from converter_sources import convert_as_documented, image, mask, stub, told, write_csv

from headctssl.dataset.image_io import read_label_map
from headctssl.errors import DataError
from headctssl.ingest.convert import convert
from headctssl.ingest.converters.openmind import find_scans

HEADER = (
    "unique_id", "image_path", "anon_mask_path", "anat_mask_path", "modality", "derived_from", "age", "sex",
    "handedness", "race", "weight", "bmi", "health_status", "is_brain_extract", "manufacturer", "model_name",
    "magnetic_field_strength", "image_quality_score",
)  # fmt: skip


def row(path: str, modality: str = "CT", **cells: object) -> list[object]:
    return [cells.get(name, {"image_path": path, "modality": modality}.get(name, "")) for name in HEADER]


def table(root: Path, *rows: list[object]) -> Path:
    write_csv(root / "openneuro_metadata.csv", HEADER, rows)
    return root


def test_openmind_images_have_masks_metadata_and_quality(tmp_path: Path) -> None:
    path = stub(tmp_path / "OpenMind/ds000001/sub-01/ses-2/ct/a.nii.gz", 1)
    masks = {
        "anat_mask_path": "ds000001/sub-01/ses-2/ct/a_fb.nii.gz",
        "anon_mask_path": "ds000001/sub-01/a_deface.nii.gz",
    }
    for name in masks.values():
        mask(tmp_path / "OpenMind" / name, path, {1: slice(0, 1)})
    cells = {"age": "31.0", "sex": "male", "race": "x", "health_status": "control", "image_quality_score": 1.4}
    root = table(
        tmp_path,
        row("ds000001/sub-01/ses-2/ct/a.nii.gz", **masks, **cells),
        row("ds000001/sub-01/ses-2/anat/T1w.nii.gz", "T1w"),
        row("ds000001/sub-02/pet/pet.nii.gz", "PET"),
    )
    found = find_scans(root)
    (scan,) = found.scans
    assert scan.path == path
    assert dict(scan.masks) == {
        "anatomy_mask": tmp_path / "OpenMind" / masks["anat_mask_path"],
        "anonymization_mask": tmp_path / "OpenMind" / masks["anon_mask_path"],
    }
    assert scan.mask_rules == (("anatomy_mask", "zero"),)
    assert dict(scan.columns) == {"age": "31", "sex": "M", "health_status": "control", "image_quality_score": "1.4"}
    assert (scan.subject, scan.session) == ("ds000001/sub-01", "ds000001/sub-01/ses-2")
    assert "1 images of modality PET" in told(found)
    assert "1 images of modality T1w" in told(found)


def test_openmind_as_published_holds_no_ct_and_says_so(tmp_path: Path, roots: Path) -> None:
    root = table(tmp_path / "in", row("ds000001/sub-01/anat/T1w.nii.gz", "T1w"))
    with pytest.raises(DataError, match="No scan was found") as error:
        convert(root, 900, source_format="openmind", num_workers=1, quiet=True)
    assert error.value.got == "1 images of modality T1w"


def test_openmind_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--from openmind"):
        find_scans(tmp_path)
    write_csv(tmp_path / "openneuro_metadata.csv", ["image_path"], [])
    with pytest.raises(DataError, match="lacks columns"):
        find_scans(tmp_path)


def test_openmind_anatomy_masks_are_turned_round(tmp_path: Path, roots: Path) -> None:
    """The published masks are 1 in the background; in a raw dataset 1 is where anatomy is."""
    root = tmp_path / "in"
    path = image(root / "OpenMind/ds1/sub-01/ct/a.nii.gz", 1)
    mask(root / "OpenMind/ds1/sub-01/ct/fb.nii.gz", path, {0: slice(2, 20)}, background=1)
    mask(root / "OpenMind/ds1/sub-01/ct/de.nii.gz", path, {1: slice(0, 2)})
    masks = {"anat_mask_path": "ds1/sub-01/ct/fb.nii.gz", "anon_mask_path": "ds1/sub-01/ct/de.nii.gz"}
    table(root, row("ds1/sub-01/ct/a.nii.gz", **masks))
    _, data = convert_as_documented("openmind", root)
    case = data.cases.iloc[0]
    found = {name: read_label_map(data.folder / case[name]).values for name in ("anatomy_mask", "anonymization_mask")}
    assert [int((found["anatomy_mask"] > 0).any(axis=(1, 2)).sum()), found["anatomy_mask"].max()] == [18, 1]
    assert np.flatnonzero((found["anonymization_mask"] > 0).any(axis=(1, 2))).tolist() == [0, 1]


def test_openmind_quality_can_be_asked_for(tmp_path: Path, roots: Path) -> None:
    root = tmp_path / "in"
    for seed in (1, 2):
        image(root / f"OpenMind/ds1/sub-0{seed}/ct/a.nii.gz", seed)
    table(root, *(row(f"ds1/sub-0{k}/ct/a.nii.gz", image_quality_score=2 * k) for k in (1, 2)))
    code, data = convert_as_documented("openmind", root, which=1)
    assert (code, list(data.cases["image_quality_score"])) == (0, ["2"])
