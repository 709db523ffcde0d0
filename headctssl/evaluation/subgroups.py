"""Subgroups: metrics by scanner, kernel, slice thickness, age and sex, where there are enough patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headctssl.evaluation.evaluation_file import Subgroup
from headctssl.metrics.classification import label_metrics
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.metrics.outcome import Outcome
from headctssl.metrics.statistics import subject_codes

__all__ = ["FEWEST", "GROUPED", "groups_of", "subgroups"]

GROUPED: Mapping[str, str] = {
    "manufacturer": "as written, without regard to case",
    "convolution_kernel": "as written, without regard to case",
    "slice_thickness_mm": "up to 1.5 mm, over 1.5 to 3 mm, over 3 mm",
    "age": "under 18, 18 to 39, 40 to 59, 60 to 79, 80 and over",
    "sex": "as written, without regard to case",
}
"""Columns of cases.csv and how their values become groups; an empty cell is 'unknown'."""

FEWEST = 5
"""Patients of each class below which a label of a group is counted but not scored."""

_EDGES: Mapping[str, tuple[tuple[float, str], ...]] = {
    "slice_thickness_mm": ((1.5, "up to 1.5 mm"), (3.0, "over 1.5 to 3 mm"), (np.inf, "over 3 mm")),
    "age": (
        (np.nextafter(18, 0), "under 18"),
        (np.nextafter(40, 0), "18 to 39"),
        (np.nextafter(60, 0), "40 to 59"),
        (np.nextafter(80, 0), "60 to 79"),
        (np.inf, "80 and over"),
    ),
}
_UNKNOWN = "unknown"


def groups_of(column: str, cells: Sequence[str]) -> list[str]:
    """The group of every case.

    Args:
        column: one of `GROUPED`.
        cells: as written in cases.csv; '' = unknown.
    """
    return [_group(column, cell.strip()) for cell in cells]


def _group(column: str, cell: str) -> str:
    if not cell:
        return _UNKNOWN
    if column not in _EDGES:
        return cell.upper()
    try:
        number = float(cell.rstrip("yY") if column == "age" else cell)
    except ValueError:
        return f"not a number: {cell}"
    if not np.isfinite(number):
        return _UNKNOWN
    return next(name for edge, name in _EDGES[column] if number <= edge)


def subgroups(outcome: Outcome, cases: pd.DataFrame, *, num_resamples: int = 1000, seed: int = 0) -> list[Subgroup]:
    """Metrics of the binary labels within every group, with 95 % intervals over patients.

    A label of a group is scored when at least `FEWEST` patients show each class; otherwise the group is named with its
    counts alone. A column in which every case is in one group is left out: its only group is the whole.

    Args:
        outcome: predictions and truth.
        cases: the raw dataset's table with `case_id` and any of the columns of `GROUPED`; '' = unknown.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    rows = cases.set_index("case_id")
    subjects = subject_codes(outcome.subject_ids, outcome.case_ids)
    found: list[Subgroup] = []
    for column, rule in GROUPED.items():
        if column not in rows.columns:
            continue
        group = np.array(groups_of(column, [str(rows.at[c, column]) for c in outcome.case_ids]), object)
        counts = Counter(group.tolist())
        if len(counts) < 2:
            continue
        for name in sorted(counts, key=lambda g: (-counts[g], g)):
            inside = np.equal(group, name)
            found.append(
                Subgroup(
                    column=column,
                    group=name,
                    rule=rule,
                    num_cases=counts[name],
                    num_subjects=int(np.unique(subjects[inside]).size),
                    labels=tuple(_labels(outcome, inside, subjects, num_resamples, seed)),
                )
            )
    return found


def _labels(
    outcome: Outcome, inside: NDArray[np.bool_], subjects: NDArray[np.int64], num_resamples: int, seed: int
) -> list[LabelMetrics]:
    entries = []
    for column, spec in enumerate(outcome.specs):
        if spec.type != "binary":
            continue
        truth, score = outcome.truth[inside, column], outcome.predicted(column)[inside]
        patients = [np.unique(subjects[inside][truth == value]).size for value in (1.0, 0.0)]
        if min(patients) >= FEWEST:
            entries.append(label_metrics(spec, truth, score, subjects[inside], num_resamples=num_resamples, seed=seed))
            continue
        entries.append(
            LabelMetrics(
                name=spec.name,
                type=spec.type,
                n_known=int((~np.isnan(truth)).sum()),
                n_unknown=int(np.isnan(truth).sum()),
                n_positive=int((truth == 1).sum()),
                n_negative=int((truth == 0).sum()),
                reason=f"{patients[0]} positive and {patients[1]} negative patients, scored from {FEWEST} of each on",
            )
        )
    return entries
