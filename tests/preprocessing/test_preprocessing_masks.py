"""Tests of stored masks: by name, with classes, up to date, and never smaller than what was anonymised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_heads import STORAGE, head, make_dataset

from headctssl.contract import StorageRule
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.label_map import LabelMap
from headctssl.dataset.manifest import DatasetInfo, load_raw_dataset, write_raw_dataset
from headctssl.dataset.masks import read_mask
from headctssl.errors import ContractError
from headctssl.paths import preprocessed_dataset
from headctssl.planning.plans import load_plans
from headctssl.preprocessing.index import CaseIndex, mask_path
from headctssl.preprocessing.masks import anonymised_on_grid, mask_on_grid, require_mask_rule
from headctssl.preprocessing.one_case import grid_of_box
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed, plan_and_preprocess
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.report import PreprocessingReport
from headctssl.types import Volume
from headctssl.volume.mask_store import StoredLabels, StoredMask
from headctssl.volume.resample import resample

NAMES = ("anatomy_mask", "anonymization_mask", "segmentation")
RULE = STORAGE.with_masks(("head", *NAMES))


def run(**more: bool) -> PreprocessingReport:
    return preprocess(7, rule=RULE, num_workers=1, quiet=True, **more)


def storage() -> Path:
    return preprocessed_dataset(7) / RULE.storage_id


def stored(name: str, case_id: str = "case7_00") -> NDArray[np.generic]:
    kind = StoredLabels if name == "segmentation" else StoredMask
    file = kind(mask_path(storage(), case_id, name))
    return file.read(file.whole)


def with_classes(folder: Path, classes: dict[str, int], cells: dict[str, list[str]]) -> None:
    raw = load_raw_dataset(7)
    info = DatasetInfo.model_validate({**raw.info.model_dump(), "segmentation_classes": classes})
    write_raw_dataset(folder, info, raw.cases.assign(**cells))


@pytest.fixture
def folder(roots: Path) -> Path:
    """Dataset 7, two cases; the first has all three masks, blocks at three different heights."""
    folder = make_dataset(7, 2)
    volume = head(7000, bleed=False)
    for number, name in enumerate(NAMES):
        values = np.zeros_like(volume.hu)
        values[12 + 8 * number : 18 + 8 * number, 18:26, 18:26] = 2 if name == "segmentation" else 1
        write_nifti(folder / f"{name}.nii.gz", Volume(values, volume.affine, volume.info))
    with_classes(folder, {"IPH": 1, "SDH": 2}, {name: [f"{name}.nii.gz", ""] for name in NAMES})
    return folder


def test_masks_are_stored_by_name_with_their_classes(folder: Path) -> None:
    assert not run().failures
    assert [row.masks for row in CaseIndex.open(storage()).rows] == [("head", *NAMES), ("head",)]
    heights = [np.flatnonzero(stored(name).any(axis=(1, 2))).mean() for name in NAMES]
    assert heights[0] < heights[1] < heights[2], "no mask stands under another one's name"
    assert set(np.unique(stored("segmentation"))) == {0, 2}
    meta = StoredLabels(mask_path(storage(), "case7_00", "segmentation")).meta
    assert meta is not None
    assert [(c.name, c.value) for c in meta.classes] == [("IPH", 1), ("SDH", 2)]
    assert run().num_kept == 2


def test_masks_that_changed_places_are_stored_anew(folder: Path) -> None:
    run()
    before = stored("anatomy_mask")
    with_classes(
        folder,
        {"IPH": 1, "SDH": 2},
        {"anatomy_mask": ["anonymization_mask.nii.gz", ""], "anonymization_mask": ["anatomy_mask.nii.gz", ""]},
    )
    report = run()
    assert (report.num_written, report.num_kept) == (1, 1)
    assert not np.array_equal(stored("anatomy_mask"), before)


def test_a_changed_mask_a_renamed_class_and_an_emptied_cell_are_noticed(folder: Path) -> None:
    run()
    path = folder / "anatomy_mask.nii.gz"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert run().num_written == 1
    with_classes(folder, {"IPH": 1, "subdural": 2}, {})
    assert run().num_written == 1
    meta = StoredLabels(mask_path(storage(), "case7_00", "segmentation")).meta
    assert meta is not None
    assert [c.name for c in meta.classes] == ["IPH", "subdural"]
    with_classes(folder, {"IPH": 1, "subdural": 2}, {"segmentation": ["", ""]})
    assert run().num_written == 1
    assert CaseIndex.open(storage()).rows[0].masks == ("head", *NAMES[:2])
    assert not mask_path(storage(), "case7_00", "segmentation").exists()
    assert run().num_kept == 2


def test_a_mask_that_is_replaced_while_its_case_is_made_is_stored_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "anatomy_mask.nii.gz"
    whole = head(7000, bleed=False)

    def read_and_replace(name: str, image: Path, *more: Any) -> LabelMap:
        mask = read_mask(name, image, *more)
        if image == path:
            write_nifti(path, Volume(np.ones_like(whole.hu), whole.affine, whole.info))
        return mask

    with monkeypatch.context() as patch:
        patch.setattr("headctssl.preprocessing.case_job.read_mask", read_and_replace)
        assert not run().failures
    assert not stored("anatomy_mask").all()
    assert run().num_written == 1
    assert stored("anatomy_mask").all()


def test_verify_reads_the_sources_of_masks(folder: Path) -> None:
    run()
    path = folder / "anonymization_mask.nii.gz"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[4] ^= 1  # the time stamp of the gzip header: same size, same mask, other content
    path.write_bytes(bytes(content))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run().num_kept == 2
    report = run(verify=True)
    assert [note.case_id for note in report.notes] == ["case7_00"]
    assert report.num_written == 1


def test_an_undeclared_value_leaves_the_case_out_with_the_reason(folder: Path) -> None:
    with_classes(folder, {"IPH": 1}, {})
    report = run()
    assert [f.case_id for f in report.failures] == ["case7_00"]
    assert "does not name" in report.failures[0].what


def test_the_digest_covers_masks_and_their_rule_only_where_there_are_masks() -> None:
    plain = StorageRule()
    assert plain.with_masks(("head", "segmentation")).digest() != plain.digest()
    other = {"mask_rule": "nearest:9"}
    assert plain.model_copy(update=other).digest() == plain.digest()
    masked = plain.with_masks(("head", "segmentation"))
    assert masked.model_copy(update=other).digest() != masked.digest()
    with pytest.raises(ContractError, match="mask_rule"):
        require_mask_rule("nearest:9")


def test_masks_that_the_plans_do_not_know_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocess(7, rule=STORAGE, num_workers=1)
    assert "anonymization_mask, segmentation, which this rule does not store" in capsys.readouterr().out


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spacing=st.tuples(st.floats(0.6, 4.0), st.floats(0.5, 1.4), st.floats(0.5, 1.4)),
)
def test_what_was_anonymised_reaches_no_stored_voxel_that_is_not(
    seed: int, spacing: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(9, 20, 3))
    mask = rng.random(shape) < rng.choice([0.002, 0.05])
    box = tuple((int(rng.integers(0, 3)), int(n - rng.integers(0, 3))) for n in shape)
    grid = grid_of_box(box, spacing, (1.0, 1.0, 1.0))
    hu = rng.integers(-1000, 1500, shape, dtype=np.int16)
    changed = np.where(mask, rng.integers(-1000, 1500, shape, dtype=np.int16), hu)
    crop = tuple(slice(low, high) for low, high in box)
    start = tuple(s - low for s, (low, _) in zip(grid.start, box, strict=True))
    one, other = (resample(values[crop], start, grid.step, grid.shape) for values in (hu, changed))
    marked = anonymised_on_grid(mask, box, grid)
    assert np.array_equal(one[~marked], other[~marked])
    wider = anonymised_on_grid(mask | (rng.random(shape) < 0.01), box, grid)
    assert wider[marked].all(), "more anonymised voxels never bring one back"


def test_label_maps_keep_their_values_on_the_grid() -> None:
    z, y, x = np.mgrid[:24, :40, :40]
    values = np.where((z - 12) ** 2 * 4 + (y - 20) ** 2 + (x - 20) ** 2 < 15**2, np.where(x < 20, 1, 9), 0)
    grid = grid_of_box(((0, 24), (0, 40), (0, 40)), (2.0, 1.0, 1.0), (1.3, 1.3, 1.3))
    found = mask_on_grid(values.astype(np.uint8), ((0, 24), (0, 40), (0, 40)), grid)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1, 9}
    for value in (1, 9):
        assert (found == value).sum() * 1.3**3 == pytest.approx((values == value).sum() * 2, rel=0.08)


def test_a_checkpoint_of_a_dataset_with_masks_stores_no_scan_of_another_twice(roots: Path) -> None:
    make_dataset(7, 6)
    plan_and_preprocess([7], num_workers=1, quiet=True)
    own = load_plans(7).storage
    assert own.masks == ("head",)
    of_checkpoint = own.with_masks(("head", "segmentation"))
    index = ensure_preprocessed(7, of_checkpoint, quiet=True, num_workers=1)
    assert index.folder.name == own.storage_id
    assert [p.name for p in preprocessed_dataset(7).iterdir() if p.is_dir()] == [own.storage_id]
