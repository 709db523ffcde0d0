"""Evaluation page: a classifier on the cases of a dataset it may never have seen."""

from __future__ import annotations

from pathlib import Path

from headctssl.contract import Contract
from headctssl.metrics.metrics_file import Metrics
from headctssl.reporting.data_parts import fingerprint_of, fingerprint_tables, is_synthetic, origin_sentences, raw_of
from headctssl.reporting.finetune_page import classifier_sections, judged_or_why
from headctssl.reporting.model_card import model_card
from headctssl.reporting.page import Page, Section, attempted
from headctssl.reporting.run_parts import BANNER, optional
from headctssl.settings import read_json

__all__ = ["evaluate_page"]


def evaluate_page(folder: Path) -> Page:
    """The page of a folder that headct_evaluate wrote.

    Args:
        folder: with metrics.json and predictions.csv; contract.json names the classifier where it is there.

    Raises:
        DataError: metrics.json or contract.json is damaged.
    """
    metrics = read_json(folder / "metrics.json", Metrics)
    contract = optional(folder / "contract.json", Contract)
    judged, why = judged_or_why(folder, metrics)
    status: tuple[str, ...] = ()
    if contract is None:
        status = (
            "contract.json is missing: this evaluation was made by an earlier version, so slices and the model "
            "card are left out. Evaluate again with headct_evaluate.",
        )
    name = metrics.dataset_name
    sections = [
        *classifier_sections(metrics, judged, why, contract),
        attempted("Data", lambda: _data(name)),
        model_card(contract, {"dataset_name": name}, metrics, synthetic=is_synthetic(name)),
    ]
    from headctssl.reporting.metrics_parts import judged_facts

    subtitle = f"{name}, {metrics.evaluated_on} cases, weights {metrics.weights_hash[:8] or 'unknown'}"
    return Page("Evaluation of a classifier", subtitle, tuple(sections), judged_facts(metrics), BANNER, status)


def _data(name: str) -> Section:
    found = fingerprint_of(name)
    tables = fingerprint_tables(found) if found is not None else ()
    text = () if found is not None else ("Nobody took a fingerprint of this dataset.",)
    return Section("Data", (*origin_sentences(raw_of(name)), *text), tables)
