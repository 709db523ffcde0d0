"""Store: bytes and read speed of a stored head beside a copy in memory, zarr and HeadCT-Foundation's cache, one thread.

Run as ``python -m benchmarks.store``; needs the extra ``bench``. Prints a table, writes ``benchmarks/store.json``, ends
with 1 when a target is missed. The head is a synthetic one of 512x512x256; with ``headctssl_test_data`` set, the real
one of its folder ``head_ct_ge_tilt``. ``--layouts`` also measures the layouts that planning chooses from.

Every file is in the page cache: what is measured is the work of a core, not the disk. The cache of HeadCT-Foundation
(arXiv 2502.02779 and its public code) is three windows of 96^3 voxels as float16; it is the floor of bytes for an
encoder of that input, and holds nothing else of the scan.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Row, alternate, faster, finish, on_one_thread, seconds, value, within

RESULT = Path(__file__).with_suffix(".json")
EDGE = 96
CROPS = 24
HEADS_TARGET, CROPS_TARGET = 30.0, 60.0
"""What the loader is asked for: whole heads and crops a second and core."""
CHECKS_TARGET = 1.15
"""Checksums may cost a crop this much."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="runs per side, at least 5 for figures to report")
    parser.add_argument("--layouts", action="store_true", help="also measure chunks, blocks and codecs")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args(argv)
    on_one_thread("benchmarks.store", argv)
    began = time.perf_counter()
    name, hu = _head()
    with tempfile.TemporaryDirectory() as folder:
        rows = _files(hu, Path(folder))
        rows += _reading(hu, Path(folder), arguments.runs)
        if arguments.layouts:
            rows += _layouts(hu, Path(folder), arguments.runs)
    return finish(f"store: {name}", rows, arguments.output, ("blosc2", "isal", "numpy", "zarr"), began)


def _head() -> tuple[str, Any]:
    """A head as preprocessing stores it at 1 mm, int16 (1, z, y, x), and what it is."""
    from headctssl.contract import StorageRule
    from headctssl.dataset.image_io import read
    from headctssl.ingest.phantom.acquisition import Acquisition
    from headctssl.ingest.phantom.make import make_case
    from headctssl.preprocessing.one_case import preprocess_volume

    data = os.environ.get("headctssl_test_data", "")
    if data and (Path(data) / "head_ct_ge_tilt").is_dir():
        name, volume = "real head", read(Path(data) / "head_ct_ge_tilt")
    else:
        scan = Acquisition(matrix=512, pixel_mm=0.46, thickness_mm=0.66, slices=256, bottom_mm=-80.0)
        name, volume = "synthetic head", make_case(7, acquisition=scan).volume
    hu = preprocess_volume(volume, StorageRule()).hu
    return f"{name} of {'x'.join(map(str, hu.shape[1:]))} voxels of 1 mm, {hu.nbytes / 1e6:.1f} MB as int16", hu


def _meta(hu: Any) -> Any:
    from headctssl.volume.store import CaseMeta

    eye = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
    box = tuple((0, n) for n in hu.shape[1:])
    return CaseMeta(
        spacing_mm=(1.0, 1.0, 1.0),
        affine=eye,
        original_affine=eye,
        original_shape=hu.shape[1:],
        original_spacing_mm=(1.0, 1.0, 1.0),
        crop_box=box,
        head_box=box,
        source_sha256="0" * 64,
        source_size=0,
        source_mtime_ns=0,
        storage_digest="",
    )


def _files(hu: Any, folder: Path) -> list[Row]:
    """Write the same head every way; rows of their bytes."""
    import zarr

    from headctssl.volume.store import write_case

    write_case(folder / "ours.b2nd", hu, _meta(hu))
    array = zarr.create_array(folder / "peer.zarr", shape=hu.shape, chunks=(1, 64, 64, 64), dtype="int16")
    array[...] = hu
    windows = np.zeros((3, EDGE, EDGE, EDGE), np.float16)
    step = [np.linspace(0, n - 1, EDGE).astype(int) for n in hu.shape[1:]]
    windows[:] = np.clip(hu[0][np.ix_(*step)] / 80.0, 0, 1)
    np.save(folder / "cache.npy", windows)

    def stored(path: Path) -> list[float]:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return [sum(p.stat().st_size for p in files) / 1e6]

    ours = stored(folder / "ours.b2nd")
    return [
        within("bytes a scan", ours, [hu.nbytes / 1e6], "int16 voxels", unit="MB"),
        within("bytes a scan", ours, stored(folder / "peer.zarr"), "zarr, its standard codec", unit="MB"),
        within("bytes a scan", ours, stored(folder / "cache.npy"), "HeadCT-Foundation's cache of 3 x 96^3", unit="MB"),
    ]


