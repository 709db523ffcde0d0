"""Histogram: what the Hounsfield units of a head alone tell of its labels, the floor under every learnt encoder.

A label that this baseline finds needs no image: mean density, amount of blood or of bone are enough. What an encoder is
worth shows only in what it finds beyond it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headctssl.metrics.classification import one_class_reason
from headctssl.preprocessing.index import CaseIndex, mask_path
from headctssl.volume.mask_store import StoredMask
from headctssl.volume.store import StoredCase

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["EDGES_HU", "HistogramBaseline", "cross_validated", "head_histogram", "histogram_features"]

Array = NDArray[np.float64]

EDGES_HU: tuple[int, ...] = (
    -1024, *range(-200, -20, 20), *range(-20, 100, 4), *range(100, 400, 50), *range(400, 2001, 200), 3072,
)  # fmt: skip
"""Edges of the bins in HU: 4 HU wide between water and clotted blood, wider in fat and bone, one bin of air."""

_LEAST_SHARE = 1e-5  # added before the logarithm: about ten voxels of a head at 1 mm
_STRENGTH = 0.1  # C of the logistic regression: inverse of the L2 penalty on standardised features


def head_histogram(hu: NDArray[np.int16], head: NDArray[np.bool_]) -> Array:
    """Logarithm of the share of the head's voxels in every bin of `EDGES_HU`.

    Args:
        hu: Hounsfield units, any shape.
        head: the same shape, True in the head, at least one voxel.

    Returns:
        (bins,).
    """
    inside = hu[head]
    assert inside.size, "an empty head has no histogram"
    counts = np.histogram(np.clip(inside, EDGES_HU[0], EDGES_HU[-1] - 1), bins=np.array(EDGES_HU))[0]
    return np.asarray(np.log(counts / inside.size + _LEAST_SHARE), np.float64)


def histogram_features(index: CaseIndex, case_ids: Sequence[str]) -> Array:
    """Histograms of stored cases inside their head masks.

    Args:
        index: the stored cases.
        case_ids: which of them, in the order of the rows wanted.

    Returns:
        (n, bins).

    Raises:
        DataError: a case is not stored.
        CorruptCaseError: a case or its head mask is damaged.
    """
    rows = np.empty((len(case_ids), len(EDGES_HU) - 1), np.float64)
    for row, case_id in enumerate(case_ids):
        hu = StoredCase(index.path(index.position(case_id))).read_all()[0]
        head = StoredMask(mask_path(index.folder, case_id, "head")).read_all()[0].astype(np.bool_)
        rows[row] = head_histogram(hu, head)
    return rows


@dataclass(frozen=True)
class HistogramBaseline:
    """One logistic regression per label on standardised histograms (scikit-learn)."""

    models: tuple[Pipeline | float, ...]  # a number where training knew one class only: the same score for every case

    @classmethod
    def fit(cls, features: Array, truth: NDArray[np.floating]) -> HistogramBaseline:
        """Learn from training cases; standardisation is learnt from them too.

        Args:
            features: (n, bins), from `histogram_features`.
            truth: (n, L) 0, 1 or NaN = unknown, left out label by label.
        """
        return cls(tuple(_fit_label(features, np.asarray(column, np.float64)) for column in truth.T))

    def scores(self, features: Array) -> Array:
        """Probability of every label.

        Args:
            features: (n, bins).

        Returns:
            (n, L).
        """
        columns = [
            np.full(len(features), model) if isinstance(model, float) else model.predict_proba(features)[:, 1]
            for model in self.models
        ]
        return np.asarray(np.stack(columns, axis=1), np.float64)


def _fit_label(features: Array, truth: Array) -> Pipeline | float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = ~np.isnan(truth)
    if one_class_reason(truth) is not None:
        return float(truth[known].mean()) if known.any() else 0.5
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=2000))
    return model.fit(features[known], truth[known] > 0.5)


def cross_validated(
    features: Array, truth: NDArray[np.floating], subjects: NDArray[np.int64], *, folds: int = 5, seed: int = 0
) -> Array:
    """Scores of every case by a baseline that learnt from the other subjects only.

    Subjects are dealt label by label so that every part has about as many positive cases: a part with more of them
    leaves fewer to learn from, its scores come out lower, and pooled over parts that pulls an AUROC of chance below .5.

    Args:
        features: (n, bins), from `histogram_features`.
        truth: (n, L) 0, 1 or NaN = unknown.
        subjects: (n,) subject number per case; at least `folds` different ones.
        folds: parts the subjects are dealt into.
        seed: of the dealing.

    Returns:
        (n, L).
    """
    from sklearn.model_selection import StratifiedGroupKFold

    out = np.empty((len(features), truth.shape[1]), np.float64)
    dealing = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for label, column in enumerate(truth.T):
        kinds = np.where(np.isnan(column), 2, column > 0.5).astype(np.int64)  # unknown ones are dealt evenly too
        # A kind with fewer cases than parts cannot be in each of them, and scikit-learn says so of every call.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            parts = list(dealing.split(features, kinds, groups=subjects))
        for train, held_out in parts:
            model = HistogramBaseline.fit(features[train], column[train, None])
            out[held_out, label] = model.scores(features[held_out])[:, 0]
    return out
