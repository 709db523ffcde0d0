"""Loader: batches of crops, read ahead by processes that only read and decompress."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from headctssl.errors import HeadCTSSLError, TrainingError, UsageError
from headctssl.loading.crop_masks import NO_MASKS, MaskReads
from headctssl.loading.sampler import BagSampler, SampleRef, StepSampler
from headctssl.loading.volume_dataset import CropBatch, Shape, VolumeDataset, collate
from headctssl.preprocessing.index import CaseIndex
from headctssl.types import PretrainBatch

__all__ = ["BatchLoader", "ordered_batches"]

PREFETCH = 2
"""Batches each reader process keeps ready."""

STALLED_SECONDS = 900.0
"""A batch that takes longer than this to read means that a reader process hangs."""


class BatchLoader:
    """Iterates over the batches of one process, the same for any number of reader processes.

    Args:
        index: stored cases, of one storage folder or several with the same storage rule; a case index counts
            through all of them.
        read_shape: voxels (z, y, x) read per scan.
        batch_size: scans per forward pass of this process.
        samples_per_epoch: scans per epoch over all processes.
        seed: the run's seed.
        rank: this process.
        world_size: number of processes.
        start_step: optimiser step to begin with, from 0.
        num_steps: optimiser steps of the whole run; iteration ends there.
        num_workers: reader processes; 0 reads in this process.
        accumulation: batches per optimiser step.
        labels: float32 (N, L), one row per case, NaN = unknown.
        sample_weights: (N,) chance of each case, for class-balanced sampling.
        masks: which masks are read beside the voxels; none costs nothing.
        bags: rows of cases that are read together, as the scans of a study; a sample is then one of them, what is said
            of scans above is said of bags, and a weight is that of a bag.
        most_of_bag: cases read of a bag at most, see `BagSampler`.

    Attributes:
        wait_seconds: time spent waiting for batches so far.

    Raises:
        UsageError: there is no case.
        HeadCTSSLError: while iterating, a case cannot be read; it is named.
        TrainingError: while iterating, a reader process died or hangs, or shared memory is too small.
    """

    def __init__(
        self,
        index: CaseIndex | Sequence[CaseIndex],
        *,
        read_shape: Shape,
        batch_size: int,
        samples_per_epoch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_steps: int,
        num_workers: int,
        accumulation: int = 1,
        labels: NDArray[np.float32] | None = None,
        sample_weights: NDArray[np.floating] | None = None,
        masks: MaskReads = NO_MASKS,
        bags: Sequence[Sequence[int]] | None = None,
        most_of_bag: int = 1,
    ) -> None:
        self.dataset = VolumeDataset(_indexes(index), read_shape, seed, masks)
        if labels is not None:
            assert len(labels) == len(self.dataset), "one row of labels per case"
        self.seed = seed
        self.labels = None if labels is None else torch.from_numpy(np.asarray(labels, np.float32))
        self.num_workers = num_workers
        self.read_shape = read_shape
        self.wait_seconds = 0.0
        steps = StepSampler(
            len(self.dataset) if bags is None else len(bags),
            batch_size=batch_size,
            samples_per_epoch=samples_per_epoch,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start_step=start_step,
            num_steps=num_steps,
            accumulation=accumulation,
            weights=sample_weights,
        )
        self.sampler = steps if bags is None else BagSampler(steps, bags, most_of_bag)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return self.sampler.steps_per_epoch

    def __len__(self) -> int:
        """Batches still to come when iteration begins."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[PretrainBatch]:
        """The batches from `start_step` to the end of the run."""
        if len(self.sampler) == 0:
            return
        bytes_per_voxel = 2 + self.dataset.masks.bytes_per_voxel
        _check_shared_memory(self.num_workers, self.sampler.batch_size, self.read_shape, bytes_per_voxel)
        batches = _read(self.dataset, self.sampler, self.num_workers)
        while True:
            began = time.perf_counter()
            crops = next(batches, None)
            if crops is None:
                return
            batch = _batch(crops, self.seed, self.labels)
            self.wait_seconds += time.perf_counter() - began
            yield batch


