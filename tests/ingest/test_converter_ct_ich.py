"""CT-ICH: PhysioNet's folders and tables, a two-line header, masks of 0 and 255."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from converter_sources import by_source, convert_as_documented, image, mask, stub, told, write_csv

from headctssl.dataset.image_io import read_label_map
from headctssl.dataset.verify import verify_dataset
from headctssl.errors import DataError
from headctssl.ingest.converters.ct_ich import find_scans

SLICES = (
    "PatientNumber", "SliceNumber", "Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural",
    "No_Hemorrhage", "Fracture_Yes_No",
)  # fmt: skip
PEOPLE = ("Patient Number", "Age\n(years)", "Gender", "Hemorrhage type based on the radiologists diagnosis ", *[""] * 4,
          "Fracture (yes 1/no 0)", "Note1")  # fmt: skip
SECOND = ("", "", "", "Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural", "", "")


def tables(root: Path) -> None:
    rows = [
        (49, 1, 0, 0, 0, 0, 0, 1, 0),
        (49, 2, 0, 1, 0, 0, 0, 0, 0),
        (49, 3, 0, 1, 0, 0, 1, 0, 1),
        (50, 1, 0, 0, 0, 0, 0, 1, 0),
        (50, 2, 0, 0, 0, 0, 0, 1, 0),
        (59, 1, 0, 0, 0, 1, 0, 0, 0),
        [""] * 9,
    ]
    write_csv(root / "hemorrhage_diagnosis_raw_ct.csv", SLICES, rows)
    people = [SECOND, (49, 1, "Male", *[""] * 7), (50, "0.75", "Female", *[""] * 7), ["", "", *[""] * 8]]
    write_csv(root / "Patient_demographics.csv", PEOPLE, people)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "ct-ich-1.3.1"
    for number in (49, 50, 66):
        path = stub(root / "ct_scans" / f"{number:03d}.nii", number)
        if number != 66:
            mask(root / "masks" / f"{number:03d}.nii", path, {255: slice(0, 1)} if number == 49 else {})
    tables(root)
    return root


def test_ct_ich_labels_are_those_of_any_slice(source: Path) -> None:
    found = find_scans(source)
    scans = by_source(found)
    assert dict(scans["ct_scans/049.nii"].columns) == {
        "age": "1", "sex": "M", "Intraventricular": "0", "Intraparenchymal": "1", "Subarachnoid": "0", "Epidural": "0",
        "Subdural": "1", "Hemorrhage": "1", "Fracture": "1",
    }  # fmt: skip
    healthy = dict(scans["ct_scans/050.nii"].columns)
    assert (healthy["Hemorrhage"], healthy["Fracture"], healthy["age"], healthy["sex"]) == ("0", "0", "0.75", "F")
    assert scans["ct_scans/066.nii"].columns == ()
    assert "1 patients of the table of slices have no scan" in told(found)
    assert len({scan.subject for scan in found.scans}) == 3


def test_ct_ich_masks_belong_to_their_scan(source: Path) -> None:
    found = find_scans(source)
    scans = by_source(found)
    assert scans["ct_scans/049.nii"].masks == (("segmentation", source / "masks/049.nii"),)
    assert scans["ct_scans/049.nii"].mask_rules == (("segmentation", "nonzero"),)
    assert scans["ct_scans/066.nii"].masks == ()
    assert found.segmentation_classes == (("hemorrhage", 1),)


def test_ct_ich_tables_may_be_missing_and_are_checked(source: Path) -> None:
    table = source / "hemorrhage_diagnosis_raw_ct.csv"
    table.write_text(table.read_text().replace("49,2,0,1", "49,2,0,3"))
    with pytest.raises(DataError, match="Intraparenchymal of patient 49 slice 2"):
        find_scans(source)
    table.unlink()
    (source / "Patient_demographics.csv").unlink()
    found = find_scans(source)
    assert found.labels == ()
    assert len(found.scans) == 3
    with pytest.raises(DataError, match="--from ct_ich"):
        find_scans(source / "masks")


def test_ct_ich_becomes_a_dataset_with_a_class(tmp_path: Path, roots: Path) -> None:
    root = tmp_path / "in"
    path = image(root / "ct_scans" / "049.nii", 3)
    mask(root / "masks" / "049.nii", path, {255: slice(9, 12)})
    tables(root)
    code, data = convert_as_documented("ct_ich", root)
    assert (code, len(data.cases)) == (0, 1)
    assert [(spec.name, spec.value) for spec in data.info.segmentation_classes] == [("hemorrhage", 1)]
    row = data.cases.iloc[0]
    values = read_label_map(data.folder / row["segmentation"]).values
    assert np.unique(values).tolist() == [0, 1]
    assert (values == 1).mean() == pytest.approx(3 / 24)
    assert data.labels().iloc[0]["Subdural"] == 1
    assert not verify_dataset(data.dataset_id, num_workers=1, quiet=True).faults
