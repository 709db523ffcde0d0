"""Leakage: whether cases a classifier is judged on were used to pretrain its encoder."""

from __future__ import annotations

import csv
from pathlib import Path

from headctssl.preprocessing.index import CaseIndex

__all__ = ["describe_leakage"]

_UNKNOWN = "cannot be checked: "


def describe_leakage(weights: Path | None, judged: CaseIndex) -> str:
    """One sentence on the overlap of the judged cases with those the encoder was pretrained on.

    A case is recognised by the SHA-256 of its source, so a copy under another id or in another dataset is
    found too; another scan of the same patient is not.

    Args:
        weights: the encoder's file; its run folder has cases.csv. None: started from scratch.
        judged: the cases the metrics are of.
    """
    if weights is None:
        return "none: the encoder was not pretrained"
    path = weights.parent / "cases.csv"
    if not path.is_file():
        return _UNKNOWN + "the encoder's folder has no cases.csv"
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or "source_sha256" not in rows[0]:
        return _UNKNOWN + "cases.csv of the encoder lists no sources"
    used = {row["source_sha256"] for row in rows}
    shared = sum(row.source_sha256 in used for row in judged.rows)
    if shared == 0:
        return f"none: no judged case is among the {len(rows)} scans of pretraining"
    return (
        f"{shared} of {len(judged)} judged cases were used in pretraining, without their labels;"
        " metrics may be optimistic"
    )
