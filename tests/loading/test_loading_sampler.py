"""Sampler: the same global order for any number of processes, every case once a pass."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.loading.sampler import (
    BagSampler,
    SampleRef,
    StepSampler,
    draw_from_bag,
    epoch_order,
    steps_per_epoch,
)


def of_ranks(world: int, accumulation: int, global_batch: int, **call: object) -> list[list[SampleRef]]:
    """What all processes read together, per optimiser step."""
    ranks = [
        list(
            StepSampler(
                batch_size=global_batch // (world * accumulation),
                rank=rank,
                world_size=world,
                accumulation=accumulation,
                **call,  # type: ignore[arg-type]  # keyword arguments of one test
            )
        )
        for rank in range(world)
    ]
    passes = [[ref for rank in ranks for ref in rank[i]] for i in range(len(ranks[0]))]
    steps = range(0, len(passes), accumulation)
    return [[ref for one in passes[i : i + accumulation] for ref in one] for i in steps]


@given(
    num_cases=st.integers(1, 30),
    world=st.sampled_from([1, 2, 3, 4]),
    accumulation=st.sampled_from([1, 2]),
    samples=st.integers(1, 70),
    seed=st.integers(0, 5),
    start=st.integers(0, 7),
)
@settings(max_examples=60, deadline=None)
def test_any_number_of_processes_reads_the_same_samples(
    num_cases: int, world: int, accumulation: int, samples: int, seed: int, start: int
) -> None:
    call = {"num_cases": num_cases, "samples_per_epoch": samples, "seed": seed, "num_steps": 9}
    alone = of_ranks(1, 1, 24, **call, start_step=0)
    together = of_ranks(world, accumulation, 24, **call, start_step=start)
    assert together == alone[start:]


@given(num_cases=st.integers(1, 40), samples=st.integers(0, 130), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_each_pass_covers_every_case_once(num_cases: int, samples: int, epoch: int) -> None:
    order = epoch_order(num_cases, samples, 7, epoch)
    assert order.dtype == np.int64
    assert len(order) == samples
    for first in range(0, samples, num_cases):
        part = order[first : first + num_cases]
        assert len(set(part.tolist())) == len(part)
        assert set(part.tolist()) <= set(range(num_cases))
    assert np.array_equal(epoch_order(num_cases, samples + 9, 7, epoch)[:samples], order)


def test_order_depends_on_seed_and_epoch() -> None:
    orders = [tuple(epoch_order(50, 50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(epoch_order(50, 100, 0, 0)[50:]) != orders[0], "the second pass is shuffled anew"


def test_an_epoch_ends_with_a_whole_batch_and_the_next_begins_at_its_start() -> None:
    sampler = StepSampler(5, batch_size=4, samples_per_epoch=10, seed=0, num_steps=5)
    batches = list(sampler)
    assert steps_per_epoch(10, 4) == sampler.steps_per_epoch == 3
    assert [batch[0].epoch for batch in batches] == [0, 0, 0, 1, 1]
    assert [ref.sample_index for batch in batches[:3] for ref in batch] == list(range(12))
    assert batches[3][0].sample_index == 0
    assert [ref.case_index for batch in batches[:3] for ref in batch] == epoch_order(5, 12, 0, 0).tolist()
    assert len(sampler) == 5


def test_weights_set_how_often_a_case_comes() -> None:
    weights = np.array([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    order = epoch_order(6, 8000, 3, 0, weights)
    share = np.bincount(order, minlength=6) / len(order)
    assert share[weights == 0].sum() == 0
    assert np.allclose(share, weights / 8, atol=0.02)
    assert np.array_equal(epoch_order(6, 100, 3, 0, weights), order[:100])


@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=9),
    most=st.integers(1, 5),
    world=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 5),
    start=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_bags_are_read_whole_or_in_part_and_the_same_by_any_number_of_processes(
    sizes: list[int], most: int, world: int, seed: int, start: int
) -> None:
    edges = np.cumsum([0, *sizes]).tolist()
    bags = [range(a, b) for a, b in pairwise(edges)]

    def read(world: int, rank: int, start_step: int) -> list[list[SampleRef]]:
        steps = StepSampler(
            len(bags), batch_size=4 // world, samples_per_epoch=8, seed=seed, rank=rank, world_size=world,
            start_step=start_step, num_steps=6,
        )  # fmt: skip
        return list(BagSampler(steps, bags, most))

    alone = read(1, 0, 0)
    ranks = [read(world, rank, start) for rank in range(world)]
    assert [[ref for one in parts for ref in one] for parts in zip(*ranks, strict=True)] == alone[start:]
    for refs in alone:
        assert len({ref.sample_index for ref in refs}) == len(refs)
        for sample in {ref.sample_index // most for ref in refs}:
            rows = [ref.case_index for ref in refs if ref.sample_index // most == sample]
            (bag,) = [bag for bag in bags if rows[0] in bag]
            assert sorted(set(rows)) == rows
            assert set(rows) <= set(bag)
            assert len(rows) == min(most, len(bag))


def test_other_scans_of_a_large_study_are_drawn_in_every_epoch() -> None:
    drawn = [tuple(draw_from_bag(range(10), 3, 0, epoch, 0)) for epoch in range(40)]
    assert len(set(drawn)) > 20
    assert {row for rows in drawn for row in rows} == set(range(10))
    assert drawn[3] == tuple(draw_from_bag(range(10), 3, 0, 3, 0))
