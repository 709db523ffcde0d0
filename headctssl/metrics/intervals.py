"""Intervals: a set of statistics of one label with the interval of each, for an entry of metrics.json."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headctssl.metrics.statistics import Statistic, bootstrap

__all__ = ["with_intervals"]


def with_intervals(
    statistic: Statistic, names: Sequence[str], subjects: NDArray[np.int64], num_resamples: int, seed: int
) -> dict[str, object]:
    """Values and 95 % intervals over patients, as fields ``NAME`` and ``NAME_ci`` of `LabelMetrics`.

    A statistic that is undefined on the cases themselves is left out: it would be undefined in every resample.

    Args:
        statistic: weights (R, n) -> values (R, K).
        names: K fields.
        subjects: (n,) subject number per case.
        num_resamples: bootstrap resamples.
        seed: of the draws.
    """
    values = statistic(np.ones((1, subjects.size)))[0]
    defined = np.flatnonzero(np.isfinite(values))
    kept = [names[k] for k in defined.tolist()]
    found: dict[str, object] = dict(zip(kept, values[defined].tolist(), strict=True))
    if defined.size == 0:
        return {"reason": "no metric is defined on these cases"}
    result = bootstrap(lambda w: statistic(w)[:, defined], subjects, num_resamples=num_resamples, seed=seed)
    if result.reason is None:
        found |= {f"{name}_ci": interval for name, interval in zip(kept, result.intervals, strict=True)}
    else:
        found["reason"] = f"no interval: {result.reason}"
    return {**found, "resamples": result.resamples, "redrawn": result.redrawn}
