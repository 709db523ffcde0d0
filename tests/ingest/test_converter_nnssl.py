"""nnssl: the hierarchy of pretrain_data.json, masks by name, metadata of every level, paths with $ENV."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from converter_sources import by_source, convert_as_documented, image, mask, stub, told

from headctssl.errors import DataError, UsageError
from headctssl.ingest.converters.nnssl import find_scans

QUALITY = [
    {"modality": "CT", "derived_from": None, "image_quality_score": 1.5},
    {"modality": "CT", "derived_from": "DWI", "image_quality_score": 4},
    {"modality": "T1w", "derived_from": None, "image_quality_score": 2},
]


def an_image(path: str, modality: str = "CT", **changes: object) -> dict[str, object]:
    return {
        "name": path.rpartition("/")[2],
        "image_path": path,
        "modality": modality,
        "image_info": {},
        "associated_masks": {"anatomy_mask": None, "anonymization_mask": None},
        **changes,
    }


def collection(*images: dict[str, object], subject: dict[str, object] | None = None) -> dict[str, object]:
    session = {"session_id": "ses-1", "session_info": None, "images": list(images)}
    person = {"subject_id": "sub-01", "subject_info": subject or {}, "sessions": {"ses-1": session}}
    dataset = {"dataset_index": "ds1", "dataset_info": {"image_quality_score": QUALITY}, "name": None}
    return {
        "collection_index": 745,
        "collection_name": "Dataset745_Heads",
        "datasets": {"ds1": {**dataset, "subjects": {"sub-01": person}}},
    }


def write(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pretrain_data.json"
    path.write_text(json.dumps(content))
    return path


def test_nnssl_masks_are_taken_by_name_whatever_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stub(tmp_path / "data/a.nii.gz", 1)
    anatomy, changed = tmp_path / "data/m1.nii.gz", tmp_path / "data/m2.nii.gz"
    for file in (anatomy, changed):
        mask(file, path, {1: slice(0, 1)})
    monkeypatch.setenv("heads_raw", f"{tmp_path}/data/")
    masks = {"anonymization_mask": "$heads_raw/m2.nii.gz", "anatomy_mask": "${heads_raw}/m1.nii.gz", "vessels": "x.nii"}
    source = write(tmp_path / "json", collection(an_image("$heads_raw/a.nii.gz", associated_masks=masks)))
    found = find_scans(source)
    (scan,) = found.scans
    assert scan.path == path
    assert dict(scan.masks) == {"anatomy_mask": anatomy, "anonymization_mask": changed}
    assert (scan.subject, scan.session, scan.source) == ("ds1/sub-01", "ds1/sub-01/ses-1", "ds1/sub-01/ses-1/a.nii.gz")
    assert "1 masks of a name that has no column: vessels" in told(found)
    assert find_scans(source.parent).scans == found.scans


def test_nnssl_an_unset_variable_is_an_error_not_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("heads_raw", raising=False)
    source = write(tmp_path, collection(an_image("$heads_raw/a.nii.gz")))
    with pytest.raises(UsageError, match=r"\$heads_raw, which is not set"):
        find_scans(source)
    # Images of other modalities are not opened, so that their variable does not matter.
    assert find_scans(write(tmp_path, collection(an_image("$heads_raw/a.nii.gz", "T1w")))).scans == ()


def test_nnssl_other_modalities_are_told_and_missing_files_rejected(tmp_path: Path) -> None:
    stub(tmp_path / "a.nii.gz", 1)
    images = [
        an_image("a.nii.gz", "CT_noncontrast"),
        an_image("b.nii.gz"),
        an_image("c.nii.gz", "T1w"),
        an_image("d", ""),
    ]
    found = find_scans(write(tmp_path, collection(*images)))
    assert list(by_source(found)) == ["ds1/sub-01/ses-1/a.nii.gz"]
    assert [verdict.source for verdict in found.rejected] == ["ds1/sub-01/ses-1/b.nii.gz"]
    assert "1 images of modality T1w" in told(found)
    assert "1 images of modality unknown" in told(found)


def test_nnssl_metadata_of_every_level_become_columns(tmp_path: Path) -> None:
    for k, name in enumerate("ab"):
        stub(tmp_path / f"{name}.nii.gz", k)
    images = [
        an_image("a.nii.gz", image_info={"kvp": 120, "model_name": "Scan 64", "site": "inner"}),
        an_image("b.nii.gz", image_info={"derived_from": "DWI", "image_quality_score": 3}),
    ]
    subject = {"age": 26, "sex": "female", "site": "outer", "patient_name": "Doe", "split": "val", "bmi": None}
    scans = by_source(find_scans(write(tmp_path, collection(*images, subject=subject))))
    first, second = (dict(scans[f"ds1/sub-01/ses-1/{name}.nii.gz"].columns) for name in "ab")
    assert first == {
        "age": "26", "sex": "F", "site": "inner", "split": "val", "kvp": "120", "model": "Scan 64",
        "image_quality_score": "1.5",
    }  # fmt: skip
    assert second["image_quality_score"] == "3"  # the image's own, not the dataset's


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["datasets"], [], "'datasets' does not fit"),
        (["datasets", "ds1", "subjects"], None, "dataset ds1: 'subjects' does not fit"),
        (["datasets", "ds1", "subjects", "sub-01", "sessions", "ses-1"], 3, "sub-01 of dataset ds1"),
        (["datasets", "ds1", "subjects", "sub-01", "sessions", "ses-1", "images"], {}, "session ses-1: 'images'"),
    ],
)
def test_nnssl_misfits_name_their_place(tmp_path: Path, keys: list[str], value: object, message: str) -> None:
    content = deepcopy(collection(an_image("a.nii.gz")))
    inner: dict[str, object] = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(DataError, match=message):
        find_scans(write(tmp_path, content))


def test_nnssl_becomes_a_dataset(tmp_path: Path, roots: Path) -> None:
    path = image(tmp_path / "in/a.nii.gz", 1)
    mask(tmp_path / "in/m.nii.gz", path, {1: slice(2, 20)})
    masks = {"anatomy_mask": "m.nii.gz", "anonymization_mask": None}
    source = write(tmp_path / "in", collection(an_image("a.nii.gz", associated_masks=masks), subject={"age": 95}))
    code, data = convert_as_documented("nnssl", source)
    assert (code, len(data.cases)) == (0, 1)
    row = data.cases.iloc[0]
    assert row["age"] == "90"
    assert (data.folder / row["anatomy_mask"]).is_file()
    assert "sub-01" not in (data.folder / "cases.csv").read_text()
