"""Models Genesis loss: squared error of the repaired voxels."""

from __future__ import annotations

from torch import Tensor

__all__ = ["voxel_error"]


def voxel_error(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Squared error, mean over channels and voxels of a sample that count, then over samples (arXiv 1908.06912).

    Args:
        prediction: (B, C, D, H, W).
        target: (B, C, D, H, W).
        counted: bool (B, 1, D, H, W), voxels that count.

    Returns:
        Scalar float32; a sample without a voxel that counts adds 0.
    """
    error = (prediction.float() - target.float()).square().mean(dim=1, keepdim=True).masked_fill(~counted, 0.0)
    return (error.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)).mean()
