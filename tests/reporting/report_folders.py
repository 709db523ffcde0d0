"""Report folders: comparisons and evaluations made of drawn numbers, as large and as odd as a test wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from headctssl.contract import LabelSpec
from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset
from headctssl.evaluation.comparison import (
    Arm,
    CellOutcome,
    Comparison,
    Cost,
    Grid,
    LabelScore,
    Overlap,
    Ranked,
    TestSet,
)
from headctssl.evaluation.evaluation_file import AbstentionCurve, Distances, Evaluation, Subgroup
from headctssl.finetuning.series_file import Draws, LearningCurve, OverDraws
from headctssl.metrics.metrics_file import LabelMetrics, Metrics
from headctssl.metrics.outcome import Outcome, interval_warnings, measure, write_predictions
from headctssl.settings import write_json

LABELS = ("IPH", "IVH", "SDH", "fracture")


def arms(methods: tuple[str, ...], encoders: tuple[str, ...], adapts: tuple[str, ...]) -> list[Arm]:
    """Every pretrained way with the baselines."""
    made = [
        Arm(name=f"{m} {e} {a}", kind="pretrained", method=m, encoder=e, adapt=a)
        for e in encoders
        for a in adapts
        for m in methods
    ]
    for e in encoders:
        made.append(Arm(name=f"scratch {e}", kind="scratch", method="scratch", encoder=e, adapt="full"))
        made.append(Arm(name=f"random {e}", kind="random", method="random", encoder=e, adapt="linear"))
    made.append(Arm(name="histogram", kind="histogram", method="histogram", adapt="logistic regression"))
    return made


def make_comparison(
    folder: Path,
    *,
    methods: tuple[str, ...] = ("dino", "mae", "simclr"),
    encoders: tuple[str, ...] = ("vit_tiny", "resenc_s"),
    adapts: tuple[str, ...] = ("linear", "full"),
    budgets: tuple[int | None, ...] = (8, 32, None),
    labels: tuple[str, ...] = LABELS,
    seeds: int = 3,
    failing: int = 2,
    seed: int = 0,
) -> Comparison:
    """Write comparison.json of drawn numbers."""
    rng = np.random.default_rng(seed)
    ways = arms(methods, encoders, adapts)
    name = "Dataset007_Drawn"
    cells, ranking = [], []
    for budget in budgets:
        rows = []
        for way in ways:
            centre = min(0.95, 0.55 + 0.3 * rng.random() + (0.08 if budget is None else 0.0))
            scores = [LabelScore(label=n, auroc=centre, auroc_ci=(centre - 0.06, centre + 0.04)) for n in labels]
            cost = Cost(scans_seen=8000, pretraining_hours=0.25, finetuning_hours=0.01, parameters_trained=12345)
            held = way.kind == "pretrained"
            delta = float(rng.normal(0, 0.05))
            rows.append(
                {
                    "dataset_name": name, "label_budget": budget, "arm": way.name, "num_seeds": seeds,
                    "num_runs": seeds, "mean_auroc": centre, "mean_auroc_ci": (centre - 0.05, centre + 0.05),
                    "seed_spread": 0.01, "rank_ci": (1, len(ways)), "p_value": 0.01 if held else None,
                    "reference": f"scratch {way.encoder}" if held else None, "difference": delta if held else None,
                    "difference_ci": (delta - 0.04, delta + 0.04) if held else None, "cost": cost,
                    "p_holm": 0.03 if held else None, "labels": tuple(scores),
                    "overlap": "unchecked" if way.kind == "given" else "",
                }
            )  # fmt: skip
            for s in range(seeds):
                bad = len(cells) < failing
                cells.append(
                    CellOutcome(
                        dataset_name=name, arm=way.name, label_budget=budget, seed=s, draw=0,
                        status="failed" if bad else "done", error="the disk is full: /home/who/results" if bad else "",
                        mean_auroc=None if bad else centre, cost=cost,
                        overlap=Overlap(num_shared=0, sentence="no overlap"),
                    )
                )  # fmt: skip
        rows.sort(key=lambda row: -row["mean_auroc"])
        ranking += [Ranked(rank=place, **row) for place, row in enumerate(rows, start=1)]
    test = TestSet(
        dataset_id=7, dataset_name=name, num_cases=80, num_subjects=70, digest="0" * 16, labels=labels,
        positives=tuple(12 + 7 * k for k in range(len(labels))), negatives=(40,) * len(labels),
    )  # fmt: skip
    grid = Grid(dataset_ids=(7,), pretrain_ids=(7,), encoders=encoders, methods=methods, adapt=adapts,
                label_budgets=budgets, seeds=seeds, draws=1)  # fmt: skip
    made = Comparison(
        package_version="0", name="drawn", grid=grid, arms=tuple(ways), tests=(test,), cells=tuple(cells),
        ranking=tuple(ranking), num_resamples=1000, notes=("numbers are drawn",),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", made)
    return made


def make_evaluation(
    folder: Path, *, n: int = 60, labels: tuple[str, ...] = LABELS, dataset: str = "Dataset008_Nowhere", seed: int = 0
) -> Metrics:
    """Write metrics.json and predictions.csv of drawn predictions of a dataset that is not there."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, len(labels))) < 0.4).astype(np.float64)
    truth[:2] = [[0.0], [1.0]]
    truth[rng.random(truth.shape) < 0.05] = np.nan
    score = 1 / (1 + np.exp(-rng.normal(np.nan_to_num(truth) - 0.5, 1)))
    outcome = Outcome(
        tuple(LabelSpec(name=name) for name in labels),
        tuple(f"case_{k:04d}" for k in range(n)),
        tuple(f"patient_{k // 2:04d}" for k in range(n)),
        truth,
        score,
    )
    entries, mean, interval = measure(outcome, num_resamples=50)
    metrics = Metrics(
        dataset_name=dataset, evaluated_on="all", num_cases=n, num_subjects=-(-n // 2), weights_hash="ab" * 32,
        leakage="training: no overlap with its 40 scans", notes=tuple(interval_warnings(outcome)), mean_auroc=mean,
        mean_auroc_ci=interval, labels=entries,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", outcome)
    write_json(folder / "metrics.json", metrics)
    return metrics


def make_typed(root: Path, folder: Path, n: int = 40, seed: int = 0) -> Metrics:
    """Write a raw dataset with labels of all four types, and an evaluation of drawn predictions of it."""
    rng = np.random.default_rng(seed)
    grades = ("none", "mild", "severe")
    labels: dict[str, dict[str, object]] = {
        "bleed": {"type": "binary"},
        "kind": {"type": "multiclass", "classes": ["<b>epidural</b>", "subdural", "other"]},
        "grade": {"type": "ordinal", "classes": list(grades)},
        "volume_ml": {"type": "continuous"},
    }
    info = DatasetInfo.model_validate({"name": "Typed", "labels": labels})
    ids = tuple(f"case_{k:03d}" for k in range(n))
    truth = np.stack([rng.integers(0, 2, n), rng.integers(0, 3, n), rng.integers(0, 3, n), rng.gamma(2, 8, n)], 1)
    cells = {
        "case_id": ids,
        "image": [f"images/{i}.nii.gz" for i in ids],
        "bleed": [str(int(v)) for v in truth[:, 0]],
        "kind": [str(labels["kind"]["classes"][int(v)]) for v in truth[:, 1]],  # type: ignore[index]
        "grade": [grades[int(v)] for v in truth[:, 2]],
        "volume_ml": [f"{v:.3f}" for v in truth[:, 3]],
    }
    raw = root / "Dataset009_Typed"
    write_raw_dataset(raw, info, pd.DataFrame(cells, dtype=str))
    specs = info.labels
    parts = []
    for column, spec in enumerate(specs):
        if spec.has_classes:
            parts.append(rng.dirichlet(np.ones(3), n) * 0.6 + 0.4 * np.eye(3)[truth[:, column].astype(int)])
        elif spec.type == "binary":
            parts.append(0.3 * truth[:, [column]] + 0.7 * rng.random((n, 1)))
        else:
            parts.append(truth[:, [column]] + rng.normal(0, 5, (n, 1)))
    outcome = Outcome(specs, ids, tuple(f"p{k // 2}" for k in range(n)), truth, np.concatenate(parts, 1))
    entries, mean, interval = measure(outcome, num_resamples=50)
    metrics = Metrics(
        dataset_name=raw.name, evaluated_on="all", num_cases=n, num_subjects=n // 2, weights_hash="cd" * 32,
        mean_auroc=mean, mean_auroc_ci=interval, labels=entries,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", outcome)
    write_json(folder / "metrics.json", metrics)
    return metrics


def make_evidence(folder: Path, labels: tuple[str, ...] = LABELS, seed: int = 0) -> None:
    """Write evaluation.json and distances.csv of drawn numbers beside an evaluation."""
    rng = np.random.default_rng(seed)
    groups = []
    for column, names in (("manufacturer", ("SIEMENS", "GE <MEDICAL>", "unknown")), ("age", ("18 to 39", "over 40"))):
        for name in names:
            entries = []
            for label in labels:
                value = float(rng.uniform(0.5, 0.9))
                scored = name != "unknown"
                entries.append(
                    LabelMetrics(
                        name=label, n_known=20, n_positive=8, n_negative=12, auroc=value if scored else None,
                        auroc_ci=(value - 0.1, value + 0.1) if scored else None,
                        reason=None if scored else "2 positive and 1 negative patients, scored from 5 of each on",
                    )
                )  # fmt: skip
            groups.append(Subgroup(column=column, group=name, rule="as written", num_cases=20, num_subjects=10,
                                   labels=tuple(entries)))  # fmt: skip
    steps = np.linspace(0.05, 1, 20)
    curves = tuple(
        AbstentionCurve(label=label, order=order, curve=tuple(zip(steps.tolist(), (0.3 * steps).tolist(), strict=True)),
                        aurc=0.15, aurc_ci=(0.1, 0.2), error_rate=0.3, best_aurc=0.05)
        for label in labels
        for order in ("probability", "distance")
    )  # fmt: skip
    far = Distances(num_reference=60, median=0.8, share_beyond=0.2, share_beyond_ci=(0.1, 0.35),
                    error_auroc=dict.fromkeys(labels, 0.6))  # fmt: skip
    found = Evaluation(dataset_name="Dataset008_Nowhere", weights_hash="ab" * 32, subgroups=tuple(groups),
                       distances=far, abstention=curves)  # fmt: skip
    write_json(folder / "evaluation.json", found)
    rows = "".join(f"case_{k},p{k},{value:.4f}\n" for k, value in enumerate(rng.gamma(8, 0.1, 60)))
    (folder / "distances.csv").write_text("case_id,subject_id,distance\n" + rows)


def make_curve(folder: Path, labels: tuple[str, ...] = LABELS, seed: int = 0) -> LearningCurve:
    """Write learning_curve.json of drawn numbers."""
    rng = np.random.default_rng(seed)
    points = []
    for shots in (1, 4, 16, None):
        draws = (0, 1, 2) if shots is not None else (0,)
        entries = []
        for name in (*labels, "mean"):
            values = tuple(float(v) for v in rng.uniform(0.5, 0.9, len(draws)))
            mean = float(np.mean(values))
            spread = (mean - 0.1, mean + 0.1) if len(draws) > 1 else None
            entries.append(OverDraws(name=name, per_draw=values, mean=mean, draws_ci=spread, ci=spread))
        points.append(
            Draws(few_shots=shots, draws=draws, folders=tuple(f"task/draw_{d}" for d in draws), evaluated_on="test",
                  num_train=(8 * (shots or 40),) * len(draws), auroc=tuple(entries))
        )  # fmt: skip
    curve = LearningCurve(dataset_name="Dataset008_Nowhere", points=tuple(points))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "learning_curve.json", curve)
    return curve
