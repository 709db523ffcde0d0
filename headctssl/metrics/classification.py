"""Classification: AUROC, AUPRC and other metrics per label, unknown labels left out, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec
from headctssl.metrics.calibration import reliability
from headctssl.metrics.delong import areas, logit_interval, score_interval
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.metrics.operating import OPERATING, operating_points
from headctssl.metrics.statistics import bootstrap, weighted_auprc, weighted_auroc
from headctssl.seeding import derive_seed

__all__ = ["auprc", "auroc", "label_metrics", "mean_auroc", "metric_rows", "one_class_reason"]

Array = NDArray[np.float64]

_THRESHOLD = 0.5  # of a probability that is called positive


def one_class_reason(truth: Array) -> str | None:
    """Why a ranking metric of a binary label is undefined, or None when it is defined.

    Args:
        truth: (n,) 0 or 1, NaN = unknown.
    """
    known = truth[~np.isnan(truth)]
    if known.size == 0:
        return "no case with a known label"
    positives = int((known > 0.5).sum())
    if positives == 0:
        return "no positive case"
    if positives == known.size:
        return "no negative case"
    return None


def auroc(truth: Array, score: Array) -> float | None:
    """Area under the ROC curve over the known cases (scikit-learn); None when one class is missing.

    Args:
        truth: (n,) 0 or 1, NaN = unknown.
        score: (n,) higher = more likely positive.
    """
    from sklearn.metrics import roc_auc_score

    if one_class_reason(truth) is not None:
        return None
    known = ~np.isnan(truth)
    return float(roc_auc_score(truth[known] > 0.5, score[known]))


def auprc(truth: Array, score: Array) -> float | None:
    """Average precision over the known cases (scikit-learn); None when one class is missing.

    Args:
        truth: (n,) 0 or 1, NaN = unknown.
        score: (n,) higher = more likely positive.
    """
    from sklearn.metrics import average_precision_score

    if one_class_reason(truth) is not None:
        return None
    known = ~np.isnan(truth)
    return float(average_precision_score(truth[known] > 0.5, score[known]))


def label_metrics(
    label: LabelSpec,
    truth: Array,
    score: Array,
    subjects: NDArray[np.int64],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> LabelMetrics:
    """All metrics of one label with 95 % intervals over patients.

    Args:
        label: name and type.
        truth: (n,) NaN = unknown; binary 0 or 1, multiclass and ordinal the class index, continuous a number.
        score: (n,) probability or predicted number; multiclass (n, classes) probabilities.
        subjects: (n,) subject number per case.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap; the label's name is mixed in.
    """
    known = ~np.isnan(truth)
    truth, score, subjects = truth[known], score[known], subjects[known]
    base = LabelMetrics(name=label.name, type=label.type, n_known=int(known.sum()), n_unknown=int((~known).sum()))
    label_seed = derive_seed(seed, label.name, "bootstrap")
    if label.type == "binary":
        return _binary(base, truth, score, subjects, num_resamples, label_seed)
    if label.type == "multiclass":
        return _multiclass(base, truth, score, subjects, num_resamples, label_seed)
    return _numeric(base, truth, score, subjects, num_resamples, label_seed)


def mean_auroc(
    truth: Array, score: Array, subjects: NDArray[np.int64], *, num_resamples: int = 2000, seed: int = 0
) -> tuple[float | None, tuple[float, float] | None]:
    """Mean AUROC over the binary labels where it is defined, with its 95 % interval.

    One draw of patients serves all labels, so that the interval holds their correlation.

    Args:
        truth: (n, L) 0, 1 or NaN.
        score: (n, L).
        subjects: (n,) subject number per case.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    columns = [c for c in range(truth.shape[1]) if one_class_reason(truth[:, c]) is None]
    if not columns:
        return None, None
    value = float(np.mean([auroc(truth[:, c], score[:, c]) for c in columns]))
    known = [~np.isnan(truth[:, c]) for c in columns]

    def statistic(weights: Array) -> Array:
        parts = [
            weighted_auroc(truth[k, c] > 0.5, score[k, c], weights[:, k]) for c, k in zip(columns, known, strict=True)
        ]
        return np.asarray(np.mean(parts, axis=0))

    result = bootstrap(statistic, subjects, num_resamples=num_resamples, seed=derive_seed(seed, "mean auroc"))
    return value, result.intervals[0] if result.reason is None else None


