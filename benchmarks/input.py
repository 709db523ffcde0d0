"""Input: preprocessing of headctssl against MONAI doing HeadCT-Foundation's chain, one thread.

Run as ``python -m benchmarks.input``; needs the extra ``bench``. Prints a table, writes ``benchmarks/input.json``, ends
with 1 when a target is missed. Every figure is the median over runs that alternate between the two sides.

The peer's chain (arXiv 2502.02779 and its public code): NIfTI -> 1 mm, cubic splines -> foreground -> three windows ->
96^3. Its views are measured by ``benchmarks.views``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLOSC_NTHREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
ONE_THREAD = dict.fromkeys(THREAD_VARIABLES, "1")
RESULT = Path(__file__).with_suffix(".json")
EDGE = 96
SCANS = {"512x512x34": (34, 5.0, 8.0), "512x512x256": (256, 0.66, 3.0)}
"""Scan -> slices, slice thickness in mm, target ratio."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    ours_seconds: float
    monai_seconds: float
    ratio: float
    runs: int
    target: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the target was reached, empty without one."""
        return "" if self.target is None else ("reached" if self.ratio >= self.target else "MISSED")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per side, at least 5 for figures to report")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args(argv)
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # Thread pools take their size when a library is loaded: start again with the sizes set.
        command = [sys.executable, "-m", "benchmarks.input", *(sys.argv[1:] if argv is None else argv)]
        os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})

    import torch

    from headctssl.console import name_files, table

    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (slices, thickness, target) in SCANS.items():
            path = Path(folder) / f"{name}.nii.gz"
            _write_scan(path, slices, thickness)
            rows += _preprocessing(name, path, target, arguments.runs)
    columns = ("what", "headctssl s", "MONAI s", "ratio", "target", "")
    cells = [
        (r.what, f"{r.ours_seconds:.3f}", f"{r.monai_seconds:.3f}", f"{r.ratio:.1f}x", r.target or "", r.verdict)
        for r in rows
    ]
    table(f"input: medians of {arguments.runs} or more runs, one thread", columns, cells)
    content = {
        "format": 1,
        "threads": 1,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "monai", "numpy", "scipy", "headctssl")},
        "seconds": round(time.perf_counter() - began, 1),
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
    }
    arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    name_files([arguments.output])
    return 1 if any(row.verdict == "MISSED" for row in rows) else 0


def _alternate(runs: int, *sides: Callable[[], Any]) -> list[list[Any]]:
    """Run the sides in turn; their results in order. What the first run loads hardly moves a median."""
    results: list[list[Any]] = [[] for _ in sides]
    for _ in range(runs):
        for side, kept in zip(sides, results, strict=True):
            kept.append(side())
    return results


def _seconds(work: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return timed


def _row(what: str, ours: Sequence[float], monai: Sequence[float], target: float | None = None) -> Row:
    a, b = median(ours), median(monai)
    return Row(what, round(a, 4), round(b, 4), round(b / a, 2), len(ours), target)


def _write_scan(path: Path, slices: int, thickness: float) -> None:
    """A synthetic head of 512 x 512 pixels per slice, as a scanner's NIfTI."""
    from headctssl.dataset.image_io import write_nifti
    from headctssl.ingest.phantom.acquisition import Acquisition
    from headctssl.ingest.phantom.make import make_case

    scan = Acquisition(
        matrix=512, pixel_mm=0.46, thickness_mm=thickness, slices=slices, bottom_mm=-80.0, rotation_deg=(4.0, -2.0, 6.0)
    )
    write_nifti(path, make_case(7, acquisition=scan).volume)


def _windows() -> tuple[Any, ...]:
    from headctssl.contract import Window

    return (Window(level=40, width=80), Window(level=80, width=200), Window(level=600, width=2800))


def _spec() -> Any:
    from headctssl.contract import InputSpec

    return InputSpec(rule="stretch_to_shape", shape=(EDGE,) * 3, spacing_mm=(1.7, 2.2, 1.8), windows=_windows())


def _batch(hu: Any, head_box: Any, spacing_mm: Any) -> Any:
    import torch

    from headctssl.types import PretrainBatch

    volume = torch.from_numpy(hu)[None]
    return PretrainBatch(
        volume=volume,
        inside=torch.ones_like(volume, dtype=torch.bool),
        head_box=torch.tensor([head_box], dtype=torch.float32),
        case_index=torch.zeros(1, dtype=torch.int64),
        sample_index=torch.zeros(1, dtype=torch.int64),
        spacing_mm=torch.tensor([spacing_mm], dtype=torch.float32),
        seed=0,
        epoch=0,
    )


def _preprocessing(name: str, path: Path, target: float, runs: int) -> list[Row]:
    """Rows without and with reading the file."""
    from monai import transforms

    from headctssl.contract import StorageRule
    from headctssl.dataset import image_io
    from headctssl.loading.views import whole_head_view
    from headctssl.preprocessing.preprocess import preprocess_volume

    rule, spec = StorageRule(), _spec()

    def ours() -> tuple[float, float, Any]:
        began = time.perf_counter()
        volume = image_io.read(path)
        read = time.perf_counter()
        case = preprocess_volume(volume, rule)
        view = whole_head_view(_batch(case.hu, case.head_box, case.spacing_mm), spec).groups["global"][0]
        done = time.perf_counter()
        assert view.shape == (1, 3, EDGE, EDGE, EDGE)
        return read - began, done - read, case

    load = transforms.Compose([transforms.LoadImage(image_only=True), transforms.EnsureChannelFirst()])
    chain = transforms.Compose(
        [
            transforms.Spacing(pixdim=(1.0, 1.0, 1.0), mode=3),
            transforms.CropForeground(allow_smaller=False),
            _monai_windows,
            transforms.Resize(spatial_size=(EDGE,) * 3),
        ]
    )

    def monai() -> tuple[float, float]:
        began = time.perf_counter()
        image = load(path)
        read = time.perf_counter()
        view = chain(image)
        done = time.perf_counter()
        assert view.shape == (3, EDGE, EDGE, EDGE)
        return read - began, done - read

    first, second = _alternate(runs, ours, monai)
    return [
        _row(f"preprocess {name}", [r[1] for r in first], [r[1] for r in second], target),
        _row(f"read and preprocess {name}", [r[0] + r[1] for r in first], [r[0] + r[1] for r in second]),
    ]


def _monai_windows(image: Any) -> Any:
    import torch
    from monai.transforms import ScaleIntensityRange

    scaled = [
        ScaleIntensityRange(w.level - w.width / 2, w.level + w.width / 2, 0.0, 1.0, clip=True)(image)
        for w in _windows()
    ]
    return torch.cat(scaled, dim=0)


if __name__ == "__main__":
    sys.exit(main())
