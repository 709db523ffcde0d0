"""Tests of preprocessing what is not as it should be: sheared, missing, changed, withdrawn and refused sources."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from small_heads import STORAGE, head, make_dataset

from headctssl.dataset.image_io import read
from headctssl.dataset.manifest import load_raw_dataset, write_raw_dataset
from headctssl.errors import DataError
from headctssl.inference.sources import Source, prepared
from headctssl.paths import preprocessed_dataset
from headctssl.planning.usable import require_hounsfield
from headctssl.preprocessing.index import mask_path
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.report import PreprocessingReport
from headctssl.volume.store import StoredMask


def storage() -> Path:
    return preprocessed_dataset(7) / STORAGE.storage_id


def run(**more: bool) -> PreprocessingReport:
    return preprocess(7, rule=STORAGE, num_workers=1, quiet=True, **more)


def write_sheared(path: Path, values: NDArray[np.int16]) -> None:
    """A NIfTI of 5 mm voxels (z, y, x) whose slices are shifted as under a gantry tilt of 15 degrees."""
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(np.radians(15))
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), affine, dtype=np.int16), path)


def test_a_sheared_image_that_is_not_in_hu_is_refused(roots: Path) -> None:
    folder = make_dataset(7, 2)
    path = folder / "images" / "case7_00.nii.gz"
    write_sheared(path, head(1, bleed=False).hu + np.int16(1024))
    volume = read(path)
    assert volume.info.straightened
    assert volume.hu.min() == -1024  # the air that straightening added
    with pytest.raises(DataError, match="not Hounsfield units") as refused:
        require_hounsfield(volume)
    assert "-1024" not in refused.value.message
    assert [f.case_id for f in run().failures] == ["case7_00"]
    ((_, outcome),) = prepared([Source("case7_00", path)], STORAGE, 0)
    assert isinstance(outcome, DataError)
    assert "Hounsfield" in outcome.what


def test_a_mask_of_a_sheared_image_holds_what_it_held(roots: Path) -> None:
    folder = make_dataset(7, 2)
    values = head(1, bleed=False).hu
    write_sheared(folder / "images" / "case7_00.nii.gz", values)
    lesion = np.zeros_like(values)
    lesion[18:26, 18:26, 18:26] = 1
    write_sheared(folder / "lesion.nii.gz", lesion)
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.assign(segmentation=["lesion.nii.gz", ""]))
    rule = STORAGE.model_copy(update={"masks": ("head", "segmentation")})
    assert not preprocess(7, rule=rule, num_workers=1, quiet=True).failures
    stored = StoredMask(mask_path(preprocessed_dataset(7) / rule.storage_id, "case7_00", "segmentation"))
    assert stored.read(stored.whole).sum() * 8**3 == pytest.approx((8 * 5) ** 3, rel=0.3)
