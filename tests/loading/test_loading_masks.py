"""Tests of masks while loading: read only where they are, seen as the view is, taking voxels away and never giving."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import InputSpec, SegmentationClass, Window
from headctssl.errors import DataError
from headctssl.loading import crop_masks
from headctssl.loading.crop_masks import NO_MASKS, MaskReads
from headctssl.loading.loader import BatchLoader
from headctssl.loading.view_masks import FocusMask
from headctssl.loading.view_plan import ViewGroup, ViewPlan
from headctssl.loading.views import make_views
from headctssl.loading.volume_dataset import Crop, read_crop
from headctssl.preprocessing.index import CaseIndex, mask_path
from headctssl.types import PretrainBatch, Views
from headctssl.volume.mask_store import MaskMeta, StoredLabels, StoredMask, write_labels, write_mask
from headctssl.volume.store import StoredCase

EVERYTHING = MaskReads(anonymization=True, anatomy=True, classes=("IPH", "SDH", "tumour"))
SIDE = 20
WINDOW = Window(level=0, width=4000)
SPEC = InputSpec(rule="fixed_spacing", shape=(16, 16, 16), spacing_mm=(1.2, 1.2, 1.2), windows=(WINDOW,))
GEOMETRY = ViewGroup("global", 2, (16, 16, 16), (0.4, 1.0), (0.5, 0.5, 0.5), 0.5, 35.0)
BLURRED = dataclasses.replace(
    GEOMETRY, blur_probability=(0.7, 0.2), gamma_probability=(0.5,), gamma=(0.3, 1.0), shift_probability=0.5, shift=0.2
)


def meta_of(name: str, classes: dict[str, int] | None = None) -> MaskMeta:
    specs = tuple(SegmentationClass(name=k, value=v) for k, v in (classes or {}).items())
    return MaskMeta(name=name, classes=specs, source_sha256="0" * 64, source_size=1, source_mtime_ns=1)


@pytest.fixture
def masked(store: CaseIndex) -> CaseIndex:
    """The store, its first case with all masks (classes SDH = 7, IPH = 2), its third with an anatomy mask."""
    rows = list(store.rows)
    rng = np.random.default_rng(0)
    for position, names in ((0, ("anatomy_mask", "anonymization_mask", "segmentation")), (2, ("anatomy_mask",))):
        shape = rows[position].shape
        for name in names:
            path = mask_path(store.folder, rows[position].case_id, name)
            if name == "segmentation":
                labels = rng.choice(np.array([0, 2, 7], np.uint8), shape)
                write_labels(path, labels, meta_of(name, {"SDH": 7, "IPH": 2}))
            else:
                write_mask(path, rng.random(shape) < 0.3, meta_of(name))
        rows[position] = dataclasses.replace(rows[position], masks=("head", *names))
    return CaseIndex(store.folder, rows)


def read(index: CaseIndex, position: int, reads: MaskReads, shape: tuple[int, int, int] = (24, 18, 30)) -> Crop:
    generator = np.random.default_rng(5)
    crop = read_crop(StoredCase(index.path(position)), shape, generator)
    return crop_masks.with_masks(crop, index, position, reads)


def test_masks_lie_under_the_voxels_of_the_crop(masked: CaseIndex) -> None:
    crop = read(masked, 0, EVERYTHING)
    whole = StoredCase(masked.path(0)).read_all()[0]
    part = tuple(slice(a, b) for a, b in crop.inside_box.tolist())
    box = tuple(slice(s + p.start, s + p.stop) for s, p in zip(crop.start, part, strict=True))
    assert np.array_equal(crop.volume[0][part], whole[box])
    anatomy = StoredMask(mask_path(masked.folder, masked.case_ids[0], "anatomy_mask"))
    assert np.array_equal(crop.masks["anatomy"][0][part], anatomy.read(anatomy.whole)[box])
    assert crop.masks["anatomy"].sum() == crop.masks["anatomy"][0][part].sum(), "nothing is marked outside"
    labels = StoredLabels(mask_path(masked.folder, masked.case_ids[0], "segmentation"))
    assert crop.segmentation is not None
    # By name: IPH is 2 in the file and the first class of the run, SDH is 7 and the second.
    expected = np.array([0, -1, 1, -1, -1, -1, -1, 2])[labels.read(labels.whole)[box]]
    assert np.array_equal(crop.segmentation[0][part], expected)
    assert (crop.segmentation[~crop.inside] == -1).all()
    assert crop.known_classes is not None
    assert crop.known_classes.tolist() == [True, True, False]


def test_what_a_case_does_not_have_costs_nothing(masked: CaseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(crop_masks, "StoredMask", opened)
    monkeypatch.setattr(crop_masks, "StoredLabels", opened)
    plain = read(masked, 1, EVERYTHING)
    assert plain.masks == {}
    assert plain.segmentation is None
    assert read(masked, 0, NO_MASKS).masks == {}
    with pytest.raises(AssertionError, match="was opened"):
        read(masked, 2, EVERYTHING)


def test_values_without_names_are_refused(masked: CaseIndex) -> None:
    path = mask_path(masked.folder, masked.case_ids[0], "segmentation")
    write_labels(path, np.ones(masked.rows[0].shape, np.uint8), meta_of("segmentation"))
    with pytest.raises(DataError, match="have no names"):
        read(masked, 0, EVERYTHING)


def batches(index: CaseIndex, reads: MaskReads, workers: int = 0) -> list[PretrainBatch]:
    loader = BatchLoader(
        index, read_shape=(22, 22, 22), batch_size=5, samples_per_epoch=5, seed=1, num_steps=1, num_workers=workers,
        masks=reads,
    )  # fmt: skip
    return list(loader)


def test_batches_hold_what_any_case_has(masked: CaseIndex) -> None:
    (batch,) = batches(masked, EVERYTHING)
    (plain,) = batches(masked, NO_MASKS)
    assert torch.equal(batch.volume, plain.volume)
    assert plain.masks == {}
    assert plain.segmentation is None
    assert set(batch.masks) == {"anatomy", "anonymization"}
    marked = {name: mask.flatten(1).any(1).tolist() for name, mask in batch.masks.items()}
    cases = batch.case_index.tolist()
    assert marked["anatomy"] == [case in (0, 2) for case in cases]
    assert marked["anonymization"] == [case == 0 for case in cases]
    assert batch.segmentation is not None
    assert batch.known_classes is not None
    assert batch.known_classes.any(1).tolist() == [case == 0 for case in cases]
    unknown = (batch.segmentation == -1).flatten(1).all(1)
    assert unknown.tolist() == [case != 0 for case in cases]
    (forked,) = batches(masked, EVERYTHING, workers=1)
    assert torch.equal(forked.segmentation, batch.segmentation)
    assert torch.equal(forked.masks["anatomy"], batch.masks["anatomy"])


def drawn(seed: int, marked: float) -> PretrainBatch:
    """Two scans of noise, the second smaller than the crop, with anonymised voxels in both."""
    rng = np.random.default_rng(seed)
    inside = torch.zeros((2, 1, SIDE, SIDE, SIDE), dtype=torch.bool)
    inside[0] = inside[1, :, 2:17, 1:19, 3:] = True
    volume = torch.from_numpy(rng.integers(-1000, 1900, inside.shape, dtype=np.int16)).masked_fill(~inside, -1024)
    return PretrainBatch(
        volume=volume,
        inside_box=torch.tensor([[(0, SIDE)] * 3, [(2, 17), (1, 19), (3, SIDE)]]),
        head_box=torch.tensor([[[1.0, 19.0]] * 3] * 2),
        case_index=torch.arange(2),
        sample_index=torch.tensor([seed % 1000, seed % 1000 + 1]),
        spacing_mm=torch.tensor([[1.0, 1.1, 0.9]] * 2),
        seed=seed,
        epoch=0,
        masks={"anonymization": torch.from_numpy(rng.random(inside.shape) < marked) & inside},
    )


def both(batch: PretrainBatch, group: ViewGroup = GEOMETRY) -> Views:
    return make_views(batch, ViewPlan((group,)), SPEC)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    marked=st.sampled_from([0.0, 0.001, 0.02]),
    group=st.sampled_from([GEOMETRY, BLURRED]),
)
def test_anonymised_voxels_only_ever_remove(seed: int, marked: float, group: ViewGroup) -> None:
    batch = drawn(seed, marked)
    rng = np.random.default_rng(seed + 1)
    views = both(batch, group)
    anonymised = batch.masks["anonymization"]
    # Other values under the mask change the view nowhere that counts: nothing of them is left in the loss.
    noise = torch.from_numpy(rng.integers(-1000, 1900, anonymised.shape, dtype=np.int16))
    other = both(dataclasses.replace(batch, volume=torch.where(anonymised, noise, batch.volume)), group)
    free = both(dataclasses.replace(batch, masks={}), group)
    wider = {"anonymization": anonymised | (torch.rand(anonymised.shape) < 0.01)}
    more = both(dataclasses.replace(batch, masks=wider), group)
    for index in range(GEOMETRY.count):
        valid = views.valid("global", index)
        assert torch.equal(views.groups["global"][index], free.groups["global"][index])
        same = views.groups["global"][index] == other.groups["global"][index]
        assert same[valid].all()
        assert not (valid & ~free.valid("global", index)).any()
        assert not (more.valid("global", index) & ~valid).any()
        if marked == 0.0:
            assert torch.equal(valid, free.valid("global", index))
    assert (views.valid("global", 0) == (views.inside["global"][0] >= 0.99)).all() or marked > 0


CLASS_HU = torch.tensor([-900, -450, 300, 1400], dtype=torch.int16)
"""Of classes 0 to 3; a half or a third between two of them is not a third one."""


def blocks(seed: int, spacing: tuple[float, float, float]) -> PretrainBatch:
    """Blocks of 5 voxels, each of a class with its own Hounsfield units; no two neighbours are mixed to a third."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (2, 1, 4, 4, 4))
    labels = torch.from_numpy(coarse.repeat(5, 2).repeat(5, 3).repeat(5, 4).astype(np.int16))
    batch = drawn(seed, 0.0)
    hu = torch.where(batch.inside, CLASS_HU[labels.long()], torch.tensor(-1024, dtype=torch.int16))
    return dataclasses.replace(
        batch,
        volume=hu,
        masks={},
        spacing_mm=torch.tensor([spacing] * 2),
        segmentation=labels.masked_fill(~batch.inside, -1),
        known_classes=torch.tensor([[True, True, False], [True, False, True]]),
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), thick=st.floats(0.8, 1.6))
def test_segmentations_have_the_geometry_of_the_view(seed: int, thick: float) -> None:
    batch = blocks(seed, (thick, 1.0, 1.1))
    views = both(batch)
    for index in range(GEOMETRY.count):
        hu = views.groups["global"][index] * WINDOW.width + WINDOW.level - WINDOW.width / 2
        labels = views.segmentation["global"][index]
        # Where the view shows one class alone, the label is that class; most voxels are of that kind.
        whole = views.inside["global"][index] > 0.999
        distance, expected = (hu - CLASS_HU.float().view(4, 1, 1, 1, 1, 1)).abs().min(dim=0)
        pure = whole & (distance < 0.5)
        wrong = pure & (labels != expected)
        # A mixture of two classes can look like a third: such places are few.
        assert wrong.sum() <= 0.03 * pure.sum() + 3
        assert ((labels >= 0) | (views.inside["global"][index] < 1.0)).all()
        assert (labels[views.inside["global"][index] == 0.0] == -1).all()
    assert torch.equal(views.known_classes, batch.known_classes)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("rotated", [False, True])
