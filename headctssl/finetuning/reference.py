"""Reference: where the training cases lie in feature space, as a mean and a covariance, and how far others are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from headctssl.errors import DataError
from headctssl.paths import atomic_path

__all__ = ["FEWEST_PATIENTS", "REFERENCE_FILE", "Reference", "fit_reference", "load_reference", "save_reference"]

Array = NDArray[np.float64]

REFERENCE_FILE = "reference.safetensors"
FEWEST_PATIENTS = 30
"""Patients below which no reference is written: a mean of few is not an aggregate, and no covariance either."""

_FEWEST_HELD_OUT = 20  # held-out cases below which the scale comes from cross-fitting
_PARTS = 5
_HEADER = "headctssl_reference"


@dataclass(frozen=True)
class Reference:
    """Mean and covariance of the features of training cases; no case can be read from it."""

    mean: Array  # (F,)
    covariance: Array  # (F, F), shrunk
    scale: float  # 95th percentile of the distances of cases the mean was not taken of
    num_cases: int
    weights_hash: str  # of the classifier

    def distances(self, features: Array) -> Array:
        """Mahalanobis distances (n,) of features (n, F) over the reference's own 95th percentile: 1 is as far as that.

        As an out-of-distribution score: Lee et al. 2018 (arXiv 1807.03888), with one class.
        """
        return _mahalanobis(features, self.mean, self.covariance) / self.scale


def fit_reference(
    features: Array, subjects: NDArray[np.int64], held_out: Array | None, weights_hash: str
) -> Reference | None:
    """Mean, shrunk covariance (Ledoit and Wolf 2004) and scale of the distances.

    The 95th percentile is that of held-out cases, since a mean lies nearer to the cases it was taken of; with fewer
    than 20 of them that of training cases, each fifth measured by the other four.

    Args:
        features: (n, F) of training cases.
        subjects: (n,) subject number per case.
        held_out: (m, F) of validation cases; None: there are none.
        weights_hash: of the classifier.

    Returns:
        None with fewer than 30 patients.
    """
    _, codes = np.unique(subjects, return_inverse=True)
    if codes.size == 0 or codes.max() + 1 < FEWEST_PATIENTS:
        return None
    mean, covariance = _moments(features)
    if held_out is not None and len(held_out) >= _FEWEST_HELD_OUT:
        own = _mahalanobis(held_out, mean, covariance)
    else:
        parts = []
        for part in range(_PARTS):
            inside = codes % _PARTS == part
            parts.append(_mahalanobis(features[inside], *_moments(features[~inside])))
        own = np.concatenate(parts)
    scale = max(float(np.quantile(own, 0.95)), 1e-12)
    return Reference(mean, covariance, scale, len(features), weights_hash)


def _moments(features: Array) -> tuple[Array, Array]:
    from sklearn.covariance import LedoitWolf

    found = LedoitWolf().fit(features)
    # Features that never vary leave the covariance singular.
    floor = 1e-6 * max(float(np.trace(found.covariance_)) / len(found.covariance_), 1e-12)
    return found.location_, found.covariance_ + floor * np.eye(len(found.covariance_))


def _mahalanobis(features: Array, mean: Array, covariance: Array) -> Array:
    away = features - mean
    square = (away * np.linalg.solve(covariance, away.T).T).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(square, 0.0)))


def save_reference(folder: Path, reference: Reference) -> Path:
    """Write reference.safetensors beside a classifier.

    Args:
        folder: of classifier.safetensors.
        reference: what to write.
    """
    header = {
        "format": 1,
        "scale": reference.scale,
        "num_cases": reference.num_cases,
        "weights_hash": reference.weights_hash,
    }
    tensors = {
        "covariance": reference.covariance.astype(np.float32),
        "mean": reference.mean.astype(np.float32),
    }
    path = folder / REFERENCE_FILE
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={_HEADER: json.dumps(header, sort_keys=True)}))
    return path


def load_reference(folder: Path, weights_hash: str) -> Reference | None:
    """The reference beside a classifier; None when there is none.

    Args:
        folder: of classifier.safetensors.
        weights_hash: of the classifier.

    Raises:
        DataError: the file is damaged or belongs to other weights.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="numpy") as handle:
            header = json.loads((handle.metadata() or {})[_HEADER])
            mean, covariance = (handle.get_tensor(name).astype(np.float64) for name in ("mean", "covariance"))
        found = Reference(
            mean, covariance, float(header["scale"]), int(header["num_cases"]), str(header["weights_hash"])
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is not a reference.", got=str(error)[:200], expected="a file of headctssl", do="Remove it."
        ) from None
    if found.weights_hash != weights_hash:
        raise DataError(
            f"{path} belongs to other weights.",
            got=found.weights_hash[:16],
            expected=weights_hash[:16],
            do="Copy the reference that lies beside these weights, or remove it.",
        )
    return found
