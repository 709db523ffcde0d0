"""Evaluation page: a classifier on the cases of a dataset it may never have seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from headctssl.contract import Contract
from headctssl.finetuning.pool_folds import ENSEMBLE, OUT_OF_FOLD
from headctssl.metrics.metrics_file import Metrics
from headctssl.reporting.data_parts import fingerprint_of, fingerprint_tables, origin_sentences, raw_of
from headctssl.reporting.finetune_page import classifier_sections, judged_or_why
from headctssl.reporting.model_card import model_card
from headctssl.reporting.page import Page, Section, attempted
from headctssl.reporting.run_parts import BANNER, optional
from headctssl.settings import JsonValue, read_json

__all__ = ["evaluate_page"]

_TITLES = {
    OUT_OF_FOLD: "Every case by the fold that did not learn from it",
    ENSEMBLE: "The mean of the classifiers of all folds",
}


def evaluate_page(folder: Path) -> Page:
    """The page of a folder that headct_evaluate wrote.

    Args:
        folder: with metrics.json and predictions.csv, and contract.json of the classifier; or ``ensemble`` or
            ``out_of_fold`` of a fine-tuning run with folds.

    Raises:
        DataError: metrics.json or contract.json is damaged.
    """
    metrics = read_json(folder / "metrics.json", Metrics)
    contract = _contract(folder)
    judged, why = judged_or_why(folder, metrics)
    status: tuple[str, ...] = ()
    if contract is None:
        status = ("There is no contract.json, so slices and the model card are left out.",)
    name = metrics.dataset_name
    sections = [
        *classifier_sections(folder, metrics, judged, why, contract),
        attempted("Data", lambda: _data(name, metrics.synthetic)),
        model_card(contract, _trained(contract), metrics),
    ]
    from headctssl.reporting.metrics_parts import judged_facts

    whose = f"weights {metrics.weights_hash[:8]}" if metrics.weights_hash else folder.parent.name
    subtitle = f"{name}, {metrics.evaluated_on} cases, {whose}"
    title = _TITLES.get(folder.name, "Evaluation of a classifier")
    return Page(title, subtitle, tuple(sections), judged_facts(metrics), BANNER, status)


def _contract(folder: Path) -> Contract | None:
    """The contract of the classifier; of several folds that of the first, which all share but for the weights."""
    near = optional(folder / "contract.json", Contract)
    if near is not None or folder.name not in _TITLES:
        return near
    folds = sorted(folder.parent.glob("fold_*/contract.json"))
    return optional(folds[0], Contract) if folds else None


def _trained(contract: Contract | None) -> Mapping[str, JsonValue]:
    """The settings the classifier was trained with: the judged dataset may be another one than it learnt from."""
    content = {} if contract is None else json.loads(contract.settings)
    return content if isinstance(content, dict) else {}


def _data(name: str, synthetic: bool | None) -> Section:
    found = fingerprint_of(name)
    tables = fingerprint_tables(found) if found is not None else ()
    text = () if found is not None else ("There is no fingerprint of this dataset here.",)
    return Section("Data", (*origin_sentences(raw_of(name), synthetic), *text), tables)
