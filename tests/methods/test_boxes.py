"""Boxes: the last box over each voxel against loops, and where boxes are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.methods.boxes import MOST_BOXES, Boxes, draw_boxes, last_box

CPU = torch.device("cpu")
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


def slow(boxes: Boxes, shape: tuple[int, int, int]) -> np.ndarray:
    volume = np.full(shape, -1)
    for k, (start, stop) in enumerate(zip(boxes.start, boxes.stop, strict=True)):
        volume[tuple(slice(max(0, a), max(0, b)) for a, b in zip(start, stop, strict=True))] = k
    return volume


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), shape=SHAPES, count=st.integers(0, MOST_BOXES))
def test_last_box_is_the_one_put_last(seed: int, shape: tuple[int, int, int], count: int) -> None:
    generator = np.random.default_rng(seed)
    start = generator.integers(-4, 9, size=(count, 3))
    boxes = Boxes(start, start + generator.integers(1, 6, size=(count, 3)))
    assert (last_box(boxes, shape, CPU).numpy() == slow(boxes, shape)).all()


def test_the_highest_and_the_lowest_bit_are_told_apart() -> None:
    boxes = Boxes(np.zeros((MOST_BOXES, 3), np.int64), np.full((MOST_BOXES, 3), 2))
    boxes.stop[1:, 0] = 1
    found = last_box(boxes, (3, 2, 2), CPU)
    assert (found[0] == MOST_BOXES - 1).all()
    assert (found[1] == 0).all()
    assert (found[2] == -1).all()
    with pytest.raises(AssertionError):
        last_box(Boxes(np.zeros((MOST_BOXES + 1, 3), np.int64), np.ones((MOST_BOXES + 1, 3), np.int64)), (1, 1, 1), CPU)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), shape=SHAPES, margin=st.integers(0, 4))
def test_boxes_lie_within_the_volume_and_leave_the_margin_where_they_can(
    seed: int, shape: tuple[int, int, int], margin: int
) -> None:
    sides = np.asarray(shape)
    smallest, largest = np.maximum(1, sides // 3), np.maximum(1, sides // 2)
    boxes = draw_boxes(np.random.default_rng(seed), 50, shape, smallest, largest, margin)
    side = boxes.stop - boxes.start
    assert ((side >= smallest) & (side <= largest)).all()
    free = np.minimum(margin, (sides - side) // 2)
    assert (boxes.start >= free).all()
    assert (boxes.stop <= sides - free).all()


def test_every_side_and_every_place_is_drawn() -> None:
    boxes = draw_boxes(np.random.default_rng(0), 2000, (4, 4, 4), 1, np.array([4, 2, 1]))
    for axis, longest in enumerate((4, 2, 1)):
        found = {(int(a), int(b)) for a, b in zip(boxes.start[:, axis], boxes.stop[:, axis], strict=True)}
        assert found == {(a, a + n) for n in range(1, longest + 1) for a in range(5 - n)}
