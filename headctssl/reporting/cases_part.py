"""Cases part: the most confident right and wrong calls of a classifier, with slices of the stored scans."""

from __future__ import annotations

import numpy as np

from headctssl.contract import Contract
from headctssl.errors import DataError, HeadCTSSLError
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome
from headctssl.metrics.prediction_table import called_class
from headctssl.paths import data_root
from headctssl.preprocessing.index import CaseIndex
from headctssl.reporting.judged import Example, examples
from headctssl.reporting.page import CaseCard, Picture, Section
from headctssl.reporting.slices import CONVENTION, case_slices

__all__ = ["CASES", "cases_section", "open_store"]

CASES = "Best and worst cases"

_MOST_OTHERS = 8  # further labels of a case


def open_store(dataset_name: str, contract: Contract) -> CaseIndex:
    """The stored cases that a classifier sees.

    Args:
        dataset_name: folder name of the dataset.
        contract: of the classifier.

    Raises:
        UsageError: headctssl_preprocessed is not set.
        DataError: there is no such store.
    """
    folder = data_root("preprocessed") / dataset_name / contract.storage.storage_id
    if not (folder / "cases.csv").is_file():
        raise DataError(
            f"The stored scans of {dataset_name} are not here, so no slices can be shown.",
            got=f"no {folder.name} under headctssl_preprocessed",
            expected="the dataset, preprocessed as the classifier needs it",
            do="Set headctssl_preprocessed to where it lies, or preprocess it again, and make the page again.",
        )
    return CaseIndex.open(folder)


def cases_section(outcome: Outcome, metrics: Metrics, contract: Contract | None) -> Section:
    """The most confident wrong and right calls, label by label.

    Args:
        outcome: the judged cases.
        metrics: what was measured on them.
        contract: of the classifier; None where it is not known.
    """
    chosen = examples(outcome, lambda name: metrics.label(name).threshold or 0.5)
    if not chosen:
        return Section(CASES, ("No case has a known label.",))
    warnings: list[str] = []
    index = None
    try:
        if contract is None:
            raise DataError("contract.json is missing, so it is not known which stored scans the classifier saw.")
        index = open_store(metrics.dataset_name, contract)
    except HeadCTSSLError as error:
        warnings.append(" ".join([error.what, error.do or ""]).strip())
    cards = tuple(_card(example, outcome, index) for example in chosen)
    wrong, right = sum(e.wrong is True for e in chosen), sum(e.wrong is False for e in chosen)
    numbers = len(chosen) - wrong - right
    parts = [f"{wrong} wrong and {right} right calls"] if wrong + right else []
    parts += [f"{numbers} numbers"] if numbers else []
    text = (
        f"{' and '.join(parts)}: those farthest from and nearest to the truth, each case once. They were picked as "
        "extremes and are no sample of the cases."
    )
    return Section(CASES, (text, *((CONVENTION,) if index is not None else ())), warnings=tuple(warnings), cases=cards)


def _card(example: Example, outcome: Outcome, index: CaseIndex | None) -> CaseCard:
    said = "predicted" if example.wrong is None else "probability and call"
    facts = [("label", example.label), ("truth", example.truth), (said, example.said)]
    others = _others(example, outcome)
    if others:
        facts.append(("other labels (truth, predicted)", others))
    pictures: tuple[Picture, ...] = ()
    note = ""
    if index is not None:
        try:
            found = case_slices(index, example.case_id)
            pictures, note = found.pictures, f"Planes {found.where}."
        except HeadCTSSLError as error:
            note = f"No slices: {error.what}"
    tag = f"{example.label}: {example.tag}" if example.tag else example.label
    return CaseCard(example.case_id, tuple(facts), pictures, note, tag, bool(example.wrong))


def _others(example: Example, outcome: Outcome) -> str:
    row = outcome.case_ids.index(example.case_id)
    texts = []
    for column, spec in enumerate(outcome.specs):
        truth = outcome.truth[row, column]
        if spec.name == example.label or np.isnan(truth):
            continue
        predicted = outcome.predicted(column)[row : row + 1]
        if spec.type == "binary":
            texts.append(f"{spec.name} {'positive' if truth > 0.5 else 'negative'}, {float(predicted[0]):.2f}")
        elif spec.type == "continuous":
            texts.append(f"{spec.name} {truth:.4g}, {float(predicted[0]):.4g}")
        else:
            texts.append(f"{spec.name} {spec.classes[int(truth)]}, {spec.classes[called_class(spec, predicted)[0]]}")
    more = [f"and {len(texts) - _MOST_OTHERS} more"] if len(texts) > _MOST_OTHERS else []
    return "; ".join(texts[:_MOST_OTHERS] + more)
