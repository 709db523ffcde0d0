"""Leakage: whether cases a classifier is judged on were used to pretrain or train it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headctssl.contract import Contract
from headctssl.paths import atomic_path, data_root
from headctssl.preprocessing.index import CaseIndex

__all__ = ["describe_leakage", "describe_reuse", "pretraining_overlap", "write_used_cases"]

_CASES = "cases.csv"
_SCRATCH = "scratch"


@dataclass(frozen=True)
class _Link:
    """One run of the chain that led to an encoder."""

    folder: Path
    contract: Contract


def describe_leakage(weights: Path | None, contract: Contract | None, judged: CaseIndex) -> str:
    """One sentence on the overlap of the judged cases with those the encoder was pretrained on.

    An encoder may have begun from another one (`-w`), and so on: the cases of every run of the chain count. A case
    is recognised by the SHA-256 of its source, so a copy under another id or in another dataset is found too;
    another scan of the same patient is not.

    Args:
        weights: the encoder's file; its run folder has cases.csv. None: started from scratch.
        contract: the encoder's; None when started from scratch.
        judged: the cases the metrics are of.
    """
    return pretraining_overlap(weights, contract, judged)[1]


def pretraining_overlap(weights: Path | None, contract: Contract | None, judged: CaseIndex) -> tuple[int | None, str]:
    """How many of the judged cases are known to have been used, and the sentence of `describe_leakage`.

    Args:
        weights: as for `describe_leakage`, as the others.
        contract: the encoder's.
        judged: the cases the metrics are of.

    Returns:
        None in place of 0 where a run of the chain has no list of cases, so that none can be known.
    """
    if weights is None or contract is None:
        return 0, "pretraining: none, the encoder started from scratch"
    chain, lost = _chain(_Link(weights.parent, contract))
    used: set[str] = set()
    labelled: set[str] = set()
    notes: list[str] = []
    whole = lost is None
    for number, link in enumerate(chain):
        sources = _sources(link.folder / _CASES)
        classifier = link.contract.kind == "classifier"
        if classifier:
            notes.append("an earlier run of its chain trained a classifier, so labels may have been seen")
        if sources is None:
            run = "the encoder's folder" if number == 0 else f"the earlier run {link.contract.weights_hash[:8]}"
            notes.append(f"cannot be checked, {run} has no list of cases")
            whole = False
        else:
            used |= sources
            labelled |= sources if classifier else set()
    if lost is not None:
        notes.append(f"it began from weights {lost[:8]}, whose cases cannot be checked: no run here wrote them")
    found = [_overlap(used, judged, _how(judged, labelled))] if used else []
    shared = sum(row.source_sha256 in used for row in judged.rows)
    return shared if shared or whole else None, "pretraining: " + "; ".join([*found, *notes])


def describe_reuse(weights: Path, contract: Contract, judged: CaseIndex) -> str:
    """One sentence on the overlap of the judged cases with those a classifier was trained and pretrained on.

    Args:
        weights: the classifier's file; its run folder has cases.csv.
        contract: the classifier's.
        judged: the cases the metrics are of.
    """
    used = _sources(weights.parent / _CASES)
    if used is None:
        trained = "training: cannot be checked, the classifier's folder has no list of cases"
    else:
        trained = "training: " + _overlap(used, judged, "used with their labels")
    init = _init_of(contract)
    if init == _SCRATCH:
        return f"{trained}; {describe_leakage(None, None, judged)}"
    found = _run_that_wrote(init)
    if found is None:
        return f"{trained}; pretraining: cannot be checked, no run here wrote this encoder"
    return f"{trained}; {describe_leakage(found.folder / _CASES, found.contract, judged)}"


def write_used_cases(folder: Path, dataset_id: int, parts: Mapping[str, Sequence[str]], index: CaseIndex) -> Path:
    """Write cases.csv of a fine-tuning run: the cases it learns from and is chosen by (not shareable).

    Args:
        folder: the run folder.
        dataset_id: the dataset.
        parts: 'train' and 'val' -> case ids.
        index: the stored cases.
    """
    source = {row.case_id: row.source_sha256 for row in index.rows}
    path = folder / _CASES
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["dataset_id", "case_id", "source_sha256", "part"])
        for part, case_ids in parts.items():
            writer.writerows([dataset_id, case_id, source[case_id], part] for case_id in case_ids)
    return path


def _sources(path: Path) -> set[str] | None:
    """The source digests of a cases.csv, None when there is no such list."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or "source_sha256" not in rows[0]:
        return None
    return {row["source_sha256"] for row in rows}


def _overlap(used: set[str], judged: CaseIndex, how: str) -> str:
    shared = sum(row.source_sha256 in used for row in judged.rows)
    if shared == 0:
        return f"no overlap with its {len(used)} scans"
    return f"{shared} of {len(judged)} judged cases were {how}, so metrics may be optimistic"


def _how(judged: CaseIndex, labelled: set[str]) -> str:
    """How the judged cases that were used were used."""
    count = sum(row.source_sha256 in labelled for row in judged.rows)
    return f"used, {count} of them with their labels" if count else "used without their labels"


def _chain(last: _Link) -> tuple[list[_Link], str | None]:
    """The runs from the last one back to random weights, and the hash at which the search ended without a run."""
    chain, seen = [last], {last.contract.weights_hash}
    while (init := _init_of(chain[-1].contract)) != _SCRATCH:
        found = _run_that_wrote(init)
        if found is None:
            return chain, init
        if init in seen:  # a run cannot begin from its own end; copied folders could claim it
            break
        seen.add(init)
        chain.append(found)
    return chain, None


def _init_of(contract: Contract) -> str:
    """'scratch' or the hash of the weights a run began from; weights of another maker say nothing of it."""
    try:
        settings = json.loads(contract.settings or "{}")
    except ValueError:
        return _SCRATCH
    return str(settings.get("init", _SCRATCH)) if isinstance(settings, dict) else _SCRATCH


def _run_that_wrote(weights_hash: str) -> _Link | None:
    """The run of the results root that ended with the weights of this hash."""
    root = data_root("results")
    patterns = (
        "Dataset*/pretrain/*/contract.json",
        "Dataset*/finetune/*/fold_*/contract.json",
        "Dataset*/finetune/*/draw_*/fold_*/contract.json",
    )
    for path in (path for pattern in patterns for path in sorted(root.glob(pattern))):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("weights_hash") == weights_hash:
                return _Link(path.parent, Contract.model_validate(content))
        except ValueError:
            continue  # a damaged file of another run; that run's own commands report it
    return None
