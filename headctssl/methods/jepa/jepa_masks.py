"""Jepa masks: which tokens of a scan are its context and which are predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["split_tokens"]

_COVERAGE_SLACK = 0.05
"""Share of the foreground by which a block may cover less than the best one; the step of the published search."""


def split_tokens(
    tissue: NDArray[np.bool_],
    generator: np.random.Generator,
    *,
    used: int,
    context: int,
    area: float,
    aspect: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw context and targets (Vol-JEPA, arXiv 2511.18640 and its public code).

    A block over the full depth covers `area` of the foreground in the plane. The context is what lies around it,
    brought down to its number by leaving out a run of slices; all other foreground is to be predicted, without those
    tokens that are dropped at random. Both numbers are given, so that scans of any shape go into one batch and no
    scan depends on the others: where there is too little foreground, air fills up.

    Args:
        tissue: (d, h, w), which tokens hold tissue.
        generator: random numbers.
        used: tokens that are used in all.
        context: how many of them are the context.
        area: side area of the block over that of the foreground.
        aspect: smallest and largest ratio of the block's height to its width.

    Returns:
        Token indices of the context (context,) and of the targets (used - context,), ascending.
    """
    assert 0 < context < used <= tissue.size, f"{context} of {used} of {tissue.size} tokens"
    outside = np.broadcast_to(~_block(tissue, generator, area, aspect), tissue.shape)
    around = tissue & outside
    kept = around & ~_slices_left_out(around, context, generator)[:, None, None]
    order = generator.permutation(tissue.size)
    # Foreground around the block, then that of the slices left out, then air around it, then what is left.
    rank = np.select([kept, around, outside], [0, 1, 2], 3).ravel()
    chosen = order[np.argsort(rank[order], kind="stable")][:context]
    rank = np.where(tissue.ravel(), 0, 1)
    rank[chosen] = 2
    targets = order[np.argsort(rank[order], kind="stable")][: used - context]
    return np.sort(chosen).astype(np.int64), np.sort(targets).astype(np.int64)


def _block(
    tissue: NDArray[np.bool_], generator: np.random.Generator, area: float, aspect: tuple[float, float]
) -> NDArray[np.bool_]:
    """The block in the plane, (h, w): anywhere it covers nearly as much foreground as it can."""
    h, w = tissue.shape[1:]
    cells = max(1.0, area * float(tissue.mean()) * h * w)
    ratio = generator.uniform(*aspect)
    rows = min(h, max(1, round((cells * ratio) ** 0.5)))
    columns = min(w, max(1, round((cells / ratio) ** 0.5)))
    places = np.lib.stride_tricks.sliding_window_view(tissue.sum(axis=0), (rows, columns)).sum(axis=(2, 3))
    good = np.flatnonzero(places >= places.max() - _COVERAGE_SLACK * tissue.sum())
    top, left = divmod(int(generator.choice(good)), places.shape[1])
    block = np.zeros((h, w), np.bool_)
    block[top : top + rows, left : left + columns] = True
    return block


def _slices_left_out(around: NDArray[np.bool_], context: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """A run of slices (d,) without which about `context` tokens are left."""
    depth, count = around.shape[0], int(around.sum())
    number = int((1 - context / count) * depth) if count > context else 0
    start = int(generator.integers(0, depth - number + 1))
    out = np.zeros(depth, np.bool_)
    out[start : start + number] = True
    return out
