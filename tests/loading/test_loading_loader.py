"""Loader: crops as stored, the same batches for any number of processes, failures named."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import CorruptCaseError, DataError, TrainingError, UsageError
from headctssl.loading.loader import BatchLoader, ordered_batches
from headctssl.loading.sampler import SampleRef
from headctssl.loading.volume_dataset import VolumeDataset, crop_box, read_crop
from headctssl.preprocessing.index import CaseIndex
from headctssl.types import PretrainBatch
from headctssl.volume.store import StoredCase

READ = (17, 22, 20)


def loader(index: CaseIndex, **changes: object) -> BatchLoader:
    call: dict[str, object] = {
        "read_shape": READ,
        "batch_size": 4,
        "samples_per_epoch": 8,
        "seed": 3,
        "num_steps": 5,
        "num_workers": 0,
    }
    return BatchLoader(index, **(call | changes))  # type: ignore[arg-type]  # keyword arguments of one test


def same(one: PretrainBatch, two: PretrainBatch) -> bool:
    names = ("volume", "inside", "head_box", "case_index", "sample_index", "spacing_mm")
    equal = all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
    return equal and (one.seed, one.epoch) == (two.seed, two.epoch)


side = st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(1, 12))


@given(axes=st.tuples(side, side, side), read=st.tuples(*[st.integers(1, 45)] * 3), seed=st.none() | st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_crop_box_stays_inside_and_holds_the_head(
    axes: tuple[tuple[int, int, int], ...], read: tuple[int, int, int], seed: int | None
) -> None:
    shape = tuple(low + head + rest for head, low, rest in axes)
    head = tuple((low, low + n) for n, low, _ in axes)
    generator = None if seed is None else np.random.default_rng(seed)
    box = crop_box(shape, head, read, generator)  # type: ignore[arg-type]  # tuples of any length
    for (start, stop), size, n, (low, high) in zip(box, shape, read, head, strict=True):
        assert stop - start == n
        if n >= size:
            assert start <= 0
            assert stop >= size, "a case that fits is read whole"
        else:
            assert start >= 0
            assert stop <= size, "no air is read while voxels are left"
        overlap = min(stop, high) - max(start, low)
        assert overlap == min(n, high - low), "as much of the head as fits"
        if generator is None and n < size and low + high - n >= 0 and low + high + n <= 2 * size:
            assert abs((start + stop) - (low + high)) <= 1, "centred on the head"


def test_crop_box_is_drawn_over_all_places() -> None:
    starts = {crop_box((30, 30, 30), ((5, 25),) * 3, (12, 40, 24), np.random.default_rng(i))[0][0] for i in range(200)}
    assert starts == set(range(5, 14)), "a box smaller than the head starts anywhere in it"


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("read", [(8, 40, 13), (50, 50, 50), (16, 16, 16), None])
def test_read_crop_is_the_padded_slice(store: CaseIndex, read: tuple[int, int, int] | None, seed: int | None) -> None:
    for i in range(len(store)):
        case = StoredCase(store.path(i))
        hu = case.read_all()
        make = (lambda: None) if seed is None else (lambda: np.random.default_rng(seed))
        crop = read_crop(case, read, make())
        box = crop_box(hu.shape[1:], case.meta.head_box, read or hu.shape[1:], make())
        around = 60
        padded = np.pad(hu[0], around, constant_values=-1024)
        mask = np.pad(np.ones(hu.shape[1:], bool), around)
        place = tuple(slice(a + around, b + around) for a, b in box)
        assert crop.volume.dtype == np.int16
        assert np.array_equal(crop.volume[0], padded[place])
        assert np.array_equal(crop.inside[0], mask[place])
        start = [a for a, _ in box]
        assert np.array_equal(crop.head_box, np.asarray(case.meta.head_box) - np.asarray(start)[:, None])
        assert crop.spacing_mm.tolist() == [1, 1, 1]


def test_batches_are_the_same_for_any_number_of_reader_processes(store: CaseIndex) -> None:
    alone = list(loader(store))
    assert len(alone) == 5
    for workers in (1, 2):
        read = loader(store, num_workers=workers)
        assert len(read) == 5
        assert all(same(a, b) for a, b in zip(alone, read, strict=True))
        assert read.wait_seconds > 0
    batch = alone[0]
    assert batch.volume.shape == (4, 1, *READ)
    assert batch.volume.dtype == torch.int16
    assert batch.inside.dtype == torch.bool
    assert (batch.volume[~batch.inside] == -1024).all()
    assert [b.epoch for b in alone] == [0, 0, 1, 1, 2]
    assert not same(alone[0], alone[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_takes_no_number_from_the_global_generators(store: CaseIndex, workers: int) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1]
    list(loader(store, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)


def test_processes_share_one_order_and_a_late_start_reads_the_tail(store: CaseIndex) -> None:
    alone = list(loader(store))
    ranks = [list(loader(store, batch_size=2, rank=rank, world_size=2, start_step=2)) for rank in range(2)]
    for whole, *parts in zip(alone[2:], *ranks, strict=True):
        for name in ("volume", "head_box", "sample_index"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    halves = list(loader(store, batch_size=2, accumulation=2))
    assert len(halves) == 10
    assert torch.equal(torch.cat([halves[2].volume, halves[3].volume]), alone[1].volume)
    assert list(loader(store, start_step=5)) == []


def test_several_indexes_and_labels(store: CaseIndex) -> None:
    parts = (store.subset(["case_003", "case_001"]), store.subset(["case_004"]))
    labels = np.array([[1, np.nan], [0, 1], [np.nan, 0]], np.float32)
    batches = list(loader(parts, labels=labels, samples_per_epoch=3, batch_size=3, num_steps=1))
    batch = batches[0]
    assert sorted(batch.case_index.tolist()) == [0, 1, 2]
    assert batch.labels is not None
    assert np.array_equal(batch.labels.numpy(), labels[batch.case_index.numpy()], equal_nan=True)
    names = [VolumeDataset(parts, None, None).case_id(i) for i in range(3)]
    assert names == ["case_001", "case_003", "case_004"]
    shapes = [VolumeDataset(parts, None, None)[SampleRef(i, i, 0)].volume.shape[1:] for i in range(3)]  # type: ignore[union-attr]
    assert shapes == [tuple(store.shapes[store.position(name)]) for name in names]


def test_weights_choose_cases(store: CaseIndex) -> None:
    batches = loader(store, sample_weights=np.array([0.0, 1.0, 0.0, 2.0, 0.0]))
    assert {int(i) for batch in batches for i in batch.case_index} == {1, 3}


def test_ordered_batches_give_every_case_once(store: CaseIndex) -> None:
    labels = np.arange(5, dtype=np.float32)[:, None]
    for workers in (0, 2):
        batches = list(ordered_batches(store, read_shape=None, batch_size=2, num_workers=workers, labels=labels))
        assert [b.case_index.tolist() for b in batches] == [[0, 1], [2, 3], [4]]
        assert batches[0].volume.shape == (2, 1, 24, 26, 24), "padded to the largest of the batch"
        for batch in batches:
            for row, inside, i in zip(batch.volume, batch.inside, batch.case_index.tolist(), strict=True):
                hu = StoredCase(store.path(i)).read_all()
                assert torch.equal(row[inside], torch.from_numpy(hu).flatten())
                assert (row[~inside] == -1024).all()
            assert batch.labels is not None
            assert batch.labels[:, 0].tolist() == batch.case_index.tolist()
    fixed = list(ordered_batches(store, read_shape=READ, batch_size=5, num_workers=0))
    assert fixed[0].volume.shape == (5, 1, *READ)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_stops_the_run_with_its_name(store: CaseIndex, workers: int) -> None:
    path = store.path(2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptCaseError, match="case_002") as caught:
        list(loader(store, num_workers=workers))
    assert type(caught.value) is CorruptCaseError
    assert "worker" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert caught.value.do


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_case_stops_the_run_with_its_name(store: CaseIndex, workers: int) -> None:
    store.path(4).unlink()
    with pytest.raises(Exception, match="case_004") as caught:
        list(ordered_batches(store, read_shape=None, batch_size=1, num_workers=workers))
    assert getattr(caught.value, "exit_code", None) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_is_named_too(store: CaseIndex, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("headctssl.loading.volume_dataset.StoredCase", fail)
    with pytest.raises(DataError, match=r"case_00[0-4]' cannot be read"):
        list(loader(store, num_workers=workers))


def test_a_dead_reader_process_is_noticed(store: CaseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: VolumeDataset, ref: SampleRef) -> None:
        os._exit(9)

    monkeypatch.setattr(VolumeDataset, "__getitem__", die)
    began = time.monotonic()
    with pytest.raises(TrainingError, match="died or hangs"):
        next(iter(loader(store, num_workers=1)))
    assert time.monotonic() - began < 30


def test_reader_processes_outlive_one_signal_and_end_with_the_loader(store: CaseIndex) -> None:
    batches = iter(loader(store, num_workers=1, num_steps=30))
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 29
    worker.join(timeout=10)
    assert not worker.is_alive()


def test_too_little_shared_memory_is_said_before_reading(store: CaseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64_000, 60_000, 4_000))
    with pytest.raises(TrainingError, match="Shared memory"):
        next(iter(loader(store, num_workers=1)))
    with pytest.raises(TrainingError, match="Shared memory"):
        next(ordered_batches(store, read_shape=None, batch_size=1, num_workers=1))
    next(iter(loader(store, num_workers=0)))


def test_no_case_is_an_error(store: CaseIndex) -> None:
    with pytest.raises(UsageError, match="no case"):
        loader(store.subset([]))
