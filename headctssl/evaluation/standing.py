"""Standing: how arms stand to each other on the same test cases, by chance of patients, seeds and draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.metrics.statistics import bca, draw_weights, jackknife_weights, weighted_auroc
from headctssl.seeding import derive_seed

__all__ = ["Runs", "Standing", "defined_columns", "exchange_p_value", "stand"]

Array = NDArray[np.float64]
Interval = tuple[float, float]

Runs = Mapping[tuple[int, int], Array]
"""(seed, draw) -> scores (n, L) of one arm on the test cases."""

_MOST_DRAWS = 20  # resamples drawn per wanted one before giving up
_MOST_GROUPS = 200  # groups of patients that the jackknife leaves out in turn
_CHUNK_ELEMENTS = 4_000_000  # resamples x cases handled at once: 32 MB of float64


@dataclass(frozen=True)
class Standing:
    """What is known of one arm."""

    mean: float  # mean AUROC over labels, draws and seeds
    interval: Interval | None  # 95 %, patients, seeds and draws
    seed_spread: float | None  # standard deviation over seeds
    rank: int  # 1 = highest mean
    rank_interval: tuple[int, int] | None  # 95 % of the resamples
    labels: Mapping[int, tuple[float, Interval | None]]  # column -> AUROC with interval
    difference: float | None = None  # to the reference
    difference_interval: Interval | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class _Sampled:
    """AUROC (1 + R + G, U, C) of the cases as they are, of R resamples of patients and without each of G patients."""

    areas: Array
    units: tuple[tuple[int, int], ...]  # (seed, draw), ascending


def stand(
    truth: Array,
    subjects: NDArray[np.int64],
    runs: Mapping[str, Runs],
    references: Mapping[str, str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Standing]:
    """Mean AUROC of every arm with its interval, rank and difference to its reference.

    A resample draws patients, then seeds, then draws within each seed, with replacement; the same ones for all arms,
    so that differences are paired. With S seeds the part of the variance that lies between seeds comes out too small
    by the factor (S - 1) / S, as in any bootstrap of a mean of S numbers. Intervals are BCa (Efron 1987) with the
    acceleration of the patients.

    Args:
        truth: (n, L) 0 or 1, NaN = unknown; at least one column shows both classes.
        subjects: (n,) subject number per case.
        runs: arm -> its runs, at least one; arms may lack some.
        references: arm -> arm it is compared with, by the runs that both have.
        num_resamples: R, and number of permutations.
        seed: of both.
    """
    columns = defined_columns(truth)
    assert columns, "a label with both classes"
    weights = _weights(truth, columns, subjects, num_resamples, derive_seed(seed, "patients"))
    found = {arm: _sample(truth, columns, arm_runs, weights) for arm, arm_runs in runs.items()}
    all_units = sorted({unit for sampled in found.values() for unit in sampled.units})
    chance = _unit_weights(all_units, num_resamples, derive_seed(seed, "seeds"))
    whole = len(weights) == 1  # no intervals: resamples kept losing a class
    values = {arm: _mean(sampled, chance, all_units) for arm, sampled in found.items()}
    ranks, rank_intervals = _ranks({arm: value.mean(axis=1) for arm, value in values.items()}, num_resamples, whole)
    standings = {}
    for arm, sampled in found.items():
        value = values[arm]
        mean = value.mean(axis=1)
        labels = {c: (float(value[0, k]), _interval(value[:, k], num_resamples)) for k, c in enumerate(columns)}
        standing = Standing(
            mean=float(mean[0]),
            interval=_interval(mean, num_resamples),
            seed_spread=_seed_spread(sampled),
            rank=ranks[arm],
            rank_interval=rank_intervals.get(arm),
            labels=labels,
        )
        other = references.get(arm)
        if other is not None and other in found:
            standing = _with_difference(standing, truth, subjects, (runs[arm], runs[other]), (sampled, found[other]),
                                        (chance, all_units), num_resamples, seed)  # fmt: skip
        standings[arm] = standing
    return standings


def defined_columns(truth: Array) -> list[int]:
    """Labels of which both classes occur.

    Args:
        truth: (n, L) 0 or 1, NaN = unknown.
    """
    return [c for c in range(truth.shape[1]) if np.unique(truth[~np.isnan(truth[:, c]), c] > 0.5).size == 2]


def exchange_p_value(
    truth: Array, first: Runs, second: Runs, subjects: NDArray[np.int64], *, num_permutations: int, seed: int
) -> float | None:
    """Two-sided p value of equal mean AUROC by exchanging the ranks of two arms within patients, in all runs at once.

    The statistic and the test are those of `metrics.paired.permutation_p_value` (Bandos, Rockette and Gur 2005; Phipson
    and Smyth 2010) with every run of both as a label more. Written out, the difference after an exchange is a sum over
    patients of a number whose sign the exchange flips, so that all permutations are one matrix product.

    Args:
        truth: (n, L) 0 or 1, NaN = unknown.
        first: runs of one arm.
        second: runs of the other; runs that both have are compared.
        subjects: (n,) subject number per case.
        num_permutations: drawn at random.
        seed: of the draws.

    Returns:
        None where they share no run.
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        return None
    columns = defined_columns(truth)
    of_case = np.zeros(len(truth))
    for column in columns:
        for unit in shared:
            of_case += _exchange_parts(truth[:, column], first[unit][:, column], second[unit][:, column])
    _, codes = np.unique(subjects, return_inverse=True)
    parts = np.bincount(codes, of_case) / (len(columns) * len(shared))
    observed = abs(float(parts.sum()))
    rng = np.random.Generator(np.random.PCG64(seed))
    signs = 1.0 - 2.0 * (rng.random((num_permutations, parts.size)) < 0.5)
    # Differences of equal size must not be told apart by rounding.
    reached = 1 + int((np.abs(signs @ parts) >= observed - 1e-12).sum())
    return reached / (num_permutations + 1)


