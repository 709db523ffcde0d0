"""Supervised loss: soft Dice of sigmoids plus binary cross-entropy, over the classes that a scan's dataset marks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["dice_and_bce", "mean_over_known"]

# Legend: B samples, K classes, (D, H, W) voxels.


def dice_and_bce(logits: Tensor, labels: Tensor, counted: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Both losses of every class of every sample (arXiv 2501.11253, section 3: Dice and cross-entropy per class).

    With p the sigmoids, g the indicator of a class, sums over the voxels that count:
    Dice = 1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s), BCE = mean(-g log p - (1 - g) log(1 - p)).

    Args:
        logits: (B, K, D, H, W).
        labels: integer (B, 1, D, H, W), position of the class + 1; 0 where none of them is.
        counted: bool (B, 1, D, H, W), voxels that count.
        smooth: s, which makes Dice 0 for a class that is neither there nor predicted.

    Returns:
        Dice and BCE, float32 (B, K); both 0 for a sample without a voxel that counts.
    """
    logits = logits.float()
    weight = counted.to(logits.dtype)
    classes = torch.arange(1, logits.shape[1] + 1, device=logits.device).view(1, -1, 1, 1, 1)
    target = (labels == classes).to(logits.dtype) * weight
    predicted = logits.sigmoid() * weight
    voxels = (2, 3, 4)
    overlap = (predicted * target).sum(voxels)
    size = predicted.sum(voxels) + target.sum(voxels)
    dice = 1.0 - (2.0 * overlap + smooth) / (size + smooth)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    bce = entropy.sum(voxels) / weight.sum(voxels).clamp(min=1.0)
    return dice, bce


def mean_over_known(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the known classes of each sample, then over samples; a sample without any counts as 0.

    A class that a dataset does not mark adds no loss there, whatever is predicted: partial labels.

    Args:
        values: (B, K).
        known: bool (B, K).
    """
    kept = values.masked_fill(~known, 0.0)
    return (kept.sum(1) / known.sum(1).clamp(min=1)).mean()
