"""Loader: crops and whole heads a second from a store at 1 mm on one core, and the data wait of the demo's pretraining.

Run as ``python -m benchmarks.loader``. Prints a table, writes ``benchmarks/loader.json``, ends with 1 when a target is
missed. Reading is timed as processor time of this process with the files in the page cache: no disk is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.rows import ONE_THREAD, Row, alternate, finish, on_one_thread, seconds, value, within

__all__ = ["main"]

RESULT = Path(__file__).with_suffix(".json")
EDGE = 96
CROPS_A_SECOND, HEADS_A_SECOND = 60.0, 30.0
MOST_WAIT = 0.02
CAUSE = "4/5 of the time is blosc2's decompression and copying, 1/16 the checksums, 1/16 opening the file (profiled)"
READS = 12
"""Crops or heads per run."""
CLINICAL, LAPTOP = 6, 24
"""Scans per dataset; the second is the demo's, in small."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="runs of each reading, at least 5 for figures to report")
    parser.add_argument("--steps", type=int, default=20, help="steps of the pretraining whose data wait is taken")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args(argv)
    on_one_thread("benchmarks.loader", argv)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        roots = {f"headctssl_{kind}": f"{folder}/{kind}" for kind in ("raw", "preprocessed", "results")}
        os.environ |= roots
        for root in roots.values():
            Path(root).mkdir()
        rows = [*_reading(arguments.runs), _waiting(arguments.steps)]
    return finish("loading", rows, arguments.output, ("blosc2", "numpy", "torch"), began)


def _headct(*words: str, threads: bool = False) -> None:
    """Run a command of headctssl; on all cores where `threads`."""
    environment = {name: text for name, text in os.environ.items() if not (threads and name in ONE_THREAD)}
    subprocess.run([sys.executable, "-m", "headctssl", *words, "--quiet"], check=True, env=environment)


def _reading(runs: int) -> list[Row]:
    """Crops, whole heads and bytes a second of one core."""
    from headctssl.contract import StorageRule
    from headctssl.loading.sampler import SampleRef
    from headctssl.loading.volume_dataset import Crop, VolumeDataset
    from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed

    _headct("make_phantom", "-d", "2", "-n", str(CLINICAL), "--seed", "0", "--profile", "clinical")
    index = ensure_preprocessed(2, StorageRule(spacing_mm=(1.0, 1.0, 1.0)), quiet=True)
    counter = itertools.count()

    def reader(dataset: VolumeDataset) -> Callable[[], list[Crop]]:
        def read() -> list[Crop]:
            refs = [SampleRef(i % len(index), i, 0) for i in itertools.islice(counter, READS)]
            crops = [dataset[ref] for ref in refs]
            assert all(isinstance(crop, Crop) for crop in crops), "every case can be read"
            return [crop for crop in crops if isinstance(crop, Crop)]

        return read

    crops, heads = (reader(VolumeDataset([index], shape, seed=0)) for shape in ((EDGE,) * 3, None))
    voxels = sum(crop.volume.size for crop in heads()) // READS
    source = np.ones(voxels, np.int16)
    timed = [seconds(work, time.process_time) for work in (crops, heads, lambda: [source.copy() for _ in range(READS)])]
    a, b, floor = alternate(runs, *timed)
    mean = f"{voxels / 1e6:.1f} M voxels"
    return [
        value(f"crops of {EDGE}^3", [READS / s for s in a], "crops/s", CROPS_A_SECOND),
        value(f"whole heads of {mean}", [READS / s for s in b], "heads/s", HEADS_A_SECOND, cause=CAUSE),
        within("a whole head", [s / READS for s in b], [s / READS for s in floor], "memcpy"),
        value("whole heads", [2e-6 * voxels * READS / s for s in b], "MB/s"),
        value("memcpy", [2e-6 * voxels * READS / s for s in floor], "MB/s"),
    ]


def _waiting(steps: int) -> Row:
    """The share of a pretraining's time in which it waited for batches, from its start to its last step."""
    _headct("make_phantom", "-d", "1", "-n", str(LAPTOP), "--seed", "0", "--profile", "laptop")
    _headct("plan_and_preprocess", "-d", "1")
    asked = [f"training.num_steps={steps}", "training.log_every=1", "training.seed=0"]
    _headct("pretrain", "-d", "1", "-m", "dino", *(w for text in asked for w in ("--set", text)), threads=True)
    (metrics,) = Path(os.environ["headctssl_results"]).rglob("metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    ends = [0.0, *(line["seconds"] for line in lines)]
    waited = sum(line["data_wait"] * (b - a) for line, a, b in zip(lines, ends, ends[1:], strict=False))
    what = f"data wait of the demo's pretraining, {steps} steps with the first batch"
    return value(what, [waited / ends[-1]], "of the time", MOST_WAIT, "at most")


if __name__ == "__main__":
    sys.exit(main())