def _binary(
    base: LabelMetrics, truth: Array, score: Array, subjects: NDArray[np.int64], resamples: int, seed: int
) -> LabelMetrics:
    positive = truth > 0.5
    counts = {"n_positive": int(positive.sum()), "n_negative": int((~positive).sum())}
    reason = one_class_reason(truth)
    if reason is not None:
        return base.model_copy(update={**counts, "reason": reason})

    def statistic(weights: Array) -> Array:
        ranks = [weighted_auroc(positive, score, weights), weighted_auprc(positive, score, weights)]
        return np.concatenate([np.stack(ranks, axis=1), operating_points(positive, score, weights, _THRESHOLD)], axis=1)

    names = ("auroc", "auprc", *OPERATING)
    values = statistic(np.ones((1, truth.size)))[0]
    update: dict[str, object] = {name: _or_none(float(v)) for name, v in zip(names, values, strict=True)}
    result = bootstrap(statistic, subjects, num_resamples=resamples, seed=seed)
    update |= {f"{name}_ci": ci for name, ci in zip(names, result.intervals, strict=False)}
    found = areas(positive, score[None], subjects)
    update["auroc_delong_ci"] = logit_interval(float(found.auroc[0]), float(found.covariance[0, 0]))
    note = None if result.reason is None else f"no interval: {result.reason}"
    if result.intervals and result.intervals[0] is None:
        patients = [np.unique(subjects[positive == side]).size for side in (True, False)]
        update["auroc_ci"] = score_interval(float(found.auroc[0]), *patients)
        note = "the same AUROC in every resample: its interval is Newcombe's score interval"
    curve = reliability(positive, score)
    update |= {
        "threshold": _THRESHOLD,
        "ece": curve.ece,
        "reliability": tuple(zip(curve.predicted, curve.observed, curve.count, strict=True)),
        "resamples": result.resamples,
        "redrawn": result.redrawn,
        "reason": note,
    }
    return base.model_copy(update={**counts, **update})


def _multiclass(
    base: LabelMetrics, truth: Array, score: Array, subjects: NDArray[np.int64], resamples: int, seed: int
) -> LabelMetrics:
    """One-versus-rest AUROC averaged over the classes that occur."""
    classes = [c for c in range(score.shape[1]) if one_class_reason((truth == c).astype(np.float64)) is None]
    if not classes:
        return base.model_copy(update={"reason": "fewer than two classes occur"})
    value = float(np.mean([auroc((truth == c).astype(np.float64), score[:, c]) for c in classes]))

    def statistic(weights: Array) -> Array:
        return np.asarray(np.mean([weighted_auroc(truth == c, score[:, c], weights) for c in classes], axis=0))

    result = bootstrap(statistic, subjects, num_resamples=resamples, seed=seed)
    return base.model_copy(
        update={
            "auroc": value,
            "auroc_ci": result.intervals[0] if result.reason is None else None,
            "resamples": result.resamples,
            "redrawn": result.redrawn,
            "reason": None if result.reason is None else f"no interval: {result.reason}",
        }
    )


def _numeric(
    base: LabelMetrics, truth: Array, score: Array, subjects: NDArray[np.int64], resamples: int, seed: int
) -> LabelMetrics:
    """Spearman's rho and mean absolute error; R2 too for continuous labels."""
    if truth.size < 3 or np.ptp(truth) == 0:
        return base.model_copy(update={"reason": "fewer than three known cases, or all the same"})
    functions: list[Callable[[Array, Array], float]] = [_spearman, _mae]
    names = ["spearman", "mae"]
    if base.type == "continuous":
        functions.append(_r2)
        names.append("r2")

    def statistic(weights: Array) -> Array:
        rows = [np.repeat(np.arange(truth.size), row.astype(np.int64)) for row in weights]
        return np.array([[f(truth[i], score[i]) for f in functions] for i in rows])

    result = bootstrap(statistic, subjects, num_resamples=resamples, seed=seed)
    update: dict[str, object] = {name: _or_none(f(truth, score)) for name, f in zip(names, functions, strict=True)}
    if result.reason is None:
        update |= {f"{name}_ci": ci for name, ci in zip(names, result.intervals, strict=True)}
    else:
        update["reason"] = f"no interval: {result.reason}"
    return base.model_copy(update={**update, "resamples": result.resamples, "redrawn": result.redrawn})


def _spearman(truth: Array, score: Array) -> float:
    from scipy.stats import rankdata

    a, b = rankdata(truth), rankdata(score)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _mae(truth: Array, score: Array) -> float:
    return float(np.abs(truth - score).mean())


def _r2(truth: Array, score: Array) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return float("nan") if spread == 0 else 1.0 - float(((truth - score) ** 2).sum()) / spread


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def metric_rows(labels: Sequence[LabelMetrics]) -> list[tuple[str, ...]]:
    """Rows (label, known +/-, AUROC, AUPRC or other) of the printed table."""
    rows: list[tuple[str, ...]] = []
    for m in labels:
        if m.type in ("binary", "multiclass"):
            counts = f"{m.n_positive}/{m.n_negative}" if m.type == "binary" else str(m.n_known)
            rows.append((m.name, counts, _cell(m.auroc, m.auroc_ci), _cell(m.auprc, m.auprc_ci), m.reason or ""))
        else:
            text = f"Spearman {_cell(m.spearman, m.spearman_ci)}, MAE {_cell(m.mae, m.mae_ci)}"
            rows.append((m.name, str(m.n_known), text, "", m.reason or ""))
    return rows


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
