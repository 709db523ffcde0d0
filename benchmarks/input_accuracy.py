"""Accuracy: the error of resampling to 1 mm beside MONAI's cubic splines, against a reference ten times finer.

The reference is a piece of a synthetic head at 0.1 mm, skull and brain with the edges of a scanner. It is averaged to
the voxels of a scan, which both sides resample to the same grid of 1 mm; the truth there is the mean of the reference
over each voxel. A zone plate, rings that grow finer than the new grid can show, tells what folds back as false rings.
"""

from __future__ import annotations

from typing import Any

from benchmarks.input_slices import FACTORS, slices_at_places
from benchmarks.rows import Row, within

__all__ = ["accuracy_rows", "averaged", "by_monai", "reference", "truth_of"]

FINE_MM = 0.1
TENFOLD = 10  # voxels of the reference in one of the new grid
SIZE = (400, 200, 200)  # voxels of the reference
SCANS = {"0.4 x 0.4 x 0.6 mm": (6, 4, 4), "0.6 mm, isotropic": (6, 6, 6), "0.4 x 0.4 x 5 mm": FACTORS}
"""Scan -> voxels of the reference in one of the scan per axis, even numbers."""
NOISE_HU = 12.0
STEPS = (2.0, 2.2, 3.3)
LARGEST_ALIAS = 0.1  # share of MONAI's


def accuracy_rows() -> list[Row]:
    """Errors in HU and false rings as a share of the plate."""
    import numpy as np

    fine = reference()
    at_places, cause = slices_at_places()
    rows = []
    for name, factors in SCANS.items():
        clean = averaged(fine, factors)
        truth, first, shape = truth_of(fine, factors, clean.shape)
        for noise, told in ((0.0, ""), (NOISE_HU, f", noise {NOISE_HU:g} HU")):
            noisy = clean + np.random.default_rng(0).normal(0.0, noise, clean.shape) if noise else clean
            scan = np.rint(noisy).astype(np.int16)
            errors = [
                float(np.sqrt(np.mean((side(scan, factors, first, shape) - truth) ** 2))) for side in (_by_us, by_monai)
            ]
            what = f"RMS error of 1 mm from {name}{told}"
            why = cause if factors == FACTORS else ""
            rows.append(within(what, errors[:1], errors[1:], "MONAI, cubic splines", 1.0, why, unit="HU"))
    return rows + at_places + [_zone_plate(step) for step in STEPS]


def reference(head: int = 7, place: tuple[float, float, float] = (10.0, 70.0, 10.0)) -> Any:
    """Int16 HU at 0.1 mm: a piece of a head, from the air through the skull into the brain; its back by default.

    Args:
        head: seed of the synthetic head.
        place: in mm, the lower end of the piece, and its shift along y and x.
    """
    from headctssl.ingest.phantom.acquisition import Acquisition
    from headctssl.ingest.phantom.make import make_case

    scanner = Acquisition(
        matrix=SIZE[1],
        pixel_mm=FINE_MM,
        thickness_mm=FINE_MM,
        slices=SIZE[0],
        bottom_mm=place[0],
        shift_mm=(0.0, place[1], place[2]),
        noise_hu=0.0,
        holder=False,
    )
    return make_case(head, acquisition=scanner).volume.hu


def averaged(fine: Any, factors: tuple[int, ...]) -> Any:
    """Means over blocks of so many voxels per axis; what does not fill a block is left out."""
    import numpy as np

    out = fine.astype(np.float32)
    for axis, n in enumerate(factors):
        count = out.shape[axis] // n
        out = np.moveaxis(out, axis, 0)[: count * n]
        out = np.moveaxis(out.reshape(count, n, *out.shape[1:]).mean(axis=1), 0, axis)
    return out


def truth_of(
    fine: Any, factors: tuple[int, ...], size: tuple[int, ...]
) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """The mean over each voxel of the 1 mm grid whose voxel 0 is centred on the scan's, the first voxel wholly inside
    the scan per axis, and how many there are.
    """
    boxes, firsts, counts = [], [], []
    for n, count in zip(factors, size, strict=True):
        low = n // 2 - TENFOLD // 2  # of voxel 0 of the new grid, in voxels of the reference
        first = -(low // TENFOLD) if low < 0 else 0
        low += first * TENFOLD
        # Its last voxel is centred before the scan's last, and inside the scan.
        number = min(count * n - low, count * n - n // 2 - low + TENFOLD // 2) // TENFOLD
        boxes.append(slice(low, low + number * TENFOLD))
        firsts.append(first)
        counts.append(number)
    return averaged(fine[tuple(boxes)], (TENFOLD,) * 3), tuple(firsts), tuple(counts)


def _by_us(scan: Any, factors: tuple[int, ...], first: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    from headctssl.volume.resample import resample

    z, y, x = (TENFOLD / n for n in factors)
    start = (first[0] * z, first[1] * y, first[2] * x)
    return resample(scan, start, (z, y, x), (shape[0], shape[1], shape[2]))


def by_monai(scan: Any, factors: tuple[int, ...], first: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """The voxels that `truth_of` tells of, as MONAI makes them of a scan.

    Args:
        scan: int16 HU.
        factors: voxels of the reference in one of the scan per axis.
        first: as told by `truth_of`.
        shape: as told by `truth_of`.
    """
    import numpy as np
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    spacing = [n / TENFOLD for n in factors]
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(scan.astype(np.float32))[None], affine=affine)
    out = Spacing(pixdim=(1.0, 1.0, 1.0), mode=3)(image)[0].numpy()
    return out[tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))]


def _zone_plate(step: float) -> Row:
    """Deviation of what is left of rings finer than the new grid shows, as a share of the plate's."""
    import numpy as np
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    from headctssl.volume.resample import resample

    edge = 256
    y, x = np.mgrid[:edge, :edge].astype(np.float64)
    squared = (x - edge / 2) ** 2 + (y - edge / 2) ** 2
    plate = np.broadcast_to(1000 * np.cos(np.pi * squared / edge), (4, edge, edge)).astype(np.float32)
    count = int((edge - 1) / step)
    places = np.ix_(*[np.rint(step * np.arange(count)).astype(int)] * 2)
    frequency = np.sqrt(squared)[places] / edge  # cycles per voxel of the plate
    fine = (frequency > 0.75 / step) & (frequency < 0.5)
    ours = resample(plate, (0.0, 0.0, 0.0), (1.0, step, step), (4, count, count))[1]
    image = MetaTensor(torch.from_numpy(plate.copy())[None], affine=torch.eye(4, dtype=torch.float64))
    theirs = Spacing(pixdim=(1.0, step, step), mode=3)(image)[0, 1, :count, :count].numpy()
    shares = [float(one[fine].std() / (1000 / np.sqrt(2))) for one in (ours, theirs)]
    what = f"false rings of a zone plate, {step:g} voxels to one"
    return within(what, shares[:1], shares[1:], "MONAI, cubic splines", LARGEST_ALIAS, unit="of 1")