def test_flips_and_turns_move_a_label_as_they_move_the_voxel(axis: int, rotated: bool) -> None:
    flips = tuple(1.0 if a == axis else 0.0 for a in range(3))
    group = dataclasses.replace(
        GEOMETRY, count=1, scale=(1.0, 1.0), flip_probability=flips, rotate_probability=float(rotated)
    )
    batch = blocks(3, (1.0, 1.0, 1.0))
    volume = torch.full_like(batch.volume, -1000)
    labels = torch.zeros_like(volume)
    volume[0, 0, 4:8, 11:16, 6:9], labels[0, 0, 4:8, 11:16, 6:9] = 1000, 1
    views = make_views(
        dataclasses.replace(batch, volume=volume, segmentation=labels, inside_box=torch.tensor([[(0, SIDE)] * 3] * 2)),
        ViewPlan((group,)),
        SPEC,
    )
    bright = (views.groups["global"][0][0, 0] > 0.5).nonzero().double().mean(0)
    marked = (views.segmentation["global"][0][0, 0] == 1).nonzero().double().mean(0)
    assert (bright - marked).abs().max() < 0.35


def test_views_are_centred_in_the_anatomy_with_the_stated_chance() -> None:
    group = dataclasses.replace(GEOMETRY, count=1, scale=(0.3, 0.3), rotate_probability=0.0)
    base = drawn(0, 0.0)
    place = torch.zeros_like(base.inside)
    place[:, 0, 10:13, 5, 7:9] = True
    hits = []
    for seed in range(40):
        batch = dataclasses.replace(base, seed=seed, masks={"anatomy": place})
        focused = dataclasses.replace(group, focus=(("anatomy", 0.4),))
        views, plain = (make_views(batch, ViewPlan((g,)), SPEC) for g in (focused, group))
        moved = [
            not torch.equal(a, b) for a, b in zip(views.groups["global"][0], plain.groups["global"][0], strict=True)
        ]
        hits += moved
        if seed >= 6:
            continue
        alone = make_views(
            dataclasses.replace(
                batch,
                **{f: getattr(batch, f)[:1] for f in ("volume", "inside_box", "head_box", "case_index", "spacing_mm")},
                sample_index=batch.sample_index[:1],
                masks={"anatomy": place[:1]},
            ),
            ViewPlan((focused,)),
            SPEC,
        )
        assert torch.equal(alone.groups["global"][0][0], views.groups["global"][0][0]), "batch mates change nothing"
        # The middle of a view that moved shows the anatomy.
        marks = make_views(
            dataclasses.replace(batch, masks=batch.masks | {"anonymization": place}), ViewPlan((focused,)), SPEC
        ).anonymised["global"][0]
        for sample in np.flatnonzero(moved):
            assert marks[sample, 0, 6:10, 6:10, 6:10].max() > 0.3
    assert 0.25 < np.mean(hits) < 0.55


def test_scans_without_the_mask_are_seen_as_ever() -> None:
    group = dataclasses.replace(GEOMETRY, focus=(("segmentation", 0.9), ("anatomy", 0.9)))
    batch = drawn(4, 0.01)
    views, plain = (make_views(batch, ViewPlan((g,)), SPEC) for g in (group, GEOMETRY))
    assert all(torch.equal(a, b) for a, b in zip(views.groups["global"], plain.groups["global"], strict=True))


def test_every_marked_voxel_is_drawn_equally_often() -> None:
    mask = torch.zeros((5, 6, 7), dtype=torch.bool)
    places = [(0, 0, 0), (2, 3, 4), (2, 3, 6), (4, 5, 6)]
    for place in places:
        mask[place] = True
    focus = FocusMask(mask)
    found = [tuple(int(v) for v in focus.point(u)) for u in np.arange(400) / 400]
    assert [found.count(place) for place in places] == [100] * 4
    assert FocusMask(torch.zeros_like(mask)).point(0.5) is None
