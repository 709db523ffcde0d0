"""Tests of masks in a raw dataset: label maps keep their values, and every fault of a mask is named."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from small_heads import make_dataset

from headctssl.contract import SegmentationClass
from headctssl.dataset.image_io import read, read_label_map
from headctssl.dataset.manifest import DatasetInfo, load_raw_dataset, write_raw_dataset
from headctssl.dataset.masks import read_mask
from headctssl.dataset.verify import verify_dataset
from headctssl.errors import DataError, ImageReadError

CLASSES = (SegmentationClass(name="one", value=1), SegmentationClass(name="three", value=3))


def two_halves() -> NDArray[np.int16]:
    """A ball of which one half is class 1, the other class 3: in between a mixture would be class 2."""
    z, y, x = np.mgrid[:20, :32, :32]
    ball = (z - 9.5) ** 2 + (y - 15.5) ** 2 + (x - 15.5) ** 2 < 8**2
    return np.where(ball, np.where(y < 16, 1, 3), 0).astype(np.int16)


def write(path: Path, values: NDArray[np.int16], tilt_deg: float = 0.0) -> Path:
    """A NIfTI of 2 mm voxels, slices 4 mm apart and moved as under a gantry tilt."""
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    affine[1, 2] = 4.0 * np.tan(np.radians(tilt_deg))
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), affine, dtype=np.int16), path)
    return path


def test_values_of_a_tilted_label_map_are_never_mixed(tmp_path: Path) -> None:
    values = two_halves()
    path = write(tmp_path / "tilted.nii.gz", values, 17.0)
    assert 2 in read(path).hu, "read as an image, the border between two classes would be a third"
    found = read_label_map(path)
    volume = read(path)
    assert found.values.shape == volume.hu.shape
    np.testing.assert_allclose(found.affine, volume.affine)
    assert set(np.unique(found.values)) == {0, 1, 3}
    voxel = np.linalg.det(found.affine[:3, :3])
    for value in (1, 3):
        held = (values == value).sum() * 16
        assert (found.values == value).sum() * abs(voxel) == pytest.approx(held, rel=0.05)


def test_any_part_marks_everything_that_half_marks_and_the_border(tmp_path: Path) -> None:
    path = write(tmp_path / "tilted.nii.gz", (two_halves() > 0).astype(np.int16), 17.0)
    half, part = read_label_map(path).values > 0, read_label_map(path, any_part=True).values > 0
    assert part[half].all()
    assert part.sum() > half.sum()
    # What an image of that mask would show of it at all is marked, and nothing else.
    whole = write(tmp_path / "image.nii.gz", np.where(two_halves() > 0, 30000, -1024).astype(np.int16), 17.0)
    assert np.array_equal(part, read(whole).hu > -1024)


def test_a_straight_label_map_is_only_turned(tmp_path: Path) -> None:
    found = read_label_map(write(tmp_path / "straight.nii.gz", two_halves()))
    counts = np.bincount(found.values.ravel())
    assert counts.tolist() == np.bincount(two_halves().ravel()).tolist()


def test_an_image_is_no_label_map(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2000, (20, 32, 32), dtype=np.int16)
    with pytest.raises(ImageReadError, match="not a label map"):
        read_label_map(write(tmp_path / "image.nii.gz", noise, 17.0))


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    image = read(write(tmp_path / "image.nii.gz", np.full((20, 32, 32), 40, np.int16)))
    good = write(tmp_path / "good.nii.gz", two_halves())
    assert read_mask("segmentation", good, image, CLASSES).values.max() == 3
    with pytest.raises(DataError, match="does not lie on the voxels"):
        read_mask("anatomy_mask", write(tmp_path / "short.nii.gz", two_halves()[:-1]), image)
    with pytest.raises(DataError, match="does not lie on the voxels"):
        read_mask("anatomy_mask", write(tmp_path / "tilted.nii.gz", two_halves(), 17.0), image)
    # PITFALLS 12: a mask value of -1 became a weight of 2.
    for name in ("anatomy_mask", "anonymization_mask", "segmentation"):
        with pytest.raises(DataError, match="values that a mask cannot have"):
            read_mask(name, write(tmp_path / "minus.nii.gz", -two_halves()), image)
    with pytest.raises(DataError, match="does not name") as unknown:
        read_mask("segmentation", good, image, CLASSES[:1])
    assert "3" in unknown.value.message
    assert read_mask("segmentation", good, image).values.max() == 3, "without classes every value is taken"


def test_classes_of_dataset_json() -> None:
    info = DatasetInfo.model_validate({"name": "x", "segmentation_classes": {"IPH": 1, "SDH": 7}})
    assert [(c.name, c.value) for c in info.segmentation_classes] == [("IPH", 1), ("SDH", 7)]
    assert DatasetInfo.model_validate_json(info.model_dump_json()) == info
    for wrong in ({"IPH": 1, "SDH": 1}, {"IPH": 0}, {"IPH": 256}, {"": 1}):
        with pytest.raises(ValidationError):
            DatasetInfo.model_validate({"name": "x", "segmentation_classes": wrong})


def test_verify_tells_the_faults_of_masks_by_case(roots: Path) -> None:
    folder = make_dataset(7, 3)
    raw = load_raw_dataset(7)
    for case_id, value in (("case7_00", 1), ("case7_01", 5)):
        image = nib.load(folder / "images" / f"{case_id}.nii.gz")
        values = np.zeros(image.shape, np.int16)
        values[10:20, 10:20, 10:20] = value
        nib.save(nib.Nifti1Image(values, image.affine), folder / f"{case_id}_seg.nii.gz")
    columns = {
        "segmentation": ["case7_00_seg.nii.gz", "case7_01_seg.nii.gz", ""],
        "anatomy_mask": ["", "", "nowhere.nii.gz"],
    }
    table = pd.DataFrame(raw.cases.assign(**columns))
    write_raw_dataset(folder, raw.info, table)
    report = verify_dataset(7, num_workers=1, quiet=True)
    assert [fault.case_id for fault in report.faults] == ["case7_02"]
    assert any("no segmentation_classes" in remark for remark in report.remarks)
    classes = {"segmentation_classes": {"IPH": 1, "SDH": 2}}
    info = DatasetInfo.model_validate({**raw.info.model_dump(), **classes})
    write_raw_dataset(folder, info, table)
    report = verify_dataset(7, num_workers=1, quiet=True)
    assert {fault.case_id: fault.got for fault in report.faults if "does not name" in fault.what} == {"case7_01": "5"}
    assert any("2 of 3 cases, classes 1 = IPH, 2 = SDH" in remark for remark in report.remarks)
