"""Coverage: how often 95 % intervals of the AUROC and the AUPRC hold the truth, in simulated cohorts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from headctssl.metrics.delong import logit_interval, moderated_interval, score_interval
from headctssl.metrics.statistics import bca, bootstrap, weighted_auprc

Array = NDArray[np.float64]

FILE = Path(__file__).parents[1] / "headctssl" / "metrics" / "coverage.json"
PAGE = Path(__file__).parents[1] / "documentation" / "statistics.md"
BEGIN, END = "<!-- tables: made of headctssl/metrics/coverage.json -->", "<!-- end of tables -->"
COHORTS = (
    (3, 20), (5, 20), (10, 20), (20, 20), (3, 80), (5, 80), (10, 80), (20, 80), (50, 80),
    (10, 40), (50, 200), (10, 400), (20, 400), (50, 400), (100, 400),
)  # fmt: skip
AREAS = (0.7, 0.85, 0.95)
SHAPES = {"equal": 1.0, "wide": 1.5}
"""Standard deviation of the scores of the positives over that of the negatives, both normal."""
OF_AUPRC = ((5, 20), (10, 40), (20, 80), (50, 200))
_AT_ONCE = 50  # cohorts that share their draws of resamples


def cell(
    shape: str, positives: int, negatives: int, area: float, *, runs: int, resamples: int, seed: int
) -> dict[str, object]:
    """One line of the table: the share of cohorts whose interval holds the true AUROC.

    With one scan per patient, an AUROC is a mean over pairs, so that all resamples of a cohort are two matrix products
    of their counts with the table of pairs ranked right.

    Args:
        shape: one of `SHAPES`.
        positives: patients per cohort.
        negatives: patients per cohort.
        area: true AUROC.
        runs: cohorts.
        resamples: of each bootstrap.
        seed: of everything.
    """
    rng = np.random.default_rng([seed, positives, negatives, int(1000 * area), sorted(SHAPES).index(shape)])
    spread = SHAPES[shape]
    apart = float(norm.ppf(area)) * (1 + spread**2) ** 0.5
    held = dict.fromkeys(("printed", "bca", "percentile", "delong"), 0)
    widths = dict.fromkeys(held, 0.0)
    for run in range(runs):
        if run % _AT_ONCE == 0:
            of_positives, of_negatives = _draws(positives, negatives, resamples, rng)
        x, y = rng.normal(size=positives) * spread + apart, rng.normal(size=negatives)
        right = (x[:, None] > y).astype(np.float32)
        resampled = ((of_positives @ right) * of_negatives).sum(axis=1).astype(np.float64)
        for name, (low, high) in _intervals(right.astype(np.float64), resampled).items():
            held[name] += low <= area <= high
            widths[name] += high - low
    return {
        "shape": shape,
        "positives": positives,
        "negatives": negatives,
        "auroc": area,
        **{name: round(count / runs, 4) for name, count in held.items()},
        "width": {name: round(width / runs, 4) for name, width in widths.items()},
    }


def _draws(positives: int, negatives: int, resamples: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """How often each patient is drawn, as a share of its class, in resamples that kept both classes."""
    count = positives + negatives
    kept: list[Array] = []
    while sum(map(len, kept)) < resamples:
        drawn = rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float32)
        kept.append(drawn[(drawn[:, :positives].sum(axis=1) > 0) & (drawn[:, positives:].sum(axis=1) > 0)])
    drawn = np.concatenate(kept)[:resamples]
    of_positives, of_negatives = drawn[:, :positives], drawn[:, positives:]
    return of_positives / of_positives.sum(axis=1, keepdims=True), of_negatives / of_negatives.sum(
        axis=1, keepdims=True
    )


def _intervals(right: Array, resampled: Array) -> dict[str, tuple[float, float]]:
    positives, negatives = right.shape
    above, below, total = right.mean(axis=1), right.mean(axis=0), right.sum()
    area = float(above.mean())
    variance = float(above.var(ddof=1) / positives + below.var(ddof=1) / negatives)
    left_out = np.r_[
        (total - right.sum(axis=1)) / ((positives - 1) * negatives),
        (total - right.sum(axis=0)) / (positives * (negatives - 1)),
    ]
    whole = score_interval(area, positives, negatives)  # where an interval is not defined
    apart = np.ptp(resampled) < 1e-6
    low, high = np.quantile(resampled, [0.025, 0.975])
    delong = logit_interval(area, variance) if variance > 1e-12 else None
    return {
        "printed": moderated_interval(area, variance, positives, negatives),
        "bca": (None if apart else bca(resampled.round(6), round(area, 6), left_out, 0.95)) or whole,
        "percentile": whole if apart else (float(low), float(high)),
        "delong": delong or whole,
    }


def auprc_cell(
    positives: int, negatives: int, area: float, *, runs: int, resamples: int, seed: int
) -> dict[str, object]:
    """The share of cohorts whose BCa interval holds the true average precision; normal scores of equal spread.

    Args:
        positives: patients per cohort.
        negatives: patients per cohort.
        area: true AUROC.
        runs: cohorts.
        resamples: of each bootstrap.
        seed: of everything.
    """
    rng = np.random.default_rng([seed, 7, positives, negatives, int(1000 * area)])
    positive = np.arange(positives + negatives) < positives
    apart = float(norm.ppf(area)) * 2**0.5
    grid = np.linspace(-8, 12, 200_001)
    recall, alarms = norm.sf(grid - apart), norm.sf(grid)
    precision = recall * positives / np.maximum(recall * positives + alarms * negatives, 1e-300)
    truth = float(-np.trapezoid(precision, recall))
    held = 0
    for run in range(runs):
        score = rng.normal(size=positive.size) + apart * positive
        found = bootstrap(
            lambda w, score=score: weighted_auprc(positive, score, w),
            np.arange(positive.size),
            num_resamples=resamples,
            seed=run,
        ).intervals
        held += found[0] is not None and found[0][0] <= truth <= found[0][1]
    return {"positives": positives, "negatives": negatives, "auroc": area, "bca": round(held / runs, 4)}


def tables(file: Path = FILE) -> str:
    """The tables of documentation/statistics.md as Markdown.

    Args:
        file: what a run wrote.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"{content['runs']:,} cohorts a line, {content['resamples']:,} resamples each, seed {content['seed']}.",
        "",
        "| scores | positives | negatives | AUROC | printed | BCa | percentile | logit DeLong | width: printed | BCa |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in content["cells"]:
        shares = " | ".join(f"{one[name]:.3f}" for name in ("printed", "bca", "percentile", "delong"))
        widths = f"{one['width']['printed']:.3f} | {one['width']['bca']:.3f}"
        counts = f"{one['positives']} | {one['negatives']} | {one['auroc']}"
        lines.append(f"| {one['shape']} | {counts} | {shares} | {widths} |")
    if content["auprc"]:
        lines += ["", "| positives | negatives | AUROC | BCa interval of the AUPRC |", "|---|---|---|---|"]
    for one in content["auprc"]:
        lines.append(f"| {one['positives']} | {one['negatives']} | {one['auroc']} | {one['bca']:.3f} |")
    return "\n".join(lines) + "\n"


def write_page(page: Path = PAGE, file: Path = FILE) -> None:
    """Put the tables between their marks.

    Args:
        page: the Markdown file, with the marks.
        file: what a run wrote.
    """
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(file)}\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every cell and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--page", action="store_true", help="only renew the tables of documentation/statistics.md")
    asked = parser.parse_args(arguments)
    if asked.page:
        write_page()
        return
    size = {"runs": asked.runs, "resamples": asked.resamples, "seed": asked.seed}
    content: dict[str, object] = {"format": 1, **size, "cells": [], "auprc": []}
    for shape in SHAPES:
        for positives, negatives in COHORTS:
            for area in AREAS:
                line = cell(shape, positives, negatives, area, **size)
                print(json.dumps(line), flush=True)
                content["cells"].append(line)  # type: ignore[attr-defined]
    for positives, negatives in OF_AUPRC:
        for area in AREAS:
            line = auprc_cell(positives, negatives, area, **{**size, "resamples": min(1000, asked.resamples)})
            print(json.dumps(line), flush=True)
            content["auprc"].append(line)  # type: ignore[attr-defined]
    asked.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if asked.output == FILE:
        write_page()


if __name__ == "__main__":
    main()
