"""Report folders: comparisons and evaluations made of drawn numbers, as large and as odd as a test wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headctssl.contract import LabelSpec
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
from headctssl.metrics.metrics_file import Metrics
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
