"""Demo page: what the demo's report says, in plain words, also when pretraining did not help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headctssl.contract import Contract
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.paired import difference
from headctssl.metrics.statistics import subject_codes
from headctssl.paths import preprocessed_dataset
from headctssl.planning.planner import load_plans
from headctssl.preprocessing.index import CaseIndex
from headctssl.reporting.charts import interval_chart
from headctssl.reporting.curves import collapse_note, metric_lines, pretrain_charts
from headctssl.reporting.metrics_parts import metrics_table
from headctssl.reporting.page import CaseCard, Page, Section, as_table
from headctssl.reporting.run_parts import BANNER, interval_text, read_object, why_section
from headctssl.reporting.slices import CONVENTION, case_slices
from headctssl.settings import read_json

__all__ = ["DemoRuns", "Difference", "demo_page", "difference_text", "mean_auroc_text", "paired_difference", "verdict"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Mean AUROC with pretraining minus from scratch, on the same cases."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class DemoRuns:
    """The folders and numbers a demo leaves."""

    dataset_id: int
    num_scans: int
    few_shots: int
    pretraining: Path
    pretrained: Path  # fold folder of the classifier that began from the pretraining
    scratch: Path  # fold folder of the classifier that began at random
    minutes: float


def paired_difference(first: Path, second: Path, dataset_id: int) -> Difference | None:
    """Mean AUROC of one fine-tuning run minus another's on the cases both predicted.

    The interval is a BCa bootstrap over subjects in which both models see the same resample.

    Args:
        first: fold folder of a fine-tuning run.
        second: fold folder of another.
        dataset_id: the dataset whose labels are the truth.

    Returns:
        The difference, or None when no label has both classes among the shared cases.
    """
    text = {"case_id": str, "subject_id": str}
    a, b = (pd.read_csv(f / "predictions.csv", dtype=text).set_index("case_id") for f in (first, second))
    shared = [case for case in a.index if case in b.index]
    truth = load_raw_dataset(dataset_id).labels().loc[shared]
    subjects = subject_codes([str(s) for s in a.loc[shared, "subject_id"].fillna("")], shared)
    names = [name for name in truth.columns if name in a.columns and name in b.columns]
    first_scores, second_scores = (t.loc[shared, names].to_numpy(dtype=np.float64) for t in (a, b))
    found = difference(truth[names].to_numpy(dtype=np.float64), first_scores, second_scores, subjects)
    if found is None or found.interval is None:
        return None
    return Difference(found.value, *found.interval)


def verdict(difference: Difference | None) -> str:
    """What the demo showed."""
    if difference is None:
        return "Nothing can be said: the test cases hold only one class of every label."
    if difference.low > 0:
        return (
            "Pretraining helped: with the same few labels, the pretrained encoder separates the findings better than "
            "the same network from scratch, and the interval of the difference lies above zero."
        )
    if difference.high < 0:
        return (
            "Pretraining hurt: the same network from scratch did better here, and the interval of the difference lies "
            "below zero. A few minutes on synthetic scans are little; treat this as a test of the pipeline."
        )
    return (
        "No difference can be claimed: the interval of the difference contains zero. That is what a few minutes of "
        "pretraining on synthetic scans and a small test set often give. The demo shows that every stage works; how "
        "much pretraining helps has to be measured on real scans, with more of them."
    )


def difference_text(difference: Difference | None) -> str:
    """The difference with its interval, signed."""
    return "-" if difference is None else f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def mean_auroc_text(run: Path) -> str:
    """Mean AUROC of a fine-tuning run with its interval."""
    metrics = read_json(run / "metrics.json", Metrics)
    return interval_text(metrics.mean_auroc, metrics.mean_auroc_ci)


def demo_page(runs: DemoRuns, difference: Difference | None) -> Page:
    """The whole page of the demo."""
    contract = read_json(runs.pretraining / "contract.json", Contract)
    metrics = {
        "from scratch": read_json(runs.scratch / "metrics.json", Metrics),
        f"after {contract.method}": read_json(runs.pretrained / "metrics.json", Metrics),
    }
    sections = (
        _result_section(runs, contract, metrics, difference),
        *(Section(f"Each label, {name}", tables=(metrics_table(values.labels),)) for name, values in metrics.items()),
        _scan_section(runs, contract),
        _pretraining_section(runs, contract),
        *_decision_sections(runs),
    )
    facts = (
        ("scans", str(runs.num_scans)),
        ("encoder", contract.preset),
        ("labelled subjects per class", str(runs.few_shots)),
        ("minutes in all", f"{runs.minutes:.1f}"),
    )
    subtitle = (
        "Synthetic head CTs were planned, preprocessed and used to pretrain an encoder without labels. "
        "A classifier was then trained with few labels, once from that encoder and once from scratch."
    )
    return Page("headctssl demo", subtitle, sections, facts, BANNER)


def _result_section(
    runs: DemoRuns, contract: Contract, metrics: dict[str, Metrics], difference: Difference | None
) -> Section:
    intervals = {
        name: {m.name: (m.auroc, *m.auroc_ci) for m in values.labels if m.auroc is not None and m.auroc_ci is not None}
        for name, values in metrics.items()
    }
    rows = [(name, interval_text(m.mean_auroc, m.mean_auroc_ci)) for name, m in metrics.items()]
    rows.append(("difference, paired", difference_text(difference)))
    test = next(iter(metrics.values()))
    paragraphs = (
        verdict(difference),
        f"Both classifiers are the same network ({contract.preset}), trained on the same {runs.few_shots} positive and "
        f"{runs.few_shots} negative subjects per label and tested on the same {test.num_cases} scans of "
        f"{test.num_subjects} other subjects. The only difference is where the encoder's weights began: at random, or "
        f"after {contract.method} pretraining without labels on the training scans.",
        "Intervals are 95 % over subjects. One seed was used; another seed may give another picture.",
    )
    text = "Dot: value. Bar: 95 % interval over patients. Dotted line: chance."
    chart = interval_chart(intervals, "AUROC", title="AUROC of each label", caption=text, chance=0.5, wide=True)
    table = as_table(("classifier", "mean AUROC (95 % interval)"), rows)
    return Section("What this shows", paragraphs, (table,), charts=(chart,))


def _scan_section(runs: DemoRuns, contract: Contract) -> Section:
    spacing = " x ".join(f"{s:g}" for s in contract.storage.spacing_mm)
    text = (
        f"{runs.num_scans} synthetic head CTs with and without bleeds were drawn, then stored in "
        f"Hounsfield units at {spacing} mm. The pictures show three stored scans."
    )
    return Section("The scans", (text, CONVENTION), cases=_stored_scans(runs.dataset_id, contract))


def _stored_scans(dataset_id: int, contract: Contract) -> tuple[CaseCard, ...]:
    index = CaseIndex.open(preprocessed_dataset(dataset_id) / contract.storage.storage_id)
    cards = []
    for case_id in index.case_ids[:3]:
        found = case_slices(index, case_id)
        cards.append(CaseCard(case_id, (), found.pictures, f"Planes {found.where}."))
    return tuple(cards)


def _pretraining_section(runs: DemoRuns, contract: Contract) -> Section:
    logged = metric_lines(runs.pretraining / "metrics.jsonl")
    return Section(
        "Pretraining",
        (f"{contract.method} on {contract.num_scans} scans; no labels and no test scans were used.",),
        warnings=collapse_note(logged),
        charts=pretrain_charts(logged)[:4],
    )


def _decision_sections(runs: DemoRuns) -> list[Section]:
    plans = load_plans(runs.dataset_id)
    return [
        why_section("What the planner decided, and why", plans.model_dump(mode="json")),
        why_section("What the run decided, and why", read_object(runs.pretraining / "config.json")),
    ]
