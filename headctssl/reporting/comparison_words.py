"""Comparison words: what a comparison shows and what it does not, as sentences that follow from its numbers."""

from __future__ import annotations

from headctssl.evaluation.comparison import Comparison, Ranked

__all__ = ["does_not_show", "does_show", "references"]

_LEVEL = 0.05
_FEWEST = 20
"""Positive test cases below which an interval is wide and may be too narrow."""


def does_show(found: Comparison) -> tuple[str, ...]:
    """One sentence per dataset and label budget on which differences from scratch stand, and which do not.

    Args:
        found: the comparison.
    """
    told = []
    keys = list(dict.fromkeys((r.dataset_name, r.label_budget) for r in found.ranking))
    keys.sort(key=lambda key: (key[0], -1 if key[1] is None else 1 / key[1]))  # most labels first
    for dataset, budget in keys:
        rows = found.ranked(dataset, budget)
        labels = "all labels" if budget is None else f"{budget} patient{'s' if budget > 1 else ''} per class"
        where = labels if len(found.tests) == 1 else f"{dataset}, {labels}"
        told.append(f"{where[0].upper()}{where[1:]}: {_best(rows)} {_against(rows)}")
    if not told:
        return ("No run was carried out to its end.",)
    return tuple(told)


def _best(rows: tuple[Ranked, ...]) -> str:
    best = rows[0]
    tied = [r.arm for r in rows[1:] if r.rank_ci is not None and r.rank_ci[0] == 1]
    first = f"{best.arm} has the highest mean AUROC ({best.mean_auroc:.3f})"
    if not tied:
        return f"{first}."
    others = ", ".join(tied[:4]) + (f" and {len(tied) - 4} more" if len(tied) > 4 else "")
    return f"{first}, but resamples also put first: {others}."


def _against(rows: tuple[Ranked, ...]) -> str:
    held = [r for r in rows if r.difference is not None and r.reference is not None]
    if not held:
        return "Nothing was trained from scratch to hold them against."
    parts = []
    for word, sign in (("better", 1), ("worse", -1)):
        told: dict[str, list[str]] = {}
        for r in held:
            if _stands(r) and sign * (r.difference or 0) > 0:
                told.setdefault(str(r.reference), []).append(r.arm)
        # An encoder of another architecture may be far better from scratch, so the one that is meant is named.
        parts += [f"{word} than {reference}: {_listed(names)}" for reference, names in told.items()]
    rest = len(held) - sum(_stands(r) for r in held)
    if not parts:
        return f"Of {len(held)} ways, none can be told from training from scratch."
    found = "; ".join(parts)
    return f"After correction for all comparisons, {found}; {rest} cannot be told from training from scratch."


def references(rows: tuple[Ranked, ...]) -> str:
    """A sentence on what the ways without an encoder of ours are compared with; empty where there are none.

    Args:
        rows: a ranking.
    """
    told: dict[str, list[str]] = {}
    for r in rows:
        # Ways with an encoder of ours are named METHOD/ENCODER/ADAPT.
        if r.reference is not None and r.difference is not None and "/" not in r.arm:
            told.setdefault(r.reference, []).append(r.arm)
    words = [f"{_listed(names)} from {reference}" for reference, names in told.items()]
    return f"Differences are from scratch of the same encoder; those of {'; '.join(words)}." if words else ""


def _stands(r: Ranked) -> bool:
    """Whether a difference stands: corrected p below 5 %, and its interval does not hold 0."""
    if r.p_holm is None or r.p_holm >= _LEVEL or r.difference_ci is None:
        return False
    low, high = r.difference_ci
    return low > 0 or high < 0


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def does_not_show(found: Comparison, synthetic: bool) -> tuple[str, ...]:
    """What nobody may conclude from it.

    Args:
        found: the comparison.
        synthetic: whether a dataset is made of phantoms.
    """
    told = []
    if synthetic:
        told.append(
            "Scans are synthetic: findings are drawn by rules and look alike. The order of methods on patients "
            "may be another one."
        )
    if len(found.tests) == 1:
        told.append("One dataset, so one population, one set of scanners and one way of labelling.")
    if found.grid.seeds < 3:
        told.append(
            f"{found.grid.seeds} seed{'s' if found.grid.seeds > 1 else ''} of pretraining: how much another "
            "pretraining would change the order is hardly known."
        )
    few = sorted(
        {f"{label} ({n})" for t in found.tests for label, n in zip(t.labels, t.positives, strict=True) if n < _FEWEST}
    )
    if few:
        told.append(
            "Labels with fewer than "
            f"{_FEWEST} positive test cases: {_listed(few)}. Their intervals are wide and may be too narrow."
        )
    told.append(
        "Settings are those that the plans and the defaults give. No method was tuned, so a method that needs "
        "tuning is at a disadvantage, and nothing was chosen on the test cases."
    )
    told.append(
        "Methods see equally many labels, but not equally much computation: the table of cost says how much "
        "each took. With longer pretraining the order may change."
    )
    told.append("p values are of these trained models on these patients; the intervals also hold seeds and draws.")
    return tuple(told)