def _exchange_parts(truth: Array, first: Array, second: Array) -> Array:
    """(n,) numbers that sum up to AUROC of `first` minus AUROC of `second`; an exchange in a case flips its number.

    Let w(a, b) be 1 where rank a is above b, one half where equal, else 0. The part of a positive case i is half the
    mean over negative cases j of w(first_i, first_j) + w(first_i, second_j) - w(second_i, first_j) -
    w(second_i, second_j), and of a negative case likewise with the roles changed.
    """
    from scipy.stats import rankdata

    known = ~np.isnan(truth)
    positive = known & (truth > 0.5)
    negative = known & ~positive
    ranks = np.full((2, truth.size), np.nan)
    ranks[0, known], ranks[1, known] = rankdata(first[known]), rankdata(second[known])
    above, below = ranks[:, positive], ranks[:, negative]
    # wins[a, b]: arm a in the positive case against arm b in the negative one, (2, 2, P, N)
    gap = above[:, None, :, None] - below[None, :, None, :]
    wins = np.where(gap > 0, 1.0, np.where(gap == 0, 0.5, 0.0))
    parts = np.zeros(truth.size)
    pairs = 2.0 * above.shape[1] * below.shape[1]
    parts[positive] = (wins[0].sum(axis=0) - wins[1].sum(axis=0)).sum(axis=1) / pairs
    parts[negative] = (wins[:, 0].sum(axis=0) - wins[:, 1].sum(axis=0)).sum(axis=0) / pairs
    return parts


def _weights(truth: Array, columns: list[int], subjects: NDArray[np.int64], resamples: int, seed: int) -> Array:
    """Weights (1 + R + G, n): the cases as they are, R resamples that keep both classes of every label, G jackknife.

    Only the first row where too few resamples keep them.
    """
    ones = np.ones((1, len(truth)))
    if np.unique(subjects).size < 2:
        return ones
    rng = np.random.Generator(np.random.PCG64(seed))
    kept: list[Array] = []
    have = 0
    for _ in range(_MOST_DRAWS):
        drawn = draw_weights(subjects, resamples, rng)
        good = np.ones(len(drawn), np.bool_)
        for column in columns:
            for side in (truth[:, column] > 0.5, truth[:, column] <= 0.5):
                good &= drawn[:, side].sum(axis=1) > 0
        kept.append(drawn[good][: resamples - have])
        have += len(kept[-1])
        if have == resamples:
            return np.concatenate([ones, *kept, jackknife_weights(subjects, _MOST_GROUPS)])
    return ones


