"""Learning: what each method learns from the same number of scans, beside a random encoder and the HU histogram.

Run as ``python -m benchmarks.learning``, again and again, also on several machines: every finished run is a row of
``benchmarks/learning.json`` and is not repeated; what was stopped goes on. The phantom and the runs (tagged ``seedS``)
lie in the data roots. Scores of the test cases, which nobody was scanned for, are kept beside the rows, so that
differences can be taken on any machine. ``python -m benchmarks.learning_page`` renders documentation/learning.md, and
this program does so after every row.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning_jobs import arguments, claimed, work_through
from benchmarks.learning_scores import Scores
from benchmarks.learning_task import BASELINES, PROFILE, Task, measure, overrides

RESULT = Path(__file__).with_suffix(".json")
TASK = Task(dataset=7, name="Learning", cases=700, test_cases=300, seed=20261)
"""Its seed is none that the profile was calibrated with, and no setting is chosen on it. More test cases than the fifth
that is planned elsewhere, for narrower intervals."""
SCANS, BATCH = 1600, 8
"""Of every run: 33 runs of 200 steps are about 3 hours of one core, measured step by step before the first of them."""
ENCODERS = ("vit_tiny", "resenc_s")
THRICE = ("mae", "dino", "lejepa")
"""Methods with three seeds; the others have one."""
RANDOM_SEEDS = tuple(range(5))


@dataclass(frozen=True)
class Job:
    """One row: a run, or with the method 'random' or 'histogram' a baseline."""

    method: str
    config: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """As the file of its scores."""
        return "__".join(part for part in (self.method, self.config, f"seed{self.seed}") if part)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing, as far as the time goes."""
    options = arguments(
        "python -m benchmarks.learning", __doc__.splitlines()[0], "METHOD", "CONFIG", "SEED"
    ).parse_args(argv)
    if options.one:
        return _one(_job(options.one))
    words = [(job.method, job.config, str(job.seed)) for job in jobs()]
    return work_through(
        "benchmarks.learning",
        options,
        words,
        lambda one: find(read_rows(), _job(one)) is None and not claimed(_lock(_job(one))),
    )


def jobs() -> Iterator[Job]:
    """All rows in the order in which they say most: baselines, one seed of each method, further seeds."""
    from headctssl.methods import METHODS

    yield Job("histogram")
    yield from (Job("random", config, seed) for seed in RANDOM_SEEDS[:2] for config in ENCODERS)
    yield from (Job(method, config) for config in ENCODERS for method in THRICE)
    yield from (Job("random", config, seed) for seed in RANDOM_SEEDS[2:] for config in ENCODERS)
    yield from (Job(method, config) for method in METHODS if method not in THRICE for config in ENCODERS)
    yield from (Job(method, config, seed) for seed in (1, 2) for method in THRICE for config in ENCODERS)


def read_rows() -> list[dict[str, Any]]:
    """Rows that were measured so far."""
    return list(json.loads(RESULT.read_text(encoding="utf-8"))["rows"]) if RESULT.is_file() else []


def find(rows: Sequence[dict[str, Any]], job: Job) -> dict[str, Any] | None:
    """The row of a job; None when it is missing or of other settings."""
    for row in rows:
        if (row["method"], row["config"], row["seed"]) == (job.method, job.config, job.seed):
            return row if row["task"] == task_digest() else None
    return None


def task_digest() -> str:
    """Of what all rows share."""
    return TASK.digest(overrides(SCANS, BATCH))


def _one(job: Job) -> int:
    """Do a job unless another process does, and add its row."""
    from headctssl.locks import lock_file
    from headctssl.presets import pair_refusal

    try:
        held = lock_file(_lock(job))
    except BlockingIOError:
        return 0
    with held:
        began = time.perf_counter()
        TASK.ensure_data()
        refused = None if job.method in BASELINES else pair_refusal(job.method, job.config)
        changes = (*overrides(SCANS, BATCH), f"training.seed={job.seed}")
        if refused:
            row: dict[str, Any] = {"refused": refused}
        else:
            bench, scores, row = measure(TASK, job.method, job.config, f"seed{job.seed}", changes)
            _kept_scores().save(job.name, bench.truth, bench.patients, scores)
        row |= {"method": job.method, "config": job.config, "seed": job.seed, "task": task_digest()}
        _add({**row, "seconds": row.get("seconds", round(time.perf_counter() - began, 1))})
    return 0


def _job(words: Sequence[str]) -> Job:
    return Job(words[0], words[1], int(words[2]))


def _lock(job: Job) -> Path:
    return TASK.folder / f"{job.name}.lock"


def _kept_scores() -> Scores:
    return Scores(RESULT.parent / "scores", task_digest())


def _add(row: dict[str, Any]) -> None:
    """Put a row into the file, with the differences it changes, and render the page."""
    from benchmarks.learning_page import write_page
    from benchmarks.rows import machine
    from headctssl.locks import lock_file

    with lock_file(TASK.folder / "rows.lock", wait=True):
        told = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"rows": [], "differences": []}
        task = row["task"]
        key = (row["method"], row["config"], row["seed"])
        rows = [r for r in told["rows"] if r["task"] == task and (r["method"], r["config"], r["seed"]) != key]
        rows.append({**row, "machine": machine()["processor"]})
        pairs = {
            (r["method"], r["config"]) for r in rows if "auroc" in r.get("linear", {}) and r["method"] not in BASELINES
        }
        # A further random encoder changes every difference to them.
        changed = pairs if row["method"] in BASELINES else pairs & {key[:2]}
        kept = [d for d in told["differences"] if (d["method"], d["config"]) in pairs]
        for method, config in sorted(changed):
            kept = [d for d in kept if (d["method"], d["config"]) != (method, config)]
            kept += _kept_scores().differences(method, config)
        content = {
            "format": 1,
            "phantom": {"profile": PROFILE, "cases": TASK.cases, "seed": TASK.seed},
            "scans": SCANS,
            "rows": rows,
            "differences": kept,
        }
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        write_page()


if __name__ == "__main__":
    sys.exit(main())
