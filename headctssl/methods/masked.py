"""Masked: what objectives that reconstruct masked patches share: drawing, targets, errors, the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.methods.spread import unit_spread
from headctssl.methods.token_share import tissue_first, tissue_tokens
from headctssl.networks.tokens import gather_tokens, grid_of, mask_from_indices, patchify, voxels_of_mask
from headctssl.types import StepResult, Views

__all__ = ["Masking", "absolute_error", "check_blocks", "draw_masks", "masked_step", "masked_targets", "squared_error"]

# Legend: B samples, N patches, U used, K kept, M masked, P = channels * voxels of a patch.

Shape = tuple[int, int, int]
Reconstruct = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
MaskedError = Callable[[Tensor, Tensor, Tensor], Tensor]


def draw_masks(
    generators: Sequence[np.random.Generator],
    tokens: int,
    ratio: float,
    *,
    used: int | None = None,
    tissue: NDArray[np.bool_] | None = None,
) -> tuple[Tensor, Tensor]:
    """Which tokens are seen and which are masked, uniformly at random (arXiv 2111.06377, section 3).

    Where fewer tokens are used than there are, those with tissue are taken before those of air, each at random, and
    only then it is drawn which of them are masked. What is used has one size for all scans, so that a scan's draw
    depends neither on its batch mates nor on the number of processes.

    Args:
        generators: one per sample.
        tokens: N.
        ratio: share of the used tokens that is masked; at least one token is masked and one kept.
        used: U, how many tokens are used; all when None.
        tissue: (B, N), which tokens hold tissue; only looked at when fewer than all are used.

    Returns:
        Kept (B, K) and masked (B, M) token indices, int64, ascending, on the CPU; K + M = U.
    """
    count = tokens if used is None else used
    masked = min(max(round(count * ratio), 1), count - 1)
    kept, hidden = [], []
    for row, generator in enumerate(generators):
        order = generator.permutation(tokens)
        if count < tokens:
            if tissue is not None:
                order = tissue_first(order, tissue[row], count)
            order = generator.permutation(order[:count])
        hidden.append(np.sort(order[:masked]))
        kept.append(np.sort(order[masked:]))
    return torch.from_numpy(np.stack(kept).astype(np.int64)), torch.from_numpy(np.stack(hidden).astype(np.int64))


@dataclass(frozen=True)
class Masking:
    """How patches of a view are masked.

    Args:
        patch: voxels (z, y, x) of a patch: a transformer's token, or a block of voxels for a CNN.
        ratio: share of the used patches that is masked.
        unit: patches (z, y, x) that are masked together.
        share: share of a view's units that is used, tissue before air; the others are neither seen nor predicted.
    """

    patch: Shape
    ratio: float
    unit: Shape = (1, 1, 1)
    share: float = 1.0

    def draw(self, views: Views, index: int) -> tuple[Tensor, Tensor]:
        """Kept (B, K) and masked (B, M) patch indices, int64, ascending, for one global view, on its device."""
        volume = views.groups["global"][index]
        grid = grid_of(volume.shape[2:], self.patch)
        units = grid_of(grid, self.unit)
        count = units[0] * units[1] * units[2]
        tissue = None
        if self.share < 1.0:
            (pz, py, px), (uz, uy, ux) = self.patch, self.unit
            tissue = tissue_tokens(views, "global", index, (pz * uz, py * uy, px * ux))
        kept, masked = draw_masks(
            views.generators("mask" if index == 0 else f"mask{index}"),
            count,
            self.ratio,
            used=max(2, round(count * self.share)),
            tissue=tissue,
        )
        if self.unit != (1, 1, 1):
            kept, masked = (_patches_of_units(chosen, units, self.unit) for chosen in (kept, masked))
        return kept.to(volume.device), masked.to(volume.device)


def _patches_of_units(chosen: Tensor, units: Shape, unit: Shape) -> Tensor:
    """Unit indices (B, K) of a grid of units as the indices of all their patches, ascending."""
    flat = voxels_of_mask(mask_from_indices(chosen, units), unit).flatten(1)
    return flat.nonzero()[:, 1].view(chosen.shape[0], -1)


def check_blocks(shape: Shape, block: Shape, setting: str) -> None:
    """Refuse an input that cannot be divided into at least two blocks.

    Args:
        shape: voxels (z, y, x) of a global view.
        block: voxels (z, y, x) of a block.
        setting: the setting that changes the block.

    Raises:
        UsageError: the input has other sides than multiples of the block, or only one block.
    """
    try:
        d, h, w = grid_of(shape, block)
    except ValueError as error:
        problem = str(error)
    else:
        if d * h * w > 1:
            return
        problem = f"one block of {block} voxels"
    raise UsageError(
        "The input cannot be divided into blocks to mask.",
        got=problem,
        expected=f"an input of several blocks of {block} voxels",
        do=f"Set {setting} to a divisor of the input shape {shape}.",
    )


def masked_targets(
    volume: Tensor, valid: Tensor, masked: Tensor, patch: Shape, *, normalise: bool
) -> tuple[Tensor, Tensor]:
    """What is to be predicted, and which of it counts.

    Args:
        volume: (B, C, D, H, W), the view.
        valid: bool (B, 1, D, H, W), voxels that may count (`Views.valid`).
        masked: (B, M) int64 patch indices.
        patch: voxels (z, y, x) per patch.
        normalise: whether each patch is brought to mean 0 and variance 1 over its values that count
            (arXiv 2111.06377, section 4.1; arXiv 2301.03580, section 3.3).

    Returns:
        Targets float32 (B, M, P) and weights float32 (B, M, P), 1 where a value counts and 0 elsewhere.
    """
    targets = gather_tokens(patchify(volume.float(), patch), masked)
    counts = gather_tokens(patchify(valid.float(), patch), masked).repeat(1, 1, volume.shape[1])
    if normalise:
        number = counts.sum(-1, keepdim=True)
        targets = targets - (targets * counts).sum(-1, keepdim=True) / number.clamp(min=1.0)
        variance = (targets.square() * counts).sum(-1, keepdim=True) / (number - 1.0).clamp(min=1.0)
        targets = targets / (variance + 1e-6).sqrt()
    return targets, counts


def squared_error(prediction: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Squared error, mean over the values of a sample that count, then over samples. All arguments (B, M, P)."""
    return _mean(functional.mse_loss(prediction.float(), targets, reduction="none"), counts)


