"""Overlap: images and patients in a dataset twice or in two datasets, and labels that contradict each other."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from crude_heads import crude_head

from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset
from headctssl.dataset.overlap import contradicting_labels, repeated_images, shared_with_others
from headctssl.dataset.verify import verify_dataset

PATIENTS = [f"subject_{k:016x}" for k in range(4)]


def table(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"case_id": [f"c{k}" for k in range(len(next(iter(columns.values()))))], **columns}, dtype=str)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("headctssl_raw", str(tmp_path))
    return tmp_path


def dataset(raw: Path, number: int, seeds: list[int], **columns: list[str]) -> Path:
    folder = raw / f"Dataset{number:03d}_X"
    images = [f"images/i{k}.nii.gz" for k in range(len(seeds))]
    for name, seed in zip(images, seeds, strict=True):
        write_nifti(folder / name, crude_head(seed, shape=(12, 20, 20), spacing=(16.0, 12.0, 12.0)))
    write_raw_dataset(folder, DatasetInfo(name="X"), table(image=images, **columns))
    return folder


def test_an_image_that_is_there_twice(raw: Path) -> None:
    folder = dataset(raw, 1, [1, 2, 1, 1], subject_id=["P1", "P2", "P1", "P3"], split=["train", "", "train", "test"])
    picture = nib.load(folder / "images/i2.nii.gz")  # the same voxels in another file format
    nib.save(nib.Nifti1Image(np.asarray(picture.dataobj).astype(np.float32), picture.affine), folder / "images/i2.nii")
    cases = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    cases.loc[2, "image"] = "images/i2.nii"
    cases.to_csv(folder / "cases.csv", index=False)
    faults = [f for f in verify_dataset(1, num_workers=1, quiet=True).faults if "twice" in f.what]
    assert [(f.case_id, f.got) for f in faults] == [
        ("c2", "the voxels of case 'c0'"),
        ("c3", "the voxels of case 'c0', which has another subject, which is in the split 'train'"),
    ]
    assert repeated_images(cases, {"c0": "a", "c1": "b", "c3": "c"}) == []


def test_labels_that_contradict_each_other_within_a_session() -> None:
    labels = [LabelSpec(name="bleed"), LabelSpec(name="volume", type="continuous")]
    cases = table(
        subject_id=["P1", "P1", "P1", "P1", "P1", "P2"],
        session_id=["s1", "s1", "s1", "s2", "", "s1"],
        bleed=["1", "", "0", "0", "1", "0"],
        volume=["1", "2", "3", "", "", ""],
    )
    (fault,) = contradicting_labels(cases, labels)
    assert (fault.case_id, fault.got) == ("c2", "'0' here, '1' in case 'c0'")
    cases["bleed"] = ["1", "", "1.0", "0", "1", "0"]
    assert contradicting_labels(cases, labels) == []
    assert contradicting_labels(cases.drop(columns="session_id"), labels) == []


def test_images_and_patients_of_another_dataset(raw: Path) -> None:
    here = dataset(raw, 1, [1, 2, 3, 4], subject_id=PATIENTS, split=["train", "test", "", "val"])
    dataset(raw, 2, [1, 2, 9], subject_id=[PATIENTS[0], PATIENTS[1], PATIENTS[3]], split=["train", "train", "test"])
    dataset(raw, 3, [7], subject_id=["P1"])
    (raw / "Dataset004_Y").mkdir()
    (raw / "Dataset004_Y/dataset.json").write_text("{}")
    (raw / "Dataset004_Y/cases.csv").write_text("a;b\n")
    cases = pd.read_csv(here / "cases.csv", dtype=str, keep_default_na=False)
    faults, remarks = shared_with_others(here, cases)
    assert [(f.case_id, f.what.split()[1], f.got) for f in faults] == [
        ("c1", "image", "'test' here, 'train' in case 'c1' of Dataset002_X"),
        ("c1", "subject", "'test' here, 'train' in case 'c1' of Dataset002_X"),
        ("c3", "subject", "'val' here, 'test' in case 'c2' of Dataset002_X"),
    ]
    assert remarks == [
        "2 images are in Dataset002_X too: 'c0' = 'c0', 'c1' = 'c1'.",
        "3 subjects are in Dataset002_X too: 'c0' = 'c0', 'c1' = 'c1', 'c3' = 'c2'.",
        next(r for r in remarks if r.startswith("Dataset004_Y was not compared with")),
    ]
    report = verify_dataset(1, num_workers=1, quiet=True)
    assert set(faults) <= set(report.faults)
    assert set(remarks) <= set(report.remarks)


def test_ids_that_people_gave_do_not_mean_one_patient_in_two_datasets(raw: Path) -> None:
    here = dataset(raw, 1, [1], subject_id=["P1"], split=["test"])
    dataset(raw, 2, [2], subject_id=["P1"], split=["train"])
    assert shared_with_others(here, table(image=["images/i0.nii.gz"], subject_id=["P1"], split=["test"])) == ([], [])
