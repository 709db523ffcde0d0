"""Coverage: how often intervals of the AUROC hold the truth for so few patients, from a simulation."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Coverage", "coverage_cells", "measured_coverage"]

_FILE = Path(__file__).with_name("coverage.json")  # written by benchmarks/coverage.py


@dataclass(frozen=True)
class Coverage:
    """Shares of simulated cohorts of one size whose 95 % interval held the true AUROC."""

    positives: int
    negatives: int
    lowest: float  # of `auroc_ci`, over true areas and shapes of the scores
    lowest_bca: float
    runs: int


@functools.cache
def coverage_cells() -> dict[str, object]:
    """The content of coverage.json: `runs`, `resamples`, `seed` and the list `cells`."""
    content: dict[str, object] = json.loads(_FILE.read_text(encoding="utf-8"))
    return content


def measured_coverage(num_positive: int, num_negative: int) -> Coverage | None:
    """The lowest coverage measured in cohorts of about this many patients.

    Args:
        num_positive: positive patients.
        num_negative: negative patients.

    Returns:
        Of the largest simulated cohort with no more patients of either class, where the classes may be exchanged; None
        below the smallest one.
    """
    content = coverage_cells()
    cells = content["cells"]
    assert isinstance(cells, list)
    fits = []
    for cell in cells:
        for one, other in ((cell["positives"], cell["negatives"]), (cell["negatives"], cell["positives"])):
            if one <= num_positive and other <= num_negative:
                fits.append((min(one, other), one * other, one, other, cell))
    if not fits:
        return None
    best = max(fit[:4] for fit in fits)
    same = [fit[4] for fit in fits if fit[:4] == best]
    return Coverage(
        positives=best[2],
        negatives=best[3],
        lowest=min(cell["printed"] for cell in same),
        lowest_bca=min(cell["bca"] for cell in same),
        runs=int(str(content["runs"])),
    )
