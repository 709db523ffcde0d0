"""Dino loss: cross-entropy between teacher and student over views of a scan, and what keeps scans apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_view_loss", "entropy", "koleo", "sinkhorn", "teacher_probabilities"]

# Legend: B samples, K prototypes, C channels.

_SAME_COSINE = 1.0 - 1e-6
"""Two features this close are copies of one scan; pulling them apart would be noise of rounding."""


def teacher_probabilities(logits_BK: Tensor, center_K: Tensor, temperature: float) -> Tensor:
    """Centred and sharpened targets, float32 (B, K): softmax((g - c) / t) (arXiv 2104.14294, section 3.1)."""
    return functional.softmax((logits_BK.float() - center_K.float()) / temperature, dim=-1)


def entropy(probabilities_BK: Tensor) -> Tensor:
    """Mean entropy over samples in nats."""
    per_sample: Tensor = torch.special.entr(probabilities_BK).sum(-1)
    return per_sample.mean()


def cross_view_loss(teacher: Sequence[Tensor], student: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean cross-entropy over pairs of different views and over samples (arXiv 2104.14294, equation 3).

    Args:
        teacher: per global view probabilities (B, K).
        student: per view logits (B, K); its first views are the teacher's views, in the same order.
        temperature: of the student.

    Returns:
        Scalar float32.

    Raises:
        ValueError: there is no pair of different views.
    """
    pairs = len(teacher) * len(student) - min(len(teacher), len(student))
    if pairs < 1:
        raise ValueError("no pair of different views: DINO needs a teacher view and another student view")
    total = torch.zeros((), device=student[0].device)
    everyone = torch.stack(tuple(teacher)).sum(0)
    for index, logits in enumerate(student):
        # The targets of all partners of one student view are summed first: one product with K instead of several.
        targets = everyone - teacher[index] if index < len(teacher) else everyone
        if index < len(teacher) and len(teacher) == 1:
            continue
        log_probabilities = functional.log_softmax(logits.float() / temperature, dim=-1)
        total = total - (targets * log_probabilities).sum(-1).mean()
    return total / pairs


@torch.no_grad()
def sinkhorn(logits_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Targets that use every prototype equally often (SwAV, arXiv 2006.09882, section 3.1; arXiv 2304.07193).

    Alternates between rows of equal sum over the samples for each prototype and columns of sum 1 for each sample.
    In logarithms, so that no temperature makes it overflow.

    Args:
        logits_BK: the teacher's cosines for all samples of the global batch.
        temperature: of the teacher.
        iterations: alternations.

    Returns:
        float32 (B, K), every row sums to 1; the sums of the columns come closer to B / K with each iteration.
    """
    scores = logits_BK.float() / temperature
    for _ in range(iterations):
        scores = scores - scores.logsumexp(0, keepdim=True)
        scores = scores - scores.logsumexp(1, keepdim=True)
    return scores.exp()


def koleo(features_BC: Tensor) -> Tensor:
    """Minus the mean log distance to the nearest neighbour (Kozachenko-Leonenko, arXiv 2304.07193, section 4).

    Finite for any input: copies are not each other's neighbours, and what has no direction is left out.

    Args:
        features_BC: features of one view of every scan of the global batch.

    Returns:
        Scalar float32; 0 when fewer than two samples differ.
    """
    unit = functional.normalize(features_BC.float(), dim=-1, eps=1e-8)
    # Half precision knows no cosines between .996 and 1: it would find wrong neighbours where features are much alike.
    with torch.no_grad(), torch.autocast(unit.device.type, enabled=False):
        cosines = unit @ unit.T
        cosines.fill_diagonal_(-2.0)
        # A copy has no nearest neighbour of its own; it must not become that of others' copies either.
        cosines = cosines.masked_fill(cosines > _SAME_COSINE, -2.0)
        nearest_cosine, nearest = cosines.max(1)
    squared = (unit - unit[nearest]).square().sum(-1)
    counts = (nearest_cosine > -1.5) & (squared > 1.0 - _SAME_COSINE)  # features of zero have no distance
    distances = squared.clamp(min=1e-12).sqrt()
    return -(distances.log() * counts).sum() / counts.sum().clamp(min=1)
