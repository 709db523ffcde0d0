"""Floor of views: what every program must do for them, one thing after the other, and where our time goes.

The floor of a view: every voxel under it is taken from int16 to float32 once, the multiplications and additions of the
weights that are not zero are done at the speed of a large product of matrices, and every number of the view is written
once. Nothing is drawn, no weights are made, nothing between two steps leaves the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from headctssl.contract import Window
    from headctssl.loading.draws import Grid

__all__ = ["Seen", "floor_of", "parts_of"]

STRIP = 1 << 16  # numbers of float32 that stay in a second-level cache
SIDE = 256  # of the matrices that the operations are timed with


class Seen(NamedTuple):
    """What one run cut: voxels of the scan, int16 (D, H, W), and the grid of each view."""

    hu: np.ndarray
    grids: Sequence[Grid]

    @property
    def box(self) -> np.ndarray:
        """(3, 2), all voxels of the scan."""
        return np.array([(0, n) for n in self.hu.shape], float)

    def crop(self, grid: Grid) -> np.ndarray:
        """The voxels under a view."""
        low, high = np.floor(grid.edges[:, 0]).astype(int), np.ceil(grid.edges[:, 1]).astype(int)
        return self.hu[tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))]


def operations(shape: Sequence[int], grid: Grid) -> float:
    """Multiplications and additions along y, then x, then z: a new sample is made of 2 x step numbers, at least 2.

    Args:
        shape: voxels (z, y, x) under the view.
        grid: of the view.
    """
    (depth, _, width), (d, h, w) = shape, grid.shape
    z, y, x = (2.0 * max(1.0, step) for step in grid.step)
    return 2.0 * (depth * h * width * y + depth * h * w * x + d * h * w * z)


def floor_of(seen: Callable[[], Seen], channels: int) -> Callable[[], float]:
    """Seconds of the floor for what the next run sees.

    Args:
        seen: tells it.
        channels: of a view.
    """
    strip = np.empty(STRIP, np.float32)
    left, right = np.ones((SIDE, SIDE), np.float32), np.ones((SIDE, 4 * SIDE), np.float32)
    product = np.empty((SIDE, 4 * SIDE), np.float32)

    def run() -> float:
        scan = seen()
        work = [(scan.crop(grid), grid) for grid in scan.grids]
        began = time.process_time()
        kept = []  # the views of a scan lie in memory together
        for crop, grid in work:
            planes = max(1, STRIP // max(1, crop[0].size))
            for first in range(0, len(crop), planes):
                some = crop[first : first + planes]
                np.copyto(strip[: some.size].reshape(some.shape), some)
            columns = int(operations(crop.shape, grid) / (2 * SIDE * SIDE))
            for first in range(0, columns, right.shape[1]):
                count = min(right.shape[1], columns - first)
                np.matmul(left, right[:, :count], out=product[:, :count])
            view = np.empty(channels * int(np.prod(grid.shape)), np.float32)
            for first in range(0, view.size, STRIP):
                some = view[first : first + STRIP]
                np.copyto(some, strip[: some.size])
            kept.append(view)
        return time.process_time() - began

    return run


def parts_of(seen: Callable[[], Seen], windows: Sequence[Window]) -> Callable[[], tuple[float, float]]:
    """Seconds of our sums along the axes, weights included, and of the windows, for what the next run sees.

    Args:
        seen: tells it.
        windows: `contract.Window` of each channel.
    """
    import torch

    from headctssl.loading.crop_resize import crop_and_resize_in_blocks
    from headctssl.volume.windows import through_windows, window_maps

    def run() -> tuple[float, float]:
        scan, summed, windowed, kept = seen(), 0.0, 0.0, []
        maps = window_maps(windows)
        for grid in scan.grids:
            at = time.process_time()
            view = torch.from_numpy(np.empty((len(maps), *grid.shape), np.float32))
            for rows, hu in crop_and_resize_in_blocks(torch.from_numpy(scan.hu), grid, scan.box)[0]:
                made = time.process_time()
                through_windows(hu, maps, view[:, rows].unbind())
                done = time.process_time()
                summed, windowed, at = summed + made - at, windowed + done - made, done
            kept.append(view)
        return summed, windowed

    return run