def ordered_batches(
    index: CaseIndex | Sequence[CaseIndex],
    *,
    read_shape: Shape | None,
    batch_size: int,
    num_workers: int,
    labels: NDArray[np.float32] | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[PretrainBatch]:
    """Every case once, in the order of the index, read about the centre of the head; nothing is drawn.

    For validation, prediction and embedding. The last batch may be smaller.

    Args:
        index: stored cases.
        read_shape: voxels (z, y, x) per case; whole cases when None, a batch padded with air to its largest.
        batch_size: scans per batch.
        num_workers: reader processes; 0 reads in this process.
        labels: float32 (N, L), one row per case, NaN = unknown.
        order: positions of the cases to read instead, in this order; one may come several times.

    Raises:
        HeadCTSSLError: a case cannot be read; it is named.
        TrainingError: a reader process died or hangs.
    """
    dataset = VolumeDataset(_indexes(index), read_shape, seed=None)
    refs = [SampleRef(i, i, 0) for i in (range(len(dataset)) if order is None else order)]
    parts = [refs[i : i + batch_size] for i in range(0, len(refs), batch_size)]
    rows = None if labels is None else torch.from_numpy(np.asarray(labels, np.float32))
    workers = min(num_workers, len(parts))
    largest = np.max([index.shapes.max(axis=0) for index in dataset.indexes if len(index)], axis=0)
    _check_shared_memory(workers, batch_size, read_shape or tuple(largest.tolist()))
    for crops in _read(dataset, parts, workers):
        yield _batch(crops, 0, rows)


def _indexes(index: CaseIndex | Sequence[CaseIndex]) -> tuple[CaseIndex, ...]:
    indexes = (index,) if isinstance(index, CaseIndex) else tuple(index)
    if sum(len(one) for one in indexes) == 0:
        raise UsageError(
            "There is no case to read.",
            got="an empty list of cases",
            expected="at least one preprocessed case",
            do="See preprocessing_report.json and splits.json of the dataset.",
        )
    return indexes


class _WithRefs(torch.utils.data.Dataset[tuple[SampleRef, object]]):
    """Pairs every crop with the sample it was read for."""

    def __init__(self, dataset: VolumeDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, ref: SampleRef) -> tuple[SampleRef, object]:
        return ref, self.dataset[ref]


def _read(dataset: VolumeDataset, batches: Iterable[list[SampleRef]], num_workers: int) -> Iterator[CropBatch]:
    """Read batches in order, ahead of their use.

    Reader processes are forked on Linux: they start at once, also from a script without a main guard. They use
    neither CUDA nor OpenMP (one thread, set before anything else), which is what makes forking safe.
    """
    loader: DataLoader[tuple[SampleRef, object]] = DataLoader(
        _WithRefs(dataset),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        prefetch_factor=PREFETCH if num_workers else None,
        multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if num_workers else None,
        worker_init_fn=_start_worker if num_workers else None,
        timeout=STALLED_SECONDS if num_workers else 0,
        generator=torch.Generator(),  # else torch takes a number from the global generator
    )
    try:
        for crops in loader:
            if isinstance(crops, HeadCTSSLError):
                raise crops
            yield crops
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" not in text and "DataLoader timed out" not in text:
            raise
        raise TrainingError(
            "A process that reads cases died or hangs.",
            got=text.splitlines()[0],
            expected=f"{num_workers} reader processes at work",
            do="Most often memory ran out: give the job more, or fewer processes (--num_workers 1, or 0 for none).",
        ) from error


def _start_worker(worker: int) -> None:
    """Settle a reader process: one thread, and signals left to the training process."""
    del worker
    import blosc2

    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm sends its warning to every process of a job
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    """Outlive the SIGTERM a scheduler sends to every process of a job, so that the run can write its checkpoint."""
    del frame
    signal.signal(number, signal.SIG_DFL)


def _batch(crops: CropBatch, seed: int, labels: Tensor | None) -> PretrainBatch:
    case_index = torch.tensor([ref.case_index for ref in crops.refs], dtype=torch.int64)
    return PretrainBatch(
        volume=crops.volume,
        inside_box=crops.inside_box,
        head_box=crops.head_box,
        case_index=case_index,
        sample_index=torch.tensor([ref.sample_index for ref in crops.refs], dtype=torch.int64),
        spacing_mm=crops.spacing_mm,
        seed=seed,
        epoch=crops.refs[0].epoch,
        labels=None if labels is None else labels[case_index],
        masks=crops.masks,
        segmentation=crops.segmentation,
        known_classes=crops.known_classes,
    )


def _check_shared_memory(num_workers: int, batch_size: int, read_shape: Shape, bytes_per_voxel: int = 2) -> None:
    """Containers often come with 64 MB of shared memory; a reader process would die of it without a word."""
    folder = Path("/dev/shm")
    if num_workers == 0 or not folder.is_dir():
        return
    needed = (num_workers * PREFETCH + 1) * batch_size * int(np.prod(read_shape)) * bytes_per_voxel
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            "Shared memory is too small for the reader processes.",
            got=f"{free / 1e6:.0f} MB free in {folder}",
            expected=f"{needed / 1e6:.0f} MB for {num_workers} reader processes",
            do="Enlarge it (docker run --shm-size 8g), or use fewer processes: --num_workers 0 needs none.",
        )
