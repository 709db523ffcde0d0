"""Mae loss: random masks and the squared error on masked voxels that were stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headctssl.networks.tokens import gather_tokens, patchify

__all__ = ["draw_masks", "masked_error", "masked_targets"]

# Legend: B samples, N tokens, K kept, M masked, P = channels * voxels of a patch.


def draw_masks(generators: Sequence[np.random.Generator], tokens: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Which tokens are encoded and which are masked, uniformly at random (arXiv 2111.06377, section 3).

    Args:
        generators: one per sample.
        tokens: N.
        ratio: share of masked tokens; at least one token is masked and one kept.

    Returns:
        Kept (B, K) and masked (B, M) token indices, int64, ascending, on the CPU.
    """
    masked = min(max(round(tokens * ratio), 1), tokens - 1)
    orders = [generator.permutation(tokens) for generator in generators]
    hidden = np.stack([np.sort(order[:masked]) for order in orders])
    kept = np.stack([np.sort(order[masked:]) for order in orders])
    return torch.from_numpy(kept.astype(np.int64)), torch.from_numpy(hidden.astype(np.int64))


def masked_targets(
    volume: Tensor, inside: Tensor, masked: Tensor, patch: tuple[int, int, int], *, normalise: bool
) -> tuple[Tensor, Tensor]:
    """What is to be predicted, and which of it counts.

    Args:
        volume: (B, C, D, H, W), the input of the encoder.
        inside: (B, 1, D, H, W), share of stored voxels; voxels under 0.5 do not count.
        masked: (B, M) int64 token indices.
        patch: voxels (z, y, x) per token.
        normalise: whether each patch is brought to mean 0 and variance 1 (arXiv 2111.06377, section 4.1).

    Returns:
        Targets float32 (B, M, P) and weights float32 (B, M, P), 1 where a value counts and 0 elsewhere.
    """
    targets = gather_tokens(patchify(volume.float(), patch), masked)
    counts = gather_tokens(patchify((inside >= 0.5).float(), patch), masked).repeat(1, 1, volume.shape[1])
    if normalise:
        variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)
        targets = (targets - mean) / (variance + 1e-6).sqrt()
    return targets, counts


def masked_error(prediction: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Squared error, mean over the values of a sample that count, then over samples. All arguments (B, M, P)."""
    squared = (prediction.float() - targets).square() * counts
    per_sample = squared.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1.0)
    return per_sample.mean()
