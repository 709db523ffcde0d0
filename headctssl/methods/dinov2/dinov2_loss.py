"""Dinov2 loss: the cross-entropy of masked tokens, and block-wise masks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["block_mask", "masked_token_loss"]

# Legend: M masked tokens of all samples, K prototypes.

Grid = tuple[int, int, int]


def masked_token_loss(targets_MK: Tensor, logits_MK: Tensor, weights_M: Tensor, temperature: float) -> Tensor:
    """Cross-entropy on masked tokens (iBOT, arXiv 2111.07832, equation 2).

    Args:
        targets_MK: the teacher's probabilities at the tokens that the student does not see.
        logits_MK: the student's cosines there.
        weights_M: weight of each token: 1 over the number of masked tokens of its view and over the number of views.
        temperature: of the student.

    Returns:
        Scalar float32.
    """
    log_probabilities = functional.log_softmax(logits_MK.float() / temperature, dim=-1)
    return -((targets_MK * log_probabilities).sum(-1) * weights_M).sum()


def block_mask(
    grid: Grid, count: int, generator: np.random.Generator, *, smallest: int = 4, aspect: float = 0.3
) -> NDArray[np.bool_]:
    """A mask made of boxes, with exactly `count` tokens (the block-wise masks of BEiT, arXiv 2106.08254, in 3D).

    Boxes of random size and side ratio are added until `count` is reached; what the last box has too many is taken
    out of it again at random, so that every sample of a batch may have the number it was given.

    Args:
        grid: tokens (d, h, w).
        count: tokens to mask, at most all of them.
        generator: random numbers.
        smallest: tokens of the smallest box.
        aspect: smallest ratio of two sides; the largest is its inverse.

    Returns:
        (d, h, w), True where masked.
    """
    total = math.prod(grid)
    assert 0 <= count <= total, f"{count} of {total} tokens"
    mask = np.zeros(grid, np.bool_)
    while (left := count - int(mask.sum())) > 0:
        volume = generator.uniform(min(smallest, left), max(left, smallest) + 1)
        shape = np.exp(generator.uniform(math.log(aspect), -math.log(aspect), 3) / 2)
        sides = (volume / shape.prod()) ** (1 / 3) * shape
        size = [min(n, max(1, round(float(side)))) for n, side in zip(grid, sides, strict=True)]
        start = [int(generator.integers(0, n - s + 1)) for n, s in zip(grid, size, strict=True)]
        box = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        new = np.zeros(grid, np.bool_)
        new[box] = True
        new &= ~mask
        surplus = int(new.sum()) - left
        if surplus > 0:
            new.reshape(-1)[generator.choice(np.flatnonzero(new), surplus, replace=False)] = False
        mask |= new
    return mask
