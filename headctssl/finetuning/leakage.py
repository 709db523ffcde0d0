"""Leakage: whether cases a classifier is judged on were used to pretrain or train it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from headctssl.contract import Contract
from headctssl.paths import atomic_path, data_root
from headctssl.preprocessing.index import CaseIndex

__all__ = ["describe_leakage", "describe_reuse", "write_used_cases"]

_CASES = "cases.csv"


def describe_leakage(weights: Path | None, judged: CaseIndex) -> str:
    """One sentence on the overlap of the judged cases with those the encoder was pretrained on.

    A case is recognised by the SHA-256 of its source, so a copy under another id or in another dataset is
    found too; another scan of the same patient is not.

    Args:
        weights: the encoder's file; its run folder has cases.csv. None: started from scratch.
        judged: the cases the metrics are of.
    """
    if weights is None:
        return "pretraining: none, the encoder started from scratch"
    used = _sources(weights.parent / _CASES)
    if used is None:
        return "pretraining: cannot be checked, the encoder's folder has no list of cases"
    return "pretraining: " + _overlap(used, judged, "used without their labels")


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
    init = str(json.loads(contract.settings).get("init", ""))
    if init == "scratch":
        return f"{trained}; {describe_leakage(None, judged)}"
    found = _encoder_run(init)
    if found is None:
        return f"{trained}; pretraining: cannot be checked, no run here wrote this encoder"
    return f"{trained}; {describe_leakage(found, judged)}"


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


def _encoder_run(weights_hash: str) -> Path | None:
    """The encoder of this hash among the pretraining runs of the results root."""
    for path in sorted(data_root("results").glob("Dataset*/pretrain/*/contract.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # a damaged file of another run; that run's own commands report it
        if isinstance(content, dict) and content.get("weights_hash") == weights_hash:
            return path.with_name("encoder.safetensors")
    return None