def _sample(truth: Array, columns: list[int], runs: Runs, weights: Array) -> _Sampled:
    units = tuple(sorted(runs))
    areas = np.empty((len(weights), len(units), len(columns)))
    for k, column in enumerate(columns):
        known = ~np.isnan(truth[:, column])
        positive, of_known = truth[known, column] > 0.5, weights[:, known]
        step = max(1, _CHUNK_ELEMENTS // max(1, positive.size))
        for u, unit in enumerate(units):
            for row in range(0, len(weights), step):
                chunk = slice(row, row + step)
                areas[chunk, u, k] = weighted_auroc(positive, runs[unit][known, column], of_known[chunk])
    return _Sampled(areas, units)


def _unit_weights(units: list[tuple[int, int]], resamples: int, seed: int) -> Array:
    """Weights (R, U) of the runs: how often a seed was drawn times how often a draw within it."""
    rng = np.random.Generator(np.random.PCG64(seed))
    seeds = sorted({s for s, _ in units})
    times = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples)
    out = np.zeros((resamples, len(units)))
    for position, number in enumerate(seeds):
        own = [u for u, (s, _) in enumerate(units) if s == number]
        within = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
        out[:, own] = times[:, [position]] * within / len(own)
    return out


def _mean(sampled: _Sampled, chance: Array, all_units: list[tuple[int, int]]) -> Array:
    """Mean over runs (1 + R + G, C): seeds count the same, and draws within a seed; in a resample as often as drawn.

    NaN in a resample that drew no run that the arm has.
    """
    seeds = [s for s, _ in sampled.units]
    plain = np.array([1 / seeds.count(s) for s in seeds])
    rows = len(sampled.areas)
    weights = np.tile(plain, (rows, 1))
    if rows > 1:
        weights[1 : 1 + len(chance)] = chance[:, [all_units.index(unit) for unit in sampled.units]]
    total = weights.sum(axis=1)
    summed = np.einsum("ru,ruc->rc", weights, sampled.areas)
    return np.asarray(np.divide(summed, total[:, None], out=np.full_like(summed, np.nan), where=total[:, None] > 0))


def _interval(values: Array, resamples: int) -> Interval | None:
    """The BCa interval of (1 + R + G,) values."""
    if len(values) == 1:
        return None
    drawn = values[1 : 1 + resamples]
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return None
    return bca(drawn, float(values[0]), values[1 + resamples :], 0.95)


def _seed_spread(sampled: _Sampled) -> float | None:
    of_unit = sampled.areas[0].mean(axis=1)
    seeds = np.array([s for s, _ in sampled.units])
    means = [of_unit[seeds == s].mean() for s in np.unique(seeds)]
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def _ranks(
    values: Mapping[str, Array], resamples: int, whole: bool
) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """Rank of every arm, and the ranks that 95 % of the resamples give it; equal values share the better rank."""
    names = list(values)
    table = np.stack([values[name] for name in names])  # (arms, 1 + R + G)

    def rank(column: Array) -> NDArray[np.int64]:
        return np.asarray(1 + (column[None, :] > column[:, None]).sum(axis=1), np.int64)

    ranks = dict(zip(names, rank(table[:, 0]).tolist(), strict=True))
    if whole:
        return ranks, {}
    drawn = table[:, 1 : 1 + resamples]
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    if not drawn.size:
        return ranks, {}
    of_resample = np.stack([rank(column) for column in drawn.T])
    low, high = np.quantile(of_resample, [0.025, 0.975], axis=0, method="inverted_cdf")
    return ranks, {name: (int(low[k]), int(high[k])) for k, name in enumerate(names)}


def _with_difference(
    standing: Standing,
    truth: Array,
    subjects: NDArray[np.int64],
    runs: tuple[Runs, Runs],
    sampled: tuple[_Sampled, _Sampled],
    chance: tuple[Array, list[tuple[int, int]]],
    resamples: int,
    seed: int,
) -> Standing:
    """The same with the difference over the runs that both arms have."""
    shared = tuple(unit for unit in sampled[0].units if unit in sampled[1].units)
    if not shared:
        return standing
    one, other = (
        _mean(_Sampled(s.areas[:, [s.units.index(unit) for unit in shared]], shared), *chance).mean(axis=1)
        for s in sampled
    )
    gap = one - other
    p_value = exchange_p_value(
        truth, *runs, subjects, num_permutations=resamples, seed=derive_seed(seed, "permutations")
    )
    return Standing(
        **{
            **standing.__dict__,
            "difference": float(gap[0]),
            "difference_interval": _interval(gap, resamples),
            "p_value": p_value,
        }
    )
