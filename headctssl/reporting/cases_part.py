"""Cases part: the most confident right and wrong calls of a classifier, with slices of the stored scans."""

from __future__ import annotations

import numpy as np

from headctssl.contract import Contract
from headctssl.errors import DataError, HeadCTSSLError
from headctssl.metrics.metrics_file import Metrics
from headctssl.paths import data_root
from headctssl.preprocessing.index import CaseIndex
from headctssl.reporting.judged import Example, Judged, examples
from headctssl.reporting.page import CaseCard, Picture, Section
from headctssl.reporting.slices import CONVENTION, case_slices

__all__ = ["cases_section", "open_store"]

_TITLE = "Best and worst cases"
_TAGS = {
    (True, True): "missed",
    (False, True): "false alarm",
    (True, False): "found",
    (False, False): "rightly negative",
}  # (truth, wrong) -> what became of it
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


def cases_section(judged: Judged, metrics: Metrics, contract: Contract | None) -> Section:
    """The most confident wrong and right calls, label by label.

    Args:
        judged: the judged cases.
        metrics: what was measured on them.
        contract: of the classifier; None where it is not known.
    """
    threshold = {name: metrics.label(name).threshold or 0.5 for name in judged.labels}
    chosen = examples(judged, threshold)
    if not chosen:
        return Section(_TITLE, ("No case has a known label.",))
    warnings: list[str] = []
    index = None
    try:
        if contract is None:
            raise DataError("contract.json is missing, so it is not known which stored scans the classifier saw.")
        index = open_store(metrics.dataset_name, contract)
    except HeadCTSSLError as error:
        warnings.append(" ".join([error.what, error.do or ""]).strip())
    cards = tuple(_card(example, judged, index) for example in chosen)
    wrong = sum(example.wrong for example in chosen)
    text = (
        f"{wrong} wrong and {len(chosen) - wrong} right calls, those with the probability farthest from and nearest to "
        "the truth, each case once. They were picked as extremes: they are no sample of the cases."
    )
    return Section(_TITLE, (text, *((CONVENTION,) if index is not None else ())), warnings=tuple(warnings), cases=cards)


def _card(example: Example, judged: Judged, index: CaseIndex | None) -> CaseCard:
    call = "positive" if example.probability >= example.threshold else "negative"
    facts = [
        ("label", example.label),
        ("truth", "positive" if example.truth else "negative"),
        ("probability", f"{example.probability:.3f}"),
        ("call", f"{call} at {example.threshold:.3g}"),
    ]
    others = _others(example, judged)
    if others:
        facts.append(("other labels (truth, probability)", others))
    pictures: tuple[Picture, ...] = ()
    note = ""
    if index is not None:
        try:
            found = case_slices(index, example.case_id)
            pictures, note = found.pictures, f"Planes {found.where}."
        except HeadCTSSLError as error:
            note = f"No slices: {error.what}"
    tag = _TAGS[example.truth, example.wrong]
    return CaseCard(example.case_id, tuple(facts), pictures, note, f"{example.label}: {tag}", example.wrong)


def _others(example: Example, judged: Judged) -> str:
    row = judged.case_ids.index(example.case_id)
    texts = []
    for column, name in enumerate(judged.labels):
        if name != example.label and not np.isnan(judged.truth[row, column]):
            truth = "positive" if judged.truth[row, column] > 0.5 else "negative"
            texts.append(f"{name} {truth}, {judged.probability[row, column]:.2f}")
    more = [f"and {len(texts) - _MOST_OTHERS} more"] if len(texts) > _MOST_OTHERS else []
    return "; ".join(texts[:_MOST_OTHERS] + more)
