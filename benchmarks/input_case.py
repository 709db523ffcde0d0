"""One case: from the file to int16 at 1 mm, beside MONAI doing HeadCT-Foundation's chain, nnunetv2, and a floor.

MONAI's chain (arXiv 2502.02779 and its public code): 1 mm by cubic splines, foreground, three windows, 96^3; ours ends
with the same view. nnunetv2's is its default preprocessor with the plans of CT data at 1 mm. The floor: decompress the
file by isal into one array, and copy its voxels once.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

from benchmarks.input_peers import EDGE, WINDOWS, monai_case, nnunet_case
from benchmarks.rows import Row, alternate, faster, value, within

__all__ = ["SCANS", "case_rows"]

SCANS = {"512x512x34": (34, 5.0, 12.0, 10.0), "512x512x256": (256, 0.66, 5.0, 5.0)}
"""Scan -> slices, slice thickness in mm, target beside MONAI, target beside nnunetv2."""
FLOOR_TARGET = 1.6
HEADER = 352  # bytes of a NIfTI file before its voxels
PIECE = 1 << 19
PARTS = ("inflating", "judging values and slices", "finding the head", "resampling and rounding")
CAUSE = (
    "this floor makes no new voxels. Of {whole:.0f} ms {parts}; {made:.1f} million voxels and their mask are "
    "made of {read:.1f} million in the head's box. With these read and those written once the floor is {far:.0f} ms, "
    "and the ratio {ratio:.2f}"
)


def case_rows(name: str, runs: int) -> list[Row]:
    """Rows of one scan.

    Args:
        name: which of `SCANS`.
        runs: per side.
    """
    slices, thickness, monai_target, nnunet_target = SCANS[name]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), folder))
        path = Path(folder) / f"{name}.nii.gz"
        _write_scan(path, slices, thickness)
        return [
            *_beside_peers(name, path, runs, monai_target, nnunet_target),
            *_beside_floor(name, path, max(2 * runs, 9)),
        ]


def _write_scan(path: Path, slices: int, thickness: float) -> None:
    """A synthetic head of 512 x 512 pixels per slice as dcm2niix writes it: rows from the back, gzip level 6."""
    import nibabel as nib
    import numpy as np

    from headctssl.ingest.phantom.acquisition import Acquisition
    from headctssl.ingest.phantom.make import make_case

    scan = Acquisition(
        matrix=512, pixel_mm=0.46, thickness_mm=thickness, slices=slices, bottom_mm=-80.0, rotation_deg=(4.0, -2.0, 6.0)
    )
    hu = make_case(7, acquisition=scan).volume.hu
    affine = np.diag([-0.46, 0.46, thickness, 1.0])
    affine[:3, 3] = (117.5, -117.5, -80.0)
    image = nib.Nifti1Image(np.ascontiguousarray(hu.transpose(2, 1, 0)[:, ::-1]), affine, dtype=np.int16)
    image.header.set_xyzt_units("mm", "sec")
    path.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))


def _beside_peers(name: str, path: Path, runs: int, monai_target: float, nnunet_target: float) -> list[Row]:
    ours, monai, nnunet = alternate(runs, _ours(path), monai_case(path), nnunet_case(path))
    rows = []
    for peer, times, target in (("MONAI", monai, monai_target), ("nnunetv2", nnunet, nnunet_target)):
        # MONAI ends with a view of 96^3, nnunetv2 with what it stores.
        work = [prepare + (view if peer == "MONAI" else 0.0) for _, prepare, view in ours]
        whole = [read + seconds for (read, _, _), seconds in zip(ours, work, strict=True)]
        rows.append(faster(f"preprocess {name}", work, [t for _, t in times], peer, target))
        rows.append(faster(f"read and preprocess {name}", whole, [r + t for r, t in times], peer))
    head, spline = alternate(runs, *_resampling(path))
    rows.append(faster(f"resample the head's box of {name}", head, spline, "nnunetv2's resample_data_or_seg_to_shape"))
    return rows


def _ours(path: Path) -> Callable[[], tuple[float, float, float]]:
    """Seconds to read, to preprocess, to make the view."""
    import torch

    from headctssl.contract import InputSpec, StorageRule, Window
    from headctssl.dataset import image_io
    from headctssl.finetuning.whole_head import head_view
    from headctssl.preprocessing.one_case import preprocess_volume

    windows = tuple(Window(level=level, width=width) for level, width in WINDOWS)
    spec = InputSpec(rule="stretch_to_shape", shape=(EDGE,) * 3, spacing_mm=(1.7, 2.2, 1.8), windows=windows)

    def run() -> tuple[float, float, float]:
        began = time.process_time()
        volume = image_io.read(path)
        read = time.process_time()
        case = preprocess_volume(volume, StorageRule())
        prepared = time.process_time()
        view = head_view(case.hu, case.head_box, case.spacing_mm, spec, torch.device("cpu"))
        seen = time.process_time()
        assert view.shape[-4:] == (3, EDGE, EDGE, EDGE)
        return read - began, prepared - read, seen - prepared

    return run


def _resampling(path: Path) -> tuple[Callable[[], float], Callable[[], float]]:
    """Seconds of our resampling and of nnunetv2's, for the same voxels to the same shape."""
    import numpy as np

    with redirect_stdout(io.StringIO()):
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    from headctssl.contract import StorageRule
    from headctssl.dataset import image_io
    from headctssl.preprocessing.one_case import preprocess_volume
    from headctssl.volume.resample import resample_to_hu

    volume = image_io.read(path)
    case = preprocess_volume(volume, StorageRule())
    box = volume.hu[tuple(slice(low, high) for low, high in case.crop_box)]
    start = tuple(a - low for a, (low, _) in zip(case.grid.start, case.crop_box, strict=True))
    as_float = np.ascontiguousarray(box[None], np.float32)

    def ours() -> float:
        began = time.process_time()
        resample_to_hu(box, (start[0], start[1], start[2]), case.grid.step, case.grid.shape, (-1024, 3071))
        return time.process_time() - began

    def peer() -> float:
        began = time.process_time()
        resample_data_or_seg_to_shape(
            as_float, case.grid.shape, volume.spacing_mm, (1.0, 1.0, 1.0), is_seg=False, order=3, order_z=0
        )
        return time.process_time() - began

    return ours, peer


