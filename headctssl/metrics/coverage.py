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
    fewer, more = sorted((num_positive, num_negative))
    sizes = {tuple(sorted((cell["positives"], cell["negatives"]))) for cell in cells}
    fits = [size for size in sizes if size[0] <= fewer and size[1] <= more]
    if not fits:
        return None
    best = max(fits)
    same = [cell for cell in cells if tuple(sorted((cell["positives"], cell["negatives"]))) == best]
    positives, negatives = best if num_positive <= num_negative else best[::-1]
    return Coverage(
        positives=positives,
        negatives=negatives,
        lowest=min(cell["printed"] for cell in same),
        lowest_bca=min(cell["bca"] for cell in same),
        runs=int(str(content["runs"])),
    )
