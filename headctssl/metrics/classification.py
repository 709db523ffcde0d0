"""Classification: AUROC, AUPRC and other metrics per label, unknown labels left out, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec
from headctssl.metrics.calibration import log_loss, reliability
from headctssl.metrics.chance import chance_p_value
from headctssl.metrics.class_metrics import class_metrics
from headctssl.metrics.delong import areas, logit_interval, moderated_interval
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.metrics.number_metrics import number_metrics
from headctssl.metrics.operating import OPERATING, operating_points
from headctssl.metrics.statistics import bootstrap, weighted_auprc, weighted_auroc
from headctssl.seeding import derive_seed

__all__ = ["auprc", "auroc", "label_metrics", "mean_auroc", "metric_rows", "one_class_reason", "other_rows"]

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
        score: (n,) probability or predicted number; multiclass and ordinal (n, C) probabilities of the classes.
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
    if label.has_classes:
        return class_metrics(base, label, truth, score, subjects, num_resamples, label_seed)
    return number_metrics(base, truth, score, subjects, num_resamples, label_seed)


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
    area, variance = float(found.auroc[0]), float(found.covariance[0, 0])
    patients = [np.unique(subjects[positive == side]).size for side in (True, False)]
    update["auroc_bca_ci"] = update.pop("auroc_ci", None)
    update["auroc_ci"] = moderated_interval(area, variance, *patients) if np.unique(subjects).size > 1 else None
    update["auroc_delong_ci"] = logit_interval(area, variance)
    update["auroc_p_value"] = chance_p_value(positive, score, subjects, found, seed=seed)
    note = None if result.reason is None else f"no bootstrap interval: {result.reason}"
    curve = reliability(positive, score)
    update |= {
        "threshold": _THRESHOLD,
        "ece": curve.ece,
        "log_loss": log_loss(positive, score),
        "reliability": tuple(zip(curve.predicted, curve.observed, curve.count, strict=True)),
        "resamples": result.resamples,
        "redrawn": result.redrawn,
        "reason": note,
    }
    return base.model_copy(update={**counts, **update})


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def metric_rows(labels: Sequence[LabelMetrics]) -> list[tuple[str, ...]]:
    """Rows (label, positive/negative, AUROC, AUPRC, note) of binary labels for the printed table."""
    return [
        (
            m.name,
            f"{m.n_positive}/{m.n_negative}",
            _cell(m.auroc, m.auroc_ci),
            _cell(m.auprc, m.auprc_ci),
            m.reason or "",
        )
        for m in labels
    ]


def other_rows(labels: Sequence[LabelMetrics]) -> list[tuple[str, ...]]:
    """Rows (label, type, cases, metrics, note) of the other labels for the printed table."""
    return [(m.name, m.type, str(m.n_known), _other_text(m), m.reason or "") for m in labels]


def _other_text(m: LabelMetrics) -> str:
    shown: tuple[tuple[str, float | None, tuple[float, float] | None], ...]
    if m.type == "multiclass":
        shown = (("AUROC", m.auroc, m.auroc_ci), ("balanced accuracy", m.balanced_accuracy, m.balanced_accuracy_ci))
    elif m.type == "ordinal":
        shown = (("kappa", m.quadratic_kappa, m.quadratic_kappa_ci), ("MAE", m.mae, m.mae_ci))
    else:
        shown = (("MAE", m.mae, m.mae_ci), ("R2", m.r2, m.r2_ci), ("Spearman", m.spearman, m.spearman_ci))
    return ", ".join(f"{name} {_cell(value, interval)}" for name, value, interval in shown)


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