def absolute_error(prediction: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Absolute error, mean over the values of a sample that count, then over samples. All arguments (B, M, P)."""
    return _mean(functional.l1_loss(prediction.float(), targets, reduction="none"), counts)


def _mean(errors: Tensor, counts: Tensor) -> Tensor:
    per_sample = (errors * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1.0)
    return per_sample.mean()


def masked_step(
    views: Views, masking: Masking, reconstruct: Reconstruct, error: MaskedError, *, normalise: bool
) -> StepResult:
    """One forward pass: every global view is masked by itself, reconstructed, and compared where it was masked.

    Args:
        views: the views of a batch.
        masking: what is masked.
        reconstruct: (volume (B, C, D, H, W), kept (B, K), masked (B, M)) -> predictions (B, M, P) and the encoder's
            features (B, C).
        error: (predictions, targets, weights), all (B, M, P) -> scalar.
        normalise: see `masked_targets`.

    Returns:
        The loss, mean over views, and of the last view: `relative_error`, the loss over that of always saying the
        mean of what counts; `stored_share`, the share of masked voxels that count; `feature_std`.
    """
    losses = []
    for index, volume in enumerate(views.groups["global"]):
        keep, masked = masking.draw(views, index)
        prediction, features = reconstruct(volume, keep, masked)
        targets, counts = masked_targets(
            volume, views.valid("global", index), masked, masking.patch, normalise=normalise
        )
        losses.append(error(prediction, targets, counts))
    with torch.no_grad():
        mean = (targets * counts).sum() / counts.sum().clamp(min=1.0)
        guess = error(mean.expand_as(targets), targets, counts)
        logs = {
            "relative_error": losses[-1].detach() / guess.clamp(min=1e-12),
            "stored_share": counts.mean(),
            "feature_std": unit_spread(features),
        }
    return StepResult(torch.stack(losses).mean(), logs)
