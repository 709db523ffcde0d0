"""Volume fusion loss: soft Dice of all classes plus cross-entropy, over the voxels that count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["dice_and_entropy"]

# Legend: B samples, K + 1 classes, (D, H, W) voxels.


def dice_and_entropy(logits: Tensor, classes: Tensor, counted: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Both losses of every sample (arXiv 2306.16925).

    With p the softmax, g the indicator of a class, sums over the voxels that count:
    Dice = 1 - mean over classes of (2 sum(p g) + s) / (sum(p) + sum(g) + s), entropy = mean of -log p of the true
    class. Dice is taken per scan, so that no scan depends on its batch mates.

    Args:
        logits: (B, K + 1, D, H, W).
        classes: int64 (B, 1, D, H, W) in 0..K.
        counted: bool (B, 1, D, H, W), voxels that count.
        smooth: s.

    Returns:
        Dice and entropy, float32 (B,); both 0 for a sample without a voxel that counts.
    """
    logs = functional.log_softmax(logits.float(), dim=1)
    weight = counted.to(logs.dtype)
    voxels = (2, 3, 4)
    predicted = logs.exp() * weight
    target = torch.zeros_like(logs).scatter_(1, classes, weight)
    overlap = (predicted * target).sum(voxels)
    size = predicted.sum(voxels) + target.sum(voxels)
    dice = 1.0 - ((2.0 * overlap + smooth) / (size + smooth)).mean(1)
    entropy = -(logs.gather(1, classes) * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)
    return dice, entropy
