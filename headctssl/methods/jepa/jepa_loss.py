"""Jepa loss: how far predicted tokens are from those of the teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["normalised_targets", "predicted_token_loss"]

# Legend: B samples, M predicted tokens, C channels.


def normalised_targets(tokens_BMC: Tensor) -> Tensor:
    """The teacher's tokens with mean 0 and variance 1 over their channels, float32, without trainable parameters."""
    return functional.layer_norm(tokens_BMC.float(), tokens_BMC.shape[-1:])


def predicted_token_loss(prediction_BMC: Tensor, targets_BMC: Tensor, counts_BM: Tensor) -> Tensor:
    """Smooth-L1 (bend at 1), mean over channels and the tokens of a scan that count, then over scans.

    I-JEPA, arXiv 2301.08243, and Vol-JEPA, arXiv 2511.18640, with their public code.

    Args:
        prediction_BMC: what the predictor says.
        targets_BMC: what `normalised_targets` gives.
        counts_BM: float32, 1 where a token holds tissue, 0 where it only fills up.

    Returns:
        Scalar float32; a scan without tissue adds 0.
    """
    errors_BM = functional.smooth_l1_loss(prediction_BMC.float(), targets_BMC, reduction="none").mean(-1)
    return ((errors_BM * counts_BM).sum(1) / counts_BM.sum(1).clamp(min=1.0)).mean()
