"""Learning: what each method learns from the same number of scans, beside a random encoder and the HU histogram.

Run as ``python -m benchmarks.learning``, again and again, also on several machines: every finished run is a row of
``benchmarks/learning.json`` and is not repeated; what was stopped goes on. The phantom and the runs (tagged ``seedS``)
lie in the data roots. Scores of the test cases, which nobody was scanned for, are kept beside the rows, so that
differences can be taken on any machine. ``python -m benchmarks.learning_page`` renders documentation/learning.md, and
this program does so after every row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.learning_scores import Scores, short
from benchmarks.rows import ONE_THREAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headctssl.networks.encoder import Encoder
    from headctssl.planning.run_settings import RunSettings

RESULT = Path(__file__).with_suffix(".json")
DATASET, NAME, CASES, PHANTOM_SEED, PROFILE = 7, "Learning", 700, 20261, "laptop"
"""The phantom: its seed is none that the profile was calibrated with, and no setting is chosen on it."""
TEST_CASES = 300
"""The last ones, by subject: more than the fifth that is planned elsewhere, for narrower intervals."""
SCANS, BATCH = 1600, 8
"""Of every run: 33 runs of 200 steps are about 3 hours of one core, measured step by step before the first of them."""
ENCODERS = ("vit_tiny", "resenc_s")
THRICE = ("mae", "dino", "lejepa")
"""Methods with three seeds; the others have one."""
RANDOM_SEEDS = tuple(range(5))
BASELINES = ("histogram", "random")
SETTINGS = (
    f"training.batch_size={BATCH}",
    f"training.num_steps={SCANS // BATCH}",
    "training.precision=bf16",  # not what this machine is good at: a row is of the settings, on any machine
    "training.num_workers=0",
    "monitor.every=20",
    "monitor.probe_cases=120",
    "monitor.probe_every=50",
)


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=6.0, help="no job is begun after this")
    parser.add_argument("--jobs", type=int, help="end after so many jobs")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes side by side")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "CONFIG", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        return _one(Job(arguments.one[0], arguments.one[1], int(arguments.one[2])))
    begun, started = time.monotonic(), 0
    running: list[subprocess.Popen[bytes]] = []
    waiting = list(jobs())
    while running or waiting:
        running = [process for process in running if process.poll() is None]
        if len(running) >= arguments.workers:
            time.sleep(0.5)
            continue
        late = time.monotonic() - begun > 3600 * arguments.hours or started == arguments.jobs
        if late or not waiting:
            waiting = []
            time.sleep(0.5)
            continue
        job = waiting.pop(0)
        if find(read_rows(), job) is None and not _claimed(job):
            started += 1
            command = [sys.executable, "-m", "benchmarks.learning", "--one", job.method, job.config, str(job.seed)]
            running.append(subprocess.Popen(command, env={**os.environ, **ONE_THREAD}))
            time.sleep(2)  # until it has claimed the job
    return 0


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
    """SHA-256 over what all rows share, first 16 hex digits: phantom, length, settings."""
    from headctssl.ingest.phantom.profiles import find_profile

    told = [CASES, TEST_CASES, PHANTOM_SEED, repr(find_profile(PROFILE)), SETTINGS]
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def _one(job: Job) -> int:
    """Do a job unless another process does, and add its row."""
    from headctssl.locks import lock_file
    from headctssl.presets import pair_refusal

    try:
        held = lock_file(_folder() / f"{job.name}.lock")
    except BlockingIOError:
        return 0
    with held:
        began = time.perf_counter()
        with lock_file(_folder() / "data.lock", wait=True):
            ensure_data()
        if job.method in BASELINES:
            row = _baseline(job)
        elif refused := pair_refusal(job.method, job.config):
            row = {"refused": refused}
        else:
            row = _run(job)
        row |= {"method": job.method, "config": job.config, "seed": job.seed, "task": task_digest()}
        _add({**row, "seconds": row.get("seconds", round(time.perf_counter() - began, 1))})
    return 0


def _folder() -> Path:
    from headctssl.paths import data_root

    folder = data_root("results") / "learning"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _claimed(job: Job) -> bool:
    from headctssl.locks import lock_file

    try:
        lock_file(_folder() / f"{job.name}.lock").close()
    except BlockingIOError:
        return True
    return False


def ensure_data() -> None:
    """The phantom, planned and preprocessed; what was stopped half-way is made anew.

    Raises:
        UsageError: the number belongs to another dataset, which is left as it is.
    """
    import headctssl
    from headctssl.paths import find_dataset

    made = _folder() / "phantom"
    if not made.exists():
        ours = find_dataset(DATASET, ("raw",)) == f"Dataset{DATASET:03d}_{NAME}"
        folder = headctssl.make_phantom(
            DATASET, n=CASES, seed=PHANTOM_SEED, profile=PROFILE, name=NAME, quiet=True, overwrite=ours
        )
        _mark_test_cases(folder)
        made.touch()
    done = _folder() / "preprocessed"
    if not done.exists():
        headctssl.plan_and_preprocess([DATASET], quiet=True)
        done.touch()


def _mark_test_cases(folder: Path) -> None:
    """Say in cases.csv which subjects are the test set."""
    from headctssl.dataset.manifest import open_raw_dataset, write_raw_dataset

    raw = open_raw_dataset(folder, DATASET)
    subjects = raw.cases["subject_id"]
    tested = set(subjects.iloc[-min(TEST_CASES, len(subjects) // 2) :])
    cases = raw.cases.assign(split=["test" if subject in tested else "" for subject in subjects])
    write_raw_dataset(folder, raw.info, cases)


def _baseline(job: Job) -> dict[str, Any]:
    if job.method == "histogram":
        return _judge(job, {"linear": _histogram_scores()})
    settings = _settings("mae", job.config, job.seed)
    import torch

    from headctssl.networks import build_from_settings
    from headctssl.seeding import derive_seed

    torch.manual_seed(derive_seed(job.seed, "weights"))  # as a run of this seed begins
    return _judge(job, _encoder_scores(build_from_settings(settings.encoder).eval(), settings))


def _run(job: Job) -> dict[str, Any]:
    """Train, or go on, and probe the last encoder on the test cases."""
    import headctssl
    from headctssl.training.checkpoint import load_encoder
    from headctssl.training.run_log import read_metrics
    from headctssl.training.stored_run import settings_digest

    settings = _settings(job.method, job.config, job.seed)
    folder = headctssl.pretrain(
        DATASET,
        job.method,
        config=job.config,
        tag=f"seed{job.seed}",
        resume=_begun(job),
        device="cpu",
        quiet=True,
        overrides=_overrides(job.seed),
    )
    lines = read_metrics(folder / "metrics.jsonl")
    curve = [
        [
            int(line["step"] or 0) * BATCH,
            *(short(line.get(f"probe_{name}_auroc")) for name in ("linear", "attentive", "knn")),
        ]
        for line in lines
        if "probe_linear_auroc" in line
    ]
    watched = sum(float(line.get("monitor_seconds") or 0) for line in lines)
    seconds = float(lines[-1]["seconds"] or 0)
    log = (folder / "train.log").read_text(encoding="utf-8")
    return {
        "settings": settings_digest(settings),
        "seconds": round(seconds, 1),
        "monitor_share": round(watched / seconds, 4),
        "collapse": next((text[20:] for text in log.splitlines() if "collapse: " in text), ""),
        "loss": [short(lines[1]["loss"]), short(lines[-1]["loss"])],
        "curve": curve,
        **_judge(job, _encoder_scores(load_encoder(folder), settings)),
    }


def _begun(job: Job) -> bool:
    from headctssl.paths import results_dataset
    from headctssl.training.pretrain_call import name_of_run

    name = name_of_run(job.method, job.config, "plans", (DATASET,), f"seed{job.seed}")
    return (results_dataset(DATASET) / "pretrain" / name).is_dir()


def _overrides(seed: int) -> tuple[str, ...]:
    return (*SETTINGS, f"training.seed={seed}")


def _settings(method: str, config: str, seed: int) -> RunSettings:
    from headctssl.training.estimate import plan_run

    return plan_run(DATASET, method, config=config, device="cpu", overrides=_overrides(seed))


def _test_bench() -> tuple[Any, list[str], NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """The stored cases of the phantom, label names, labels (n, L), which cases are for training, subjects."""
    import numpy as np

    from headctssl.dataset.manifest import load_raw_dataset
    from headctssl.dataset.splits import load_splits
    from headctssl.metrics.statistics import subject_codes
    from headctssl.paths import preprocessed_dataset
    from headctssl.planning.plans import load_plans
    from headctssl.preprocessing.index import CaseIndex

    raw = load_raw_dataset(DATASET)
    folder = preprocessed_dataset(DATASET)
    index = CaseIndex.open(folder / load_plans(DATASET).storage.storage_id)
    names = [spec.name for spec in raw.info.labels if spec.type == "binary"]
    labels = raw.labels().loc[index.case_ids, names].to_numpy(np.float64)
    test = set(load_splits(folder).test)
    trains = np.array([case_id not in test for case_id in index.case_ids])
    usable = [
        column
        for column in range(len(names))
        if all(min((labels[s, column] > 0.5).sum(), (labels[s, column] <= 0.5).sum()) >= 5 for s in (trains, ~trains))
    ]
    subject = dict(zip(raw.case_ids, raw.cases["subject_id"].tolist(), strict=True))
    subjects = subject_codes([subject[case_id] for case_id in index.case_ids], index.case_ids)
    return index, [names[column] for column in usable], labels[:, usable], trains, subjects


def _histogram_scores() -> NDArray[np.float64]:
    from headctssl.metrics.histogram import HistogramBaseline, histogram_features

    index, _, labels, trains, _ = _test_bench()
    features = histogram_features(index, index.case_ids)
    return HistogramBaseline.fit(features[trains], labels[trains]).scores(features[~trains])


def _encoder_scores(encoder: Encoder, settings: RunSettings) -> dict[str, NDArray[np.float64]]:
    """Scores of the test cases by readouts that learnt from all other cases."""
    import numpy as np
    import torch

    from headctssl.metrics.probe import attentive_scores, linear_scores
    from headctssl.training.distributed import Process
    from headctssl.training.probe import Probe
    from headctssl.training.probe_cases import ProbeCases

    index, names, labels, trains, subjects = _test_bench()
    cases = ProbeCases(tuple(names), (index,), labels.astype(np.float32), trains, subjects)
    with torch.no_grad():
        features, tokens = Probe(cases, settings.input, attentive=True, process=Process()).encode(
            encoder, torch.device("cpu")
        )
    assert tokens is not None, "asked for"
    rows, side = features.numpy().astype(np.float64), torch.from_numpy(trains)
    return {
        "linear": linear_scores(rows[trains], labels[trains], rows[~trains]),
        "attentive": attentive_scores(tokens[side], labels[trains], tokens[~side]),
    }


def _judge(job: Job, scores: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Aggregates of scores of the test cases; the scores themselves are kept beside the rows."""
    from headctssl.metrics.classification import auroc, mean_auroc

    _, names, labels, trains, subjects = _test_bench()
    truth, patients = labels[~trains], subjects[~trains]
    _kept_scores().save(job.name, truth, patients, scores)
    found: dict[str, Any] = {"test_cases": int((~trains).sum()), "train_cases": int(trains.sum())}
    for readout, values in scores.items():
        mean, interval = mean_auroc(truth, values, patients)
        each = {name: short(auroc(truth[:, i], values[:, i])) for i, name in enumerate(names)}
        found[readout] = {"auroc": short(mean), "ci": [short(v) for v in interval or ()], "labels": each}
    return found


def _kept_scores() -> Scores:
    return Scores(RESULT.parent / "scores", task_digest())


def _add(row: dict[str, Any]) -> None:
    """Put a row into the file, with the differences it changes, and render the page."""
    from benchmarks.learning_page import write_page
    from benchmarks.rows import machine
    from headctssl.locks import lock_file

    with lock_file(_folder() / "rows.lock", wait=True):
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
            "phantom": {"profile": PROFILE, "cases": CASES, "seed": PHANTOM_SEED},
            "scans": SCANS,
            "rows": rows,
            "differences": kept,
        }
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        write_page()


if __name__ == "__main__":
    sys.exit(main())