def _beside_floor(name: str, path: Path, runs: int) -> list[Row]:
    """Reading and preprocessing beside the floor, where the time goes, and the next floor."""
    parts, floors = alternate(runs, _parts(path), _floors(path))
    whole = [sum(run[:4]) for run in parts]
    near, far = [f[0] for f in floors], [f[1] for f in floors]
    beyond = within(
        f"read and preprocess {name}", whole, far, "next floor: and the head's box read, the result written"
    )
    assert beyond.ratio is not None
    parts_ms = [1e3 * median(run[k] for run in parts) for k in range(len(PARTS))]
    cause = CAUSE.format(
        whole=1e3 * beyond.ours,
        parts=", ".join(f"{what} {ms:.0f}" for what, ms in zip(PARTS, parts_ms, strict=True)),
        made=floors[0][2] / 1e6,
        read=floors[0][3] / 1e6,
        far=1e3 * median(far),
        ratio=beyond.ratio,
    )
    rows = [within(f"read and preprocess {name}", whole, near, "floor: inflate, copy", FLOOR_TARGET, cause), beyond]
    return rows + [value(f"of which {what}, {name}", [run[k] for run in parts], "s") for k, what in enumerate(PARTS)]


def _parts(path: Path) -> Callable[[], tuple[float, float, float, float]]:
    """Seconds to inflate, of the rest of reading, to find the head, of the rest of preprocessing."""
    from headctssl.contract import StorageRule
    from headctssl.dataset import image_io
    from headctssl.dataset.nifti_file import read_nifti
    from headctssl.preprocessing.one_case import preprocess_volume
    from headctssl.volume.head import find_head

    def clock(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    def run() -> tuple[float, float, float, float]:
        inflated = clock(lambda: read_nifti(path))
        began = time.process_time()
        volume = image_io.read(path)
        read = time.process_time() - began
        found = clock(lambda: find_head(volume.hu, volume.spacing_mm))
        prepared = clock(lambda: preprocess_volume(volume, StorageRule()))
        return inflated, read - inflated, found, prepared - found

    return run


def _floors(path: Path) -> Callable[[], tuple[float, float, int, int]]:
    """Seconds of the floor and of the next floor, voxels stored, voxels of the head's box."""
    import numpy as np
    from isal import igzip

    from headctssl.contract import StorageRule
    from headctssl.dataset import image_io
    from headctssl.preprocessing.one_case import preprocess_volume

    volume = image_io.read(path)
    case = preprocess_volume(volume, StorageRule())
    box = int(np.prod([high - low for low, high in case.crop_box]))
    stored, size = case.hu.size, HEADER + volume.hu.nbytes
    strip = np.empty(1 << 17, np.float32)  # of a second-level cache

    def run() -> tuple[float, float, int, int]:
        began = time.process_time()
        content = np.empty(size, np.uint8)
        with igzip.open(path) as stream:
            filled = 0
            while filled < size:
                filled += stream.readinto(content.data[filled : filled + PIECE])
        voxels = np.frombuffer(content, np.int16, offset=HEADER)
        voxels.copy()
        near = time.process_time() - began
        for first in range(0, box, strip.size):
            part = voxels[first : first + strip.size]
            np.copyto(strip[: part.size], part)
        out = np.empty(stored, np.int16)
        mask = np.empty(stored, np.bool_)
        for first in range(0, stored, strip.size):
            part = out[first : first + strip.size]
            np.copyto(part, np.rint(strip[: part.size]), casting="unsafe")
            np.greater_equal(strip[: part.size], np.float32(0.5), out=mask[first : first + strip.size])
        return near, time.process_time() - began, stored, box

    return run
