"""Tests of dataset.intensity: what values are, and that a repair gives the same Hounsfield units back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from crude_heads import crude_head
from numpy.typing import NDArray

from headctssl.dataset.image_io import read
from headctssl.dataset.intensity import check_intensity, repair
from headctssl.dataset.intensity_evidence import cormack_to_hu, soft_tissue_peak
from headctssl.types import Volume
from headctssl.volume.hounsfield import rescaled, unpadded

Array = NDArray[np.int32]


@pytest.fixture(scope="module")
def head() -> Array:
    """A head in air with noise, dense bone and fat: (z, y, x) HU."""
    volume = crude_head(3, shape=(40, 56, 56), spacing=(4.8, 4.0, 4.0))
    rng = np.random.default_rng(0)
    hu = volume.hu.astype(np.float64)
    air, bone = hu < -900, hu > 500
    hu[air] += rng.normal(0, 8, int(air.sum()))
    hu[bone] += rng.normal(300, 350, int(bone.sum()))  # up to about 2200: 12 bits, and above 1023
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int32)


def to_cormack(hu: Array) -> Array:
    """The published conversion, voxel by voxel: clinical_h2c of the Clinical toolbox (Rorden 2012), darkest -1024."""
    out = np.empty_like(hu)
    for index, value in np.ndenumerate(hu):
        dark = int(value) + 1024
        extra = min(max(dark - 900, 0), 200)
        out[index] = dark + 10 * extra
    return out


def as_signed_12(hu: Array) -> Array:
    stored = hu + 1024
    return np.where(stored > 2047, stored - 4096, stored) - 1024


def as_unsigned_16(hu: Array) -> Array:
    return np.where(hu < 0, hu + 65536, hu)


def padded(hu: Array, value: int) -> Array:
    out = hu.copy()
    out[:, :6, :6] = value
    return out


CHANGES: dict[str, tuple[Callable[[Array], Array], str, bool]] = {
    # what was done to a head in HU, the kind that is found, whether repair gives the HU back exactly
    "nothing": (lambda hu: hu, "HU", False),
    "padding -3024": (lambda hu: padded(hu, -3024), "HU", False),
    "sharp kernel": (lambda hu: hu + np.random.default_rng(1).normal(0, 90, hu.shape).astype(np.int32), "HU", False),
    "+1024": (lambda hu: hu + 1024, "offset", True),
    "+1000": (lambda hu: hu + 1000, "offset", True),
    "+1024, clipped at 0": (lambda hu: np.maximum(padded(hu, -2000) + 1024, 0), "offset", True),
    "+1024, padded": (lambda hu: padded(hu + 1024, -2000), "offset", True),
    "+1024, padded with -1024": (lambda hu: padded(hu + 1024, -1024), "offset", True),
    "intercept twice": (lambda hu: hu - 1024, "offset", True),
    "+32768": (lambda hu: hu + 32768, "offset", True),
    "Cormack": (to_cormack, "cormack", True),
    "12 bits signed": (as_signed_12, "wrapped", True),
    "16 bits unsigned": (as_unsigned_16, "wrapped", True),
    "16 bits unsigned, padded": (lambda hu: as_unsigned_16(padded(hu, -2000)), "wrapped", True),
    "brain window": (lambda hu: np.clip(hu, -20, 100), "windowed", False),
    "8-bit picture": (lambda hu: np.clip((hu + 20) * 2, 0, 255), "windowed", False),
    "mask": (lambda hu: (hu > -500).astype(np.int32), "not_ct", False),
    "0..1": (lambda hu: np.rint(np.clip((hu + 20) / 120, 0, 1)).astype(np.int32), "not_ct", False),
    "inverted": (lambda hu: -hu, "not_ct", False),
    "inverted, not negative": (lambda hu: 3071 - hu, "not_ct", False),
    "stretched": (lambda hu: (hu + 1024) * 7, "not_ct", False),
    "clipped at -300": (lambda hu: np.clip(hu, -300, 3000), "doubtful", False),
    "doubled": (lambda hu: 2 * hu, "doubtful", False),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_values_are_is_said_and_undone(head: Array, name: str) -> None:
    change, kind, repairable = CHANGES[name]
    stored = change(head)
    check = check_intensity(stored)
    assert check.kind == kind, check
    assert check.can_repair == repairable
    assert (check.fault is None) == (kind == "HU")
    if not repairable:
        return
    assert "--repair_intensity" in check.text
    inner = np.s_[:, 6:, 6:]
    np.testing.assert_array_equal(repair(stored, check)[inner], head[inner])
    assert unpadded(repair(stored, check)).min() >= -1024
    assert check_intensity(repair(stored, check)).kind == "HU"


def test_what_is_outside_a_head_may_be_erased_without_harm(head: Array) -> None:
    """Air of one value tells nothing: bone of about 1000 HU must not pass for the brain of HU + 1000."""
    for value in (-1024, -1000, -2000):
        erased = np.where(head < -500, value, head)
        assert check_intensity(erased).kind == "HU"


def test_cormack_units_are_undone_for_every_value() -> None:
    hu = np.arange(-1024, 3072, dtype=np.int32)
    np.testing.assert_array_equal(cormack_to_hu(to_cormack(hu)), hu)


def test_the_peak_of_soft_tissue(head: Array) -> None:
    assert abs(soft_tissue_peak(head) - 34) <= 4
    assert soft_tissue_peak(np.full((4, 4), -1000)) == 0


def test_numbers_beyond_16_bits_are_kept_for_the_check() -> None:
    stored = np.array([[[0, 64536]]], np.uint16)
    assert rescaled(stored).dtype == np.int32
    assert rescaled(stored).max() == 64536
    assert unpadded(rescaled(stored)).max() == 32767
    assert rescaled(stored.astype(np.int16)).dtype == np.int16


def save(path: Path, stored: NDArray[np.generic], volume: Volume) -> Path:
    affine = np.diag([*volume.spacing_mm[::-1], 1.0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored.transpose(2, 1, 0)), affine), path)
    return path


@pytest.mark.parametrize(
    ("name", "dtype", "told"),
    [
        ("16 bits unsigned", np.uint16, "16 bits"),
        ("+1024", np.int16, "HU +1024"),
        ("Cormack", np.int16, "Cormack"),
        ("12 bits signed", np.int16, "12 bits"),
    ],
)
def test_a_file_is_repaired_when_asked_and_says_so(
    tmp_path: Path, head: Array, name: str, dtype: type, told: str
) -> None:
    volume = crude_head(3)
    clean = read(save(tmp_path / "clean.nii", head.astype(np.int16), volume))
    path = save(tmp_path / "a.nii", CHANGES[name][0](head).astype(dtype), volume)
    as_stored = read(path)
    assert any("not Hounsfield units" in note and "--repair_intensity" in note for note in as_stored.info.notes)
    assert (as_stored.hu != clean.hu).any()
    repaired = read(path, repair_intensity=True)
    np.testing.assert_array_equal(repaired.hu, clean.hu)
    (note,) = repaired.info.notes
    assert note.startswith("Repaired intensity")
    assert told in note
    assert read(save(tmp_path / "b.nii", head.astype(np.int16), volume), repair_intensity=True).info.notes == ()


def test_what_cannot_be_repaired_stays_as_it_is(tmp_path: Path, head: Array) -> None:
    path = save(tmp_path / "a.nii", np.clip(head, -20, 100).astype(np.int16), crude_head(3))
    one, other = read(path), read(path, repair_intensity=True)
    np.testing.assert_array_equal(one.hu, other.hu)
    assert one.info.notes == other.info.notes
    assert "cut off at both ends" in one.info.notes[0]


def test_odd_arrays_do_not_stop_the_check() -> None:
    for value in (-3024, -1000, 0, 40, 1060, 70000):
        assert check_intensity(np.full((3, 4, 5), value, np.int32)).kind == "not_ct"
    assert check_intensity(np.zeros((0, 4, 5), np.int16)).kind == "doubtful"
