"""Dino loss: cross-entropy between what teacher and student say about different views of a scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_view_loss", "entropy", "teacher_probabilities"]

# Legend: B samples, K prototypes.


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
