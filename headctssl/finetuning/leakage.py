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

__all__ = [
    "describe_leakage",
    "describe_out_of_fold",
    "describe_reuse",
    "describe_run",
    "pretraining_overlap",
    "write_used_cases",
]

_CASES = "cases.csv"
_SCRATCH = "scratch"
_LABELLED = "used with their labels"


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
    return _pretraining(weights, contract, _digests(judged))


def _pretraining(weights: Path | None, contract: Contract | None, judged: Sequence[str]) -> tuple[int | None, str]:
    """`pretraining_overlap` by the digests of the judged cases."""
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
    shared = sum(digest in used for digest in judged)
    return shared if shared or whole else None, "pretraining: " + "; ".join([*found, *notes])


def describe_reuse(weights: Path, contract: Contract, judged: CaseIndex) -> str:
    """One sentence on the overlap of the judged cases with those a classifier was trained and pretrained on.

    Args:
        weights: the classifier's file; its run folder has cases.csv.
        contract: the classifier's.
        judged: the cases the metrics are of.
    """
    digests = _digests(judged)
    return f"{_training(weights.parent, digests)}; {_pretraining_of(contract, digests)}"


def describe_run(folder: Path, weights: Path | None, contract: Contract | None, judged: CaseIndex) -> str:
    """What `describe_reuse` says of a classifier, while its run is being judged.

    Args:
        folder: the run's; it has cases.csv.
        weights: of the encoder that the run began from, as for `describe_leakage`.
        contract: that encoder's.
        judged: the cases the metrics are of.
    """
    return f"{_training(folder, _digests(judged))}; {describe_leakage(weights, contract, judged)}"


def describe_out_of_fold(folders: Sequence[Path], contract: Contract) -> str:
    """The same of the validation cases of several folds, each judged by the classifier of its own fold.

    Args:
        folders: of the folds, each with cases.csv.
        contract: of one of their classifiers; all began from the same encoder.
    """
    judged: list[str] = []
    shared, named = 0, "source_sha256"
    for folder in folders:
        rows = _rows(folder / _CASES)
        if rows is None or any(row.get("part") not in ("train", "val") for row in rows):
            return "training: cannot be checked, a fold has no list of cases"
        learnt = {row[named] for row in rows if row["part"] == "train"}
        validated = [row[named] for row in rows if row["part"] == "val"]
        shared += sum(digest in learnt for digest in validated)
        judged += validated
    trained = _told(shared, len(judged), _LABELLED) if shared else "no overlap with the training scans of their folds"
    return f"training: {trained}; {_pretraining_of(contract, judged)}"


def _pretraining_of(contract: Contract, judged: Sequence[str]) -> str:
    """The sentence on the encoder that a classifier began from, which is looked for among the runs."""
    init = _init_of(contract)
    if init == _SCRATCH:
        return _pretraining(None, None, judged)[1]
    found = _run_that_wrote(init)
    if found is None:
        return "pretraining: cannot be checked, no run here wrote this encoder"
    return _pretraining(found.folder / _CASES, found.contract, judged)[1]


def _training(folder: Path, judged: Sequence[str]) -> str:
    """The overlap of the judged cases with those that the classifier of a folder learnt from and was chosen by."""
    used = _sources(folder / _CASES)
    if used is None:
        return "training: cannot be checked, the classifier's folder has no list of cases"
    return "training: " + _overlap(used, judged, _LABELLED)


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
    rows = _rows(path)
    return None if rows is None else {row["source_sha256"] for row in rows}


def _rows(path: Path) -> list[dict[str, str]] | None:
    """The lines of a cases.csv, None when there is no such list."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return rows if rows and "source_sha256" in rows[0] else None


def _digests(index: CaseIndex) -> list[str]:
    return [row.source_sha256 for row in index.rows]


def _overlap(used: set[str], judged: Sequence[str], how: str) -> str:
    shared = sum(digest in used for digest in judged)
    return _told(shared, len(judged), how) if shared else f"no overlap with its {len(used)} scans"


def _told(shared: int, total: int, how: str) -> str:
    return f"{shared} of {total} judged cases were {how}, so metrics may be optimistic"


def _how(judged: Sequence[str], labelled: set[str]) -> str:
    """How the judged cases that were used were used."""
    count = sum(digest in labelled for digest in judged)
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
