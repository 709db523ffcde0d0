"""View masks: masks and label maps seen through the same geometry as a view, and where in them a view is centred."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.loading import augment
from headctssl.loading.crop_masks import UNKNOWN
from headctssl.loading.crop_resize import crop_and_resize
from headctssl.loading.draws import ViewDraw

__all__ = ["FocusMask", "labels_in_view", "share_in_view"]

Edges = NDArray[np.float64]


def share_in_view(mask: Tensor, draw: ViewDraw, box: Edges, spacing: NDArray[np.float64], out: Tensor) -> None:
    """The share of marked voxels under each voxel of a view, found with the weights of the view itself.

    It is above 0 exactly where a marked voxel went into the view, however little of it, also through a blur.

    Args:
        mask: bool (D, H, W) on the voxels that were read.
        draw: the view.
        box: (3, 2) the stored voxels.
        spacing: (3,) mm of the voxels that were read.
        out: float32 of the view's shape, written to.
    """
    grid, numbers = draw.grid, mask.to(torch.int16)
    if draw.rotation_deg is None:
        out.copy_(crop_and_resize(numbers, grid, box, fill=0.0)[0])
    else:
        z, y, x = (step * float(mm) for step, mm in zip(grid.step, spacing, strict=True))
        margin = augment.rotation_margin(grid.shape, (z, y, x), draw.rotation_deg)
        wide, _ = crop_and_resize(numbers, grid.widened(margin), box, fill=0.0)
        out.copy_(augment.rotate(wide[None], grid.shape, (z, y, x), draw.rotation_deg, 0.0)[0])
    if draw.blur_sigma > 0.0:
        augment.blur_(out[None], draw.blur_sigma)
    out.clamp_(0.0, 1.0)


def labels_in_view(labels: Tensor, draw: ViewDraw, box: Edges, spacing: NDArray[np.float64], out: Tensor) -> None:
    """The label of the nearest voxel at each voxel of a view; unknown outside the stored voxels.

    Args:
        labels: int16 (D, H, W) on the voxels that were read.
        draw: the view.
        box: (3, 2) the stored voxels.
        spacing: (3,) mm of the voxels that were read.
        out: int16 of the view's shape, written to.
    """
    grid = draw.grid
    axes: list[Tensor] = []
    for axis in range(3):
        centres = grid.start[axis] + grid.step[axis] * np.arange(grid.shape[axis])
        axes.append(torch.from_numpy(centres[::-1].copy() if grid.flip[axis] else centres))
    if draw.rotation_deg is not None:
        _copy_rotated(labels, draw, axes, box, spacing, out)
        return
    known: list[Tensor] = []
    for axis, places in enumerate(axes):
        nearest = torch.floor(places + 0.5).long()
        known.append(((nearest >= box[axis, 0]) & (nearest < box[axis, 1])).to(labels.device))
        nearest = nearest.clamp(0, labels.shape[axis] - 1).to(labels.device)
        labels = labels.index_select(axis, nearest)
    z, y, x = known
    out.copy_(labels.masked_fill(~(z[:, None, None] & y[:, None] & x), UNKNOWN))


def _copy_rotated(
    labels: Tensor, draw: ViewDraw, axes: list[Tensor], box: Edges, spacing: NDArray[np.float64], out: Tensor
) -> None:
    """As `labels_in_view`: turned about the centre in mm, as `augment.rotate` turns the image after the flips."""
    assert draw.rotation_deg is not None, "a rotated view has angles"
    grid = draw.grid
    inverse = augment.rotation_matrix(draw.rotation_deg).T
    # Offsets from the view's centre in mm, along the axes as they are after the flips.
    offsets = [
        (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step * float(mm)
        for n, step, mm in zip(grid.shape, grid.step, spacing, strict=True)
    ]
    flat = torch.zeros(grid.shape, dtype=torch.long, device=labels.device)
    known = torch.ones(grid.shape, dtype=torch.bool, device=labels.device)
    for axis in range(3):
        z, y, x = (float(inverse[axis, k]) * offsets[k].to(labels.device).float() for k in range(3))
        turned = (z[:, None, None] + y[:, None] + x) / float(spacing[axis])
        centre = float(axes[axis][0] + axes[axis][-1]) / 2
        nearest = torch.floor(centre + (-turned if grid.flip[axis] else turned) + 0.5).long()
        known &= (nearest >= box[axis, 0]) & (nearest < box[axis, 1])
        flat = flat * labels.shape[axis] + nearest.clamp_(0, labels.shape[axis] - 1)
    out.copy_(labels.reshape(-1)[flat].masked_fill_(~known, UNKNOWN))


class FocusMask:
    """Draws voxels of a mask, each with the same chance, by counting along the axes: no list of them is made.

    Args:
        mask: bool (D, H, W), on any device.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._planes = mask.sum(dim=(1, 2)).cpu().numpy()

    def point(self, u: float) -> NDArray[np.float64] | None:
        """The middle of a marked voxel, (3,) in edges as `draws.Edges`; None when nothing is marked.

        Args:
            u: uniform in [0, 1).
        """
        rank = int(u * int(self._planes.sum()))
        if not self._planes.any():
            return None
        place = []
        counts: NDArray[np.int64] = self._planes
        part = self.mask
        for _ in range(3):
            upto = np.cumsum(counts)
            at = int(np.searchsorted(upto, rank, side="right"))
            rank -= int(upto[at] - counts[at])
            place.append(at + 0.5)
            part = part[at]
            if part.ndim:
                counts = (part.sum(dim=1) if part.ndim == 2 else part.long()).cpu().numpy()
        return np.asarray(place)
