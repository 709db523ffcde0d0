"""Sampler: which case is read for which sample, a function of seed, epoch, rank and world size alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headctssl.seeding import sample_generator

__all__ = ["BagSampler", "SampleRef", "StepSampler", "draw_from_bag", "epoch_order", "steps_per_epoch"]


class SampleRef(NamedTuple):
    """One sample to read."""

    case_index: int  # row of the case in the index
    sample_index: int  # position in the global order of the epoch
    epoch: int


def steps_per_epoch(samples_per_epoch: int, global_batch: int) -> int:
    """Optimiser steps per epoch: whole batches, the last one filled up from the next pass over the cases.

    Args:
        samples_per_epoch: scans per epoch over all processes.
        global_batch: scans per optimiser step over all processes and accumulation.
    """
    return max(1, -(-samples_per_epoch // global_batch))


def epoch_order(
    num_cases: int,
    samples_per_epoch: int,
    seed: int,
    epoch: int,
    weights: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """The case of every sample of an epoch.

    Without weights: whole passes over the cases, each shuffled anew, then a part of one more pass, so that
    every case comes equally often, give or take one. With weights: each sample drawn by itself with a chance
    proportional to the weight of the case. The order of fewer samples is the start of the order of more.

    Args:
        num_cases: cases in the index, at least 1.
        samples_per_epoch: length of the order.
        seed: the run's seed.
        epoch: the epoch, from 0.
        weights: (num_cases,) not negative, not all 0.

    Returns:
        int64 (samples_per_epoch,).
    """
    assert num_cases >= 1, "an index without cases has no order"
    generator = sample_generator(seed, epoch, 0, "order")
    if weights is not None:
        assert weights.shape == (num_cases,), "one weight per case"
        edges = np.cumsum(np.asarray(weights, np.float64))
        drawn = np.searchsorted(edges, generator.random(samples_per_epoch) * edges[-1], side="right")
        return np.asarray(np.minimum(drawn, int(np.flatnonzero(weights)[-1])), np.int64)
    passes = -(-samples_per_epoch // num_cases)
    order = [generator.permutation(num_cases) for _ in range(passes)]
    return np.concatenate([np.zeros(0, np.int64), *order])[:samples_per_epoch]


class StepSampler:
    """The batches that one process reads, from one optimiser step to another.

    The samples of an optimiser step are the same for any number of processes: with `accumulation` forward
    passes the step's samples are split into as many parts, and each part into one block per rank.

    Args:
        num_cases: cases in the index.
        batch_size: scans per forward pass of this process.
        samples_per_epoch: scans per epoch over all processes.
        seed: the run's seed.
        rank: this process.
        world_size: number of processes.
        start_step: first optimiser step to yield, from 0.
        num_steps: the step to stop before.
        accumulation: forward passes per optimiser step.
        weights: (num_cases,) chance of each case, for class-balanced sampling.
    """

    def __init__(
        self,
        num_cases: int,
        *,
        batch_size: int,
        samples_per_epoch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_steps: int,
        accumulation: int = 1,
        weights: NDArray[np.floating] | None = None,
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.num_cases = num_cases
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self.num_steps = num_steps
        self.accumulation = accumulation
        self.weights = weights
        self.global_batch = batch_size * world_size * accumulation
        self.steps_per_epoch = steps_per_epoch(samples_per_epoch, self.global_batch)

    def __len__(self) -> int:
        """Forward passes this process makes."""
        return max(0, self.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleRef]]:
        """One list of samples per forward pass."""
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start_step, self.num_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                samples = self.steps_per_epoch * self.global_batch
                order = epoch_order(self.num_cases, samples, self.seed, epoch, self.weights)
            base = step % self.steps_per_epoch * self.global_batch
            for part in range(self.accumulation):
                first = base + (part * self.world_size + self.rank) * self.batch_size
                yield [SampleRef(int(order[i]), i, epoch) for i in range(first, first + self.batch_size)]


def draw_from_bag(bag: Sequence[int], most: int, seed: int, epoch: int, sample_index: int) -> list[int]:
    """The cases of a bag that one sample reads: all of them, or `most` drawn without replacement, in their order.

    Args:
        bag: rows of the cases in the index.
        most: how many are read at most.
        seed: the run's seed.
        epoch: the epoch, from 0.
        sample_index: position of the sample in the order of the epoch.
    """
    if len(bag) <= most:
        return list(bag)
    generator = sample_generator(seed, epoch, sample_index, "scans of a study")
    return [bag[k] for k in sorted(generator.choice(len(bag), most, replace=False).tolist())]


class BagSampler:
    """Reads bags of cases, such as the scans of a study, where `StepSampler` reads cases.

    Sample i of the epoch is a bag; its cases are samples ``i * most``, ``i * most + 1``, ... of the epoch, which follow
    each other in the batch.

    Args:
        steps: draws the bags.
        bags: rows of the cases of each bag in the index.
        most: cases read of a bag at most.
    """

    def __init__(self, steps: StepSampler, bags: Sequence[Sequence[int]], most: int) -> None:
        assert steps.num_cases == len(bags), "one sample per bag"
        self.steps, self.bags, self.most = steps, bags, most
        self.batch_size = steps.batch_size * most  # at most
        self.steps_per_epoch = steps.steps_per_epoch

    def __len__(self) -> int:
        """Forward passes this process makes."""
        return len(self.steps)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        """One list of samples per forward pass."""
        for refs in self.steps:
            yield [
                SampleRef(row, ref.sample_index * self.most + k, ref.epoch)
                for ref in refs
                for k, row in enumerate(
                    draw_from_bag(self.bags[ref.case_index], self.most, self.steps.seed, ref.epoch, ref.sample_index)
                )
            ]
