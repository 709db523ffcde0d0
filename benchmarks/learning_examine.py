"""Learning, examined: is it length, batch or rate that a method lacks which learns nothing in `benchmarks.learning`?

``python -m benchmarks.learning_examine`` asks that on the calibration seed, never on the table's own phantom, and goes
on where the last call ended, as `benchmarks.learning` does. Rows are in ``benchmarks/learning_examine.json``, scores of
its synthetic test cases in ``benchmarks/scores/examine``; the page is documentation/learning.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning import BATCH, ENCODERS, SCANS
from benchmarks.learning_jobs import arguments, claimed, work_through
from benchmarks.learning_scores import Scores
from benchmarks.learning_task import BASELINES, Task, measure, overrides

RESULT = Path(__file__).with_suffix(".json")
TASK = Task(dataset=8, name="Examining", cases=700, test_cases=300, seed=7000)
"""As large as the table's, of the seed that the profile was calibrated with."""
SILENT = {
    "vit_tiny": ("supervised", "jepa", "voco", "simmim", "models_genesis", "volume_fusion"),
    "resenc_s": ("supervised", "voco"),
}
"""Methods, besides mae on the transformer, none of whose readouts was told apart from random encoders in the table."""
LONG = {"vit_tiny": 6400, "resenc_s": 3200}
"""Scans of their longer runs."""


@dataclass(frozen=True)
class Trial:
    """One run, or a baseline."""

    method: str
    config: str = ""
    scans: int = SCANS
    batch: int = BATCH
    lr: str = ""  # as ``--set`` takes it; empty: what is planned for this batch
    clip: str = ""  # largest gradient norm, likewise
    seed: int = 0

    @property
    def variant(self) -> str:
        """What tells it from other runs of this method and encoder; empty for a baseline."""
        clip = f"-clip{self.clip}" if self.clip else ""
        return "" if self.method in BASELINES else f"{self.scans}x{self.batch}-lr{self.lr or 'planned'}{clip}"

    @property
    def name(self) -> str:
        """As the file of its scores."""
        parts = (self.method, self.config, self.variant, f"seed{self.seed}")
        return "__".join(part for part in parts if part)

    @property
    def changes(self) -> tuple[str, ...]:
        """Its settings, as ``--set`` takes them."""
        lr = (f"training.lr={self.lr}",) if self.lr else ()
        clip = (f"training.clip_norm={self.clip}",) if self.clip else ()
        return (*overrides(self.scans, self.batch), *lr, *clip, f"training.seed={self.seed}")


def trials() -> list[Trial]:
    """All rows, in the order in which they say most."""
    baselines = [Trial("histogram"), *(Trial("random", config, seed=seed) for config in ENCODERS for seed in range(3))]
    # One thing after the other with the cheapest method, then longer runs of the others, AdamW at a higher rate.
    mae = [
        Trial("mae", "vit_tiny"),
        Trial("mae", "vit_tiny", lr="1e-3"),
        Trial("mae", "vit_tiny", 12800, 32, "1e-3"),
        Trial("mae", "vit_tiny", 12800, 8, "1e-3"),
    ]
    others = [
        Trial(method, config, LONG[config], BATCH, "1e-3") for config, methods in SILENT.items() for method in methods
    ]
    # Planned with SGD, at 5e-3 with gradients clipped at .1, and at 1e-2 and 12: simclr longer, swin_ssl slower, and
    # simclr as swin_ssl then.
    by_sgd = [
        Trial("simclr", "resenc_s", LONG["resenc_s"]),
        Trial("swin_ssl", "resenc_s", lr="1e-3"),
        Trial("simclr", "resenc_s", LONG["resenc_s"], lr="1e-3", clip="12"),
    ]
    # Both collapse at 1e-3.
    slower = [Trial(method, "vit_tiny", LONG["vit_tiny"], lr=lr) for lr in ("", "3e-4") for method in ("jepa", "voco")]
    # As long as mae, which learns something then.
    longer = [Trial(method, "vit_tiny", 12800, lr="1e-3") for method in ("supervised", "simmim", "models_genesis")]
    longer += [Trial(method, "vit_tiny", 12800, lr="3e-4") for method in ("jepa", "voco")]
    return [*baselines, *mae, *others, *by_sgd, *slower, *longer]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing, as far as the time goes."""
    parser = arguments("python -m benchmarks.learning_examine", __doc__.splitlines()[0], "NAME")
    options = parser.parse_args(argv)
    by_name = {trial.name: trial for trial in trials()}
    if options.one:
        return _one(by_name[options.one[0]])
    return work_through(
        "benchmarks.learning_examine",
        options,
        [(name,) for name in by_name],
        lambda words: _is_open(by_name[words[0]]),
    )


def read_rows(source: Path | None = None) -> list[dict[str, Any]]:
    """Rows that were measured so far, of trials that are still asked, in their order.

    Args:
        source: the file, else `RESULT`.
    """
    source = source or RESULT
    rows = json.loads(source.read_text(encoding="utf-8"))["rows"] if source.is_file() else []
    by_name = {row["name"]: row for row in rows}
    found = ((trial, by_name.get(trial.name)) for trial in trials())
    return [row for trial, row in found if row is not None and row["task"] == TASK.digest(trial.changes)]


def _is_open(trial: Trial) -> bool:
    return all(row["name"] != trial.name for row in read_rows()) and not claimed(_lock(trial))


def _lock(trial: Trial) -> Path:
    return TASK.folder / f"{trial.name}.lock"


def _one(trial: Trial) -> int:
    """Do a trial unless another process does, and add its row."""
    from headctssl.locks import lock_file

    try:
        held = lock_file(_lock(trial))
    except BlockingIOError:
        return 0
    with held:
        began = time.perf_counter()
        TASK.ensure_data()
        bench, scores, row = measure(
            TASK, trial.method, trial.config, f"{trial.variant}-seed{trial.seed}", trial.changes
        )
        _kept_scores().save(trial.name, bench.truth, bench.patients, scores)
        row |= {"name": trial.name, "method": trial.method, "config": trial.config, "task": TASK.digest(trial.changes)}
        row |= {"scans": trial.scans, "batch": trial.batch, "planned_lr": not trial.lr, "clip": trial.clip}
        _add({**row, "seconds": row.get("seconds", round(time.perf_counter() - began, 1))})
    return 0


def _kept_scores() -> Scores:
    return Scores(RESULT.parent / "scores" / "examine", TASK.digest(()))


def _add(row: dict[str, Any]) -> None:
    """Put a row into the file, with its differences to the baselines, and render the page."""
    from benchmarks.learning_page import write_page
    from benchmarks.rows import machine
    from headctssl.locks import lock_file

    with lock_file(TASK.folder / "rows.lock", wait=True):
        rows = {known["name"]: known for known in read_rows()}
        rows[row["name"]] = {**row, "machine": machine()["processor"]}
        for trial in trials():
            if trial.name in rows and trial.method not in BASELINES:
                rows[trial.name]["beside"] = _kept_scores().differences(trial.method, trial.config, trial.variant)
        content = {"format": 1, "rows": [rows[trial.name] for trial in trials() if trial.name in rows]}
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        write_page()


if __name__ == "__main__":
    sys.exit(main())
