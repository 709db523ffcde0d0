"""Few shot: K positive and K negative patients per label, drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import DataError
from headctssl.seeding import derive_seed

__all__ = ["FewShotDraw", "draw_few_shots"]


@dataclass(frozen=True)
class FewShotDraw:
    """Which cases a few-shot run learns from."""

    rows: tuple[int, ...]  # positions in the arrays given, ascending, each once
    shortages: tuple[str, ...]  # sentences on labels that have fewer than K positive or negative patients


def draw_few_shots(
    labels: NDArray[np.floating], names: Sequence[str], subjects: NDArray[np.int64], shots: int, seed: int
) -> FewShotDraw:
    """Draw K positive and K negative patients per label, one case of each.

    A patient is positive for a label when any of the patient's cases is, negative when at least one
    case is known and none is positive. One case that shows the class is drawn of every patient drawn. The
    draw of a label depends on the seed and the label's name alone, not on the other labels, and the draw of
    K is contained in the draw of K + 1. The result is the union over the labels; a case in it keeps all its known
    labels, so a label may be seen in more than 2 K cases.

    Args:
        labels: (n, L) 0 or 1, NaN = unknown.
        names: L label names.
        subjects: (n,) subject number per case.
        shots: K, 1 or more.
        seed: of the draw.

    Raises:
        DataError: no label has both a positive and a negative patient.
    """
    rows: set[int] = set()
    shortages: list[str] = []
    usable = False
    for column, name in enumerate(names):
        truth = labels[:, column]
        positive_subjects = set(subjects[truth > 0.5].tolist())
        pools = {
            "positive": np.flatnonzero(truth > 0.5),
            "negative": np.flatnonzero((truth <= 0.5) & ~np.isin(subjects, list(positive_subjects))),
        }
        found = {}
        for kind, pool in pools.items():
            rng = np.random.Generator(np.random.PCG64(derive_seed(seed, name, kind, "few shots")))
            drawn = _one_case_per_subject(pool, subjects, rng)[:shots]
            found[kind] = len(drawn)
            rows.update(drawn)
            if len(drawn) < shots:
                shortages.append(f"{name}: {len(drawn)} of {shots} {kind} patients, all there are")
        usable = usable or min(found.values()) > 0
    if not usable:
        raise DataError(
            "No label has both a positive and a negative patient to draw from.",
            got="; ".join(shortages),
            expected=f"{shots} positive and {shots} negative training patients per label",
            do="Choose other labels with --labels, another fold with -f, or train without --few_shots.",
        )
    return FewShotDraw(tuple(sorted(rows)), tuple(shortages))


def _one_case_per_subject(pool: NDArray[np.int64], subjects: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
    """The cases of `pool` in a random order, only the first of each subject."""
    order = rng.permutation(pool)
    _, first = np.unique(subjects[order], return_index=True)
    return [int(row) for row in order[np.sort(first)]]
