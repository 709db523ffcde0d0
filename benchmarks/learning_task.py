"""Learning task: a phantom with test cases, runs on it, and what readouts of frozen features score on those cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headctssl.networks.encoder import Encoder
    from headctssl.planning.run_settings import RunSettings
    from headctssl.preprocessing.index import CaseIndex

BASELINES = ("histogram", "random")
PROFILE = "laptop"
SETTINGS = (
    "training.precision=bf16",  # not what every machine is good at: a row is of the settings, on any machine
    "training.num_workers=0",
    "monitor.every=20",
    "monitor.probe_cases=120",
    "monitor.probe_every=50",
)
"""Of every run, beside its length and batch."""


READOUT = 2
"""Raised when the readouts change: all rows are read again then, from the runs that are there."""


def overrides(scans: int, batch: int) -> tuple[str, ...]:
    """Settings of a run, as ``--set`` takes them.

    Args:
        scans: how many are drawn in all.
        batch: scans per step.
    """
    return (f"training.batch_size={batch}", f"training.num_steps={scans // batch}", *SETTINGS)


@dataclass(frozen=True)
class Bench:
    """The stored cases of a phantom and who of them tests."""

    index: CaseIndex
    names: list[str]  # labels with at least five cases of each kind on both sides
    labels: NDArray[np.float64]  # (n, L)
    trains: NDArray[np.bool_]  # (n,)
    subjects: NDArray[np.int64]  # (n,) whose scan it is

    @cached_property
    def truth(self) -> NDArray[np.float64]:
        """Labels of the test cases (m, L)."""
        return self.labels[~self.trains]

    @cached_property
    def patients(self) -> NDArray[np.int64]:
        """Subjects of the test cases (m,)."""
        return self.subjects[~self.trains]

    def judge(self, scores: NDArray[np.float64]) -> dict[str, Any]:
        """Mean AUROC with a 95 % interval over subjects, and the AUROC of each label.

        Args:
            scores: (m, L) of the test cases.
        """
        from benchmarks.learning_scores import short
        from headctssl.metrics.classification import auroc, mean_auroc

        mean, interval = mean_auroc(self.truth, scores, self.patients)
        each = {name: short(auroc(self.truth[:, i], scores[:, i])) for i, name in enumerate(self.names)}
        return {"auroc": short(mean), "ci": [short(v) for v in interval or ()], "labels": each}


@dataclass(frozen=True)
class Task:
    """A phantom in the data roots; the last subjects are its test set."""

    dataset: int
    name: str
    cases: int
    test_cases: int
    seed: int

    def digest(self, changes: Sequence[str]) -> str:
        """SHA-256 over what rows share, first 16 hex digits: phantom, split and settings.

        Args:
            changes: the settings, as ``--set`` takes them.
        """
        from headctssl.ingest.phantom.profiles import find_profile

        told = [READOUT, self.cases, self.test_cases, self.seed, repr(find_profile(PROFILE)), tuple(changes)]
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where locks lie and what says that the data are whole."""
        from headctssl.paths import data_root

        folder = data_root("results") / self.name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def ensure_data(self) -> None:
        """The phantom, planned and preprocessed; what was stopped half-way is made anew.

        Raises:
            UsageError: the number belongs to another dataset, which is left as it is.
        """
        import headctssl
        from headctssl.locks import lock_file
        from headctssl.paths import find_dataset

        with lock_file(self.folder / "data.lock", wait=True):
            made = self.folder / "phantom"
            if not made.exists():
                ours = find_dataset(self.dataset, ("raw",)) == f"Dataset{self.dataset:03d}_{self.name}"
                folder = headctssl.make_phantom(
                    self.dataset,
                    n=self.cases,
                    seed=self.seed,
                    profile=PROFILE,
                    name=self.name,
                    quiet=True,
                    overwrite=ours,
                )
                self._mark_test_cases(folder)
                made.touch()
            done = self.folder / "preprocessed"
            if not done.exists():
                headctssl.plan_and_preprocess([self.dataset], quiet=True)
                done.touch()

    def _mark_test_cases(self, folder: Path) -> None:
        """Say in cases.csv which subjects are the test set."""
        from headctssl.dataset.manifest import open_raw_dataset, write_raw_dataset

        raw = open_raw_dataset(folder, self.dataset)
        subjects = raw.cases["subject_id"]
        tested = set(subjects.iloc[-min(self.test_cases, len(subjects) // 2) :])
        cases = raw.cases.assign(split=["test" if subject in tested else "" for subject in subjects])
        write_raw_dataset(folder, raw.info, cases)

    def bench(self) -> Bench:
        """The cases as they are stored; the data have to be there."""
        import numpy as np

        from headctssl.dataset.manifest import load_raw_dataset
        from headctssl.dataset.splits import load_splits
        from headctssl.metrics.statistics import subject_codes
        from headctssl.paths import preprocessed_dataset
        from headctssl.planning.plans import load_plans
        from headctssl.preprocessing.index import CaseIndex

        raw = load_raw_dataset(self.dataset)
        folder = preprocessed_dataset(self.dataset)
        index = CaseIndex.open(folder / load_plans(self.dataset).storage.storage_id)
        names = [spec.name for spec in raw.info.labels if spec.type == "binary"]
        labels = raw.labels().loc[index.case_ids, names].to_numpy(np.float64)
        test = set(load_splits(folder).test)
        trains = np.array([case_id not in test for case_id in index.case_ids])
        positive = labels > 0.5
        usable = [
            column
            for column in range(len(names))
            if all(5 <= positive[side, column].sum() <= side.sum() - 5 for side in (trains, ~trains))
        ]
        subject = dict(zip(raw.case_ids, raw.cases["subject_id"].tolist(), strict=True))
        subjects = subject_codes([subject[case_id] for case_id in index.case_ids], index.case_ids)
        return Bench(index, [names[column] for column in usable], labels[:, usable], trains, subjects)

    def plan(self, method: str, config: str, changes: Sequence[str]) -> RunSettings:
        """The settings of a run.

        Args:
            method: objective.
            config: encoder.
            changes: as ``--set`` takes them.
        """
        from headctssl.training.estimate import plan_run

        return plan_run(self.dataset, method, config=config, device="cpu", overrides=tuple(changes))

    def train(self, method: str, config: str, tag: str, changes: Sequence[str]) -> Path:
        """Pretrain, or go on where this run was stopped; the folder of the run.

        Args:
            method: objective.
            config: encoder.
            tag: of the run's name.
            changes: as ``--set`` takes them.
        """
        import headctssl
        from headctssl.paths import results_dataset
        from headctssl.training.pretrain_call import name_of_run

        name = name_of_run(method, config, "plans", (self.dataset,), tag)
        return headctssl.pretrain(
            self.dataset,
            method,
            config=config,
            tag=tag,
            resume=(results_dataset(self.dataset) / "pretrain" / name).is_dir(),
            device="cpu",
            quiet=True,
            overrides=tuple(changes),
        )


def measure(
    task: Task, method: str, config: str, tag: str, changes: Sequence[str]
) -> tuple[Bench, dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Train, or go on, where it is a run, and judge the readouts on the test cases.

    Args:
        task: its data have to be there.
        method: objective, 'random' for the encoder that a run begins with, or 'histogram'.
        config: encoder; empty for the histogram.
        tag: of the run's name.
        changes: settings of the run, as ``--set`` takes them.

    Returns:
        the cases, the scores (m, L) of each readout, and the row.
    """
    bench = task.bench()
    row: dict[str, Any] = {"test_cases": len(bench.truth), "train_cases": int(bench.trains.sum())}
    if method == "histogram":
        scores = _histogram_scores(bench)
    elif method == "random":
        settings = task.plan("mae", config, changes)
        scores = _encoder_scores(bench, _random_encoder(settings), settings)
    else:
        from headctssl.training.checkpoint import load_encoder

        settings = task.plan(method, config, changes)
        run = task.train(method, config, tag, changes)
        row |= _describe_run(run, settings)
        scores = _encoder_scores(bench, load_encoder(run), settings)
    return bench, scores, row | {readout: bench.judge(values) for readout, values in scores.items()}


def _random_encoder(settings: RunSettings) -> Encoder:
    """The encoder that a run of these settings begins with."""
    import torch

    from headctssl.networks import build_from_settings
    from headctssl.seeding import derive_seed

    torch.manual_seed(derive_seed(settings.training.seed, "weights"))
    return build_from_settings(settings.encoder).eval()


def _histogram_scores(bench: Bench) -> dict[str, NDArray[np.float64]]:
    """Scores (m, L) of the test cases by Hounsfield units alone."""
    from headctssl.metrics.histogram import HistogramBaseline, histogram_features

    features = histogram_features(bench.index, bench.index.case_ids)
    fitted = HistogramBaseline.fit(features[bench.trains], bench.labels[bench.trains])
    return {"linear": fitted.scores(features[~bench.trains])}


def _encoder_scores(bench: Bench, encoder: Encoder, settings: RunSettings) -> dict[str, NDArray[np.float64]]:
    """Scores (m, L) of the test cases by readouts that learnt from all other cases."""
    import numpy as np
    import torch

    from headctssl.metrics.probe import attentive_scores, linear_scores
    from headctssl.training.distributed import Process
    from headctssl.training.probe import Probe
    from headctssl.training.probe_cases import ProbeCases

    labels, trains = bench.labels, bench.trains
    cases = ProbeCases(tuple(bench.names), (bench.index,), labels.astype(np.float32), trains, bench.subjects)
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


def _describe_run(run: Path, settings: RunSettings) -> dict[str, Any]:
    """What a row tells of a finished run: seconds, share of the monitors, guard, loss, probes over scans."""
    from benchmarks.learning_scores import short
    from headctssl.training.collapse import CollapseGuard
    from headctssl.training.run_log import read_metrics
    from headctssl.training.stored_run import settings_digest

    lines = read_metrics(run / "metrics.jsonl")
    curve = [
        [
            int(line["step"] or 0) * settings.training.batch_size,
            *(short(line.get(f"probe_{name}_auroc")) for name in ("linear", "attentive", "knn")),
        ]
        for line in lines
        if "probe_linear_auroc" in line
    ]
    watched = sum(float(line.get("monitor_seconds") or 0) for line in lines)
    seconds = float(lines[-1]["seconds"] or 0)
    told = CollapseGuard().take_up(lines)
    return {
        "settings": settings_digest(settings),
        "lr": short(settings.training.lr),
        "seconds": round(seconds, 1),
        "monitor_share": round(watched / seconds, 4),
        "collapse": "; ".join(finding.text for finding in told),
        "loss": [short(lines[1]["loss"]), short(lines[-1]["loss"])],
        "curve": curve,
    }
