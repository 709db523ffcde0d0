"""NIfTI headers read from the first bytes of a file say what nibabel says of the whole file."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Extension

from headctssl.dataset.image_io import read, read_header
from headctssl.dataset.nifti_header import nifti_header
from headctssl.errors import ImageReadError

KINDS = (np.int16, np.uint8, np.int32, np.float32, np.float64)


def bytes_of(image: nib.Nifti1Image) -> bytes:
    return bytes(image.to_bytes())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_says_what_nibabel_says(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=4)))
    kind = data.draw(st.sampled_from(KINDS))
    steps = data.draw(st.lists(st.floats(0.1, 9), min_size=3, max_size=3))
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = data.draw(st.lists(st.floats(-300, 300), min_size=3, max_size=3))
    affine[0, 2] = data.draw(st.sampled_from([0.0, 0.3]))
    header = nib.Nifti1Header(endianness=data.draw(st.sampled_from("<>")))
    image = nib.Nifti1Image(np.zeros(shape, kind), affine, header=header)
    image.set_sform(affine, code=data.draw(st.integers(0, 2)))
    image.set_qform(affine, code=data.draw(st.integers(0, 2)), strip_shears=True)
    if data.draw(st.booleans()):
        image.header.extensions.append(Nifti1Extension(6, b"told" * data.draw(st.integers(1, 300))))
    zipped = data.draw(st.booleans())
    path = tmp_path_factory.mktemp("nifti") / ("a.nii.gz" if zipped else "a.nii")
    path.write_bytes(gzip.compress(bytes_of(image)) if zipped else bytes_of(image))
    found, expected = nifti_header(path), nib.load(path)
    assert found is not None
    assert found.shape == expected.shape
    assert found.header.get_data_dtype() == expected.header.get_data_dtype()
    assert found.header.get_xyzt_units() == expected.header.get_xyzt_units()
    for code in ("sform_code", "qform_code"):
        assert int(found.header[code]) == int(expected.header[code])
    np.testing.assert_array_equal(found.affine, expected.affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_it_cannot_judge_is_left_to_nibabel(tmp_path: Path, suffix: str) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    plain = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine)
    long = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine)
    long.header.extensions.append(Nifti1Extension(6, b"told" * 4000))
    second = nib.Nifti2Image(np.zeros((4, 5, 6), np.int16), affine)
    path = tmp_path / f"a{suffix}"
    for content in (bytes_of(long), bytes_of(second)):
        path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
        assert nifti_header(path) is None
        assert read_header(path).shape == read(path).hu.shape == (6, 5, 4)
    for content in (b"", b"text", bytes_of(plain)[:200], bytes(400), bytes_of(plain).replace(b"n+1", b"n+7")):
        path.write_bytes(content)
        assert nifti_header(path) is None
        with pytest.raises(ImageReadError):
            read_header(path)
    assert nifti_header(tmp_path / f"none{suffix}") is None


def test_voxels_that_are_missing_do_not_hide_the_header(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    image = nib.Nifti1Image(rng.integers(-1000, 1000, (64, 64, 40)).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    content = gzip.compress(bytes_of(image))
    (tmp_path / "a.nii.gz").write_bytes(content[: len(content) // 3])
    assert read_header(tmp_path / "a.nii.gz").shape == (40, 64, 64)
    with pytest.raises(ImageReadError):
        read(tmp_path / "a.nii.gz")
