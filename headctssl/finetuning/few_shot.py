"""Few shot: K patients per class and label, or K positive and all negative ones, drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec
from headctssl.errors import DataError, UsageError
from headctssl.seeding import derive_seed

__all__ = ["FewShotDraw", "FewShots", "Negatives", "draw_few_shots"]

Negatives = Literal["same", "all"]


@dataclass(frozen=True)
class FewShots:
    """How few are learnt from."""

    shots: int  # K patients of every class of every label
    draw: int = 0  # number of the draw, from 0; other draws are other patients
    negatives: Negatives = "same"  # all: K of every class but the first, and everybody of the first

    @property
    def name(self) -> str:
        """Part of a folder name, e.g. ``8shots`` or ``8shots_all_negatives``."""
        return f"{self.shots}shots" + ("_all_negatives" if self.negatives == "all" else "")


@dataclass(frozen=True)
class FewShotDraw:
    """Which cases a few-shot run learns from."""

    rows: tuple[int, ...]  # positions in the arrays given, ascending, each once
    shown: tuple[tuple[bool, ...], ...]  # per row and label: drawn for it; the other labels of the case are not learnt
    shortages: tuple[str, ...]  # sentences on classes that have fewer than K patients


def draw_few_shots(
    labels: NDArray[np.floating],
    specs: Sequence[LabelSpec],
    subjects: Sequence[str],
    case_ids: Sequence[str],
    few: FewShots,
) -> FewShotDraw:
    """Draw K patients per class of every label, one case of each.

    A patient belongs to the highest class that any of the patient's cases shows: positive when any case is, negative
    when at least one case is known and none is positive. One case that shows the class is drawn of every patient.
    A case counts for the labels it was drawn for, and for no other, so that every label shows K cases of a class and
    not more.

    Who is drawn depends on the number of the draw, the label's name and the ids alone: not on other labels, the
    encoder, the method or the seed of the training, so that runs of one draw are comparable patient by patient. The
    draw of K is contained in the draw of K + 1, and the positives of both kinds of `negatives` are the same.

    Args:
        labels: (n, L) class numbers (binary: 0 or 1), NaN = unknown.
        specs: the L labels.
        subjects: subject id per case, '' = unknown: the case is its own.
        case_ids: id per case.
        few: how many, which draw.

    Raises:
        UsageError: a label is continuous.
        DataError: no label has patients of two classes.
    """
    rows: dict[int, set[int]] = {}
    shortages: list[str] = []
    usable = False
    patients = [f"subject {s}" if s else f"case {c}" for s, c in zip(subjects, case_ids, strict=True)]
    for column, spec in enumerate(specs):
        if spec.type == "continuous":
            raise UsageError(
                f"Few shots need classes; '{spec.name}' is a number.",
                got="a continuous label",
                expected="binary, multiclass or ordinal labels",
                do="Choose other labels with --labels, or leave out --few_shots.",
            )
        pools = _pools(labels[:, column], spec, patients)
        for number, (kind, pool) in enumerate(pools.items()):
            order = _one_case_each(pool, patients, case_ids, (few.draw, spec.name, kind))
            drawn = order if number == 0 and few.negatives == "all" else order[: few.shots]
            for row in drawn:
                rows.setdefault(row, set()).add(column)
            if len(order) < few.shots:
                shortages.append(f"{spec.name}: {len(order)} of {few.shots} {kind} patients, all there are")
        usable = usable or sum(bool(pool) for pool in pools.values()) > 1
    if not usable:
        raise DataError(
            "No label has both a positive and a negative patient to draw from.",
            got="; ".join(shortages) or "patients of one class",
            expected=f"{few.shots} training patients per class and label",
            do="Choose other labels with --labels, another fold with -f, or train without --few_shots.",
        )
    chosen = sorted(rows)
    shown = tuple(tuple(column in rows[row] for column in range(len(specs))) for row in chosen)
    return FewShotDraw(tuple(chosen), shown, tuple(shortages))


def _pools(truth: NDArray[np.floating], spec: LabelSpec, patients: Sequence[str]) -> dict[str, list[int]]:
    """Cases that show the class of their patient, by the name of the class, the first (negative) class first."""
    known = np.flatnonzero(~np.isnan(truth)).tolist()
    highest: dict[str, int] = {}
    for row in known:
        highest[patients[row]] = max(round(float(truth[row])), highest.get(patients[row], 0))
    names = ("negative", "positive") if spec.type == "binary" else spec.classes
    pools: dict[str, list[int]] = {name: [] for name in names}
    for row in known:
        if round(float(truth[row])) == highest[patients[row]]:
            pools[names[highest[patients[row]]]].append(row)
    return pools


def _one_case_each(
    pool: Sequence[int], patients: Sequence[str], case_ids: Sequence[str], purpose: tuple[int, str, str]
) -> list[int]:
    """One case of every patient of `pool`, in a random order of the patients.

    Both are drawn by a hash of the ids: a patient more or less in the pool leaves the order of the others.
    """
    first: dict[str, tuple[int, int]] = {}
    for row in pool:
        mine = (derive_seed(*purpose, case_ids[row], "few-shot case"), row)
        first[patients[row]] = min(mine, first.get(patients[row], mine))
    order = sorted(first, key=lambda who: derive_seed(*purpose, who, "few-shot patient"))
    return [first[who][1] for who in order]