def _boxes(hu: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    boxes = []
    for _ in range(CROPS):
        starts = [int(rng.integers(0, max(1, n - EDGE + 1))) for n in hu.shape[1:]]
        boxes.append(tuple((a, min(a + EDGE, n)) for a, n in zip(starts, hu.shape[1:], strict=True)))
    return boxes


def _reading(hu: Any, folder: Path, runs: int) -> list[Row]:
    import zarr

    from headctssl.volume.store import StoredCase

    path, boxes, target = folder / "ours.b2nd", _boxes(hu), np.empty_like(hu)
    peer = zarr.open_array(folder / "peer.zarr", mode="r")
    opened = StoredCase(path)
    slices = [(slice(None), *(slice(*side) for side in box)) for box in boxes]

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        return seconds(work, time.process_time)

    whole, copied, other, cached = alternate(
        runs,
        timed(lambda: StoredCase(path).read_all()),
        timed(lambda: np.copyto(target, hu)),
        timed(lambda: peer[...]),
        timed(lambda: np.load(folder / "cache.npy")),
    )
    crops, bare, cut, of_peer = alternate(
        runs,
        timed(lambda: [StoredCase(path).read(box) for box in boxes]),
        timed(lambda: [opened.array[s] for s in slices]),
        timed(lambda: [np.ascontiguousarray(hu[s]) for s in slices]),
        timed(lambda: [peer[s] for s in slices]),
    )
    checked, unchecked = alternate(
        runs,
        timed(lambda: [opened.read(box) for box in boxes]),
        timed(lambda: [opened.array[s] for s in slices]),
    )
    opening = alternate(runs, timed(lambda: [StoredCase(path) for _ in range(CROPS)]))[0]
    each = [t / CROPS for t in crops]
    return [
        value("whole heads", [1 / t for t in whole], "heads/s and core", HEADS_TARGET),
        value("whole heads, voxels", [hu.nbytes / t / 1e6 for t in whole], "MB/s"),
        within("whole head", whole, copied, "a copy in memory"),
        faster("whole head", whole, other, "zarr, the same chunks"),
        within("whole head", whole, cached, "reading HeadCT-Foundation's cache"),
        value(f"crops of {EDGE}^3, opening included", [1 / t for t in each], "crops/s and core", CROPS_TARGET),
        within(f"crop of {EDGE}^3", each, [t / CROPS for t in cut], "a copy in memory"),
        faster(f"crop of {EDGE}^3", each, [t / CROPS for t in of_peer], "zarr, the same chunks"),
        within("checksums of the chunks of a crop", checked, unchecked, "the same crops unchecked", CHECKS_TARGET),
        within("opening with all checks, and a crop", crops, bare, "the crop of an open case, unchecked"),
        value("opening a case: header, index, metadata", [t / CROPS for t in opening], "s"),
    ]


def _layouts(hu: Any, folder: Path, runs: int) -> list[Row]:
    """Every layout worth a look: its bytes, its crops, its whole heads."""
    from headctssl.volume.layout import StoreLayout
    from headctssl.volume.store import StoredCase, write_case

    boxes, meta = _boxes(hu)[:12], _meta(hu)
    tried = [("zstd", 1, c, b) for c, b in ((32, 32), (64, 16), (64, 32), (64, 64), (96, 32), (512, 32))]
    tried += [("zstd", 3, 64, 32), ("lz4", 1, 64, 32), ("lz4", 1, 64, 64), ("lz4", 5, 64, 32)]
    paths = {}
    for codec, level, chunk, block in tried:
        layout = StoreLayout.model_validate({"codec": codec, "level": level, "chunk": chunk, "block": block})
        paths[f"{codec} {level}, chunks of {chunk}, blocks of {block}"] = path = folder / f"{len(paths)}.b2nd"
        write_case(path, hu, meta, layout=layout)
    readers = [
        seconds(lambda p=path, b=box: [StoredCase(p).read(one) for one in b], time.process_time)
        for path in paths.values()
        for box in (boxes, [StoredCase(path).whole])
    ]
    times = alternate(runs, *readers)
    rows = []
    for at, (name, path) in enumerate(paths.items()):
        rows.append(value(f"{name}: bytes", [path.stat().st_size / 1e6], "MB"))
        rows.append(value(f"{name}: crop", [t / len(boxes) * 1e3 for t in times[2 * at]], "ms"))
        rows.append(value(f"{name}: whole head", [hu.nbytes / t / 1e6 for t in times[2 * at + 1]], "MB/s"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
