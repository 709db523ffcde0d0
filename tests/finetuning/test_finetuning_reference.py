"""Tests of finetuning/reference.py and calibrate.py: aggregates of training features, distances, the temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from headctssl.contract import LabelSpec
from headctssl.errors import DataError
from headctssl.finetuning.calibrate import calibrate
from headctssl.finetuning.reference import (
    FEWEST_PATIENTS,
    REFERENCE_FILE,
    fit_reference,
    load_reference,
    save_reference,
)


def features(n=120, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)) + 3


def test_distances_are_mahalanobis_over_what_95_percent_keep(tmp_path):
    train, fresh = features(), features(400, 0)[120:]
    reference = fit_reference(train, np.arange(120), fresh[:100], "h")
    fitted = LedoitWolf().fit(train)
    inverse = np.linalg.inv(fitted.covariance_)
    slow = np.array([mahalanobis(row, fitted.location_, inverse) for row in fresh])
    assert reference.distances(fresh) * reference.scale == pytest.approx(slow, rel=1e-4)
    assert reference.scale == pytest.approx(np.quantile(slow[:100], 0.95), rel=1e-4)
    assert (reference.distances(fresh[100:]) > 1).mean() < 0.15
    assert (reference.distances(fresh[100:] + 20) > 1).all()
    save_reference(tmp_path, reference)
    again = load_reference(tmp_path, "h")
    assert again.distances(fresh) == pytest.approx(reference.distances(fresh), rel=1e-3)
    with pytest.raises(DataError, match="other weights"):
        load_reference(tmp_path, "g")
    (tmp_path / REFERENCE_FILE).write_bytes(b"broken")
    with pytest.raises(DataError, match="not a reference"):
        load_reference(tmp_path, "h")
    assert load_reference(tmp_path / "nowhere", "h") is None


def test_few_patients_leave_no_reference_and_few_held_out_cases_are_replaced_by_cross_fitting():
    train = features()
    assert fit_reference(train, np.arange(120) % (FEWEST_PATIENTS - 1), None, "h") is None
    crossed = fit_reference(train, np.arange(120), train[:5], "h")
    # A mean lies nearer to its own cases: the scale must not be taken of them.
    own = fit_reference(train, np.arange(120), train, "h")
    assert crossed.scale > own.scale
    constant = np.c_[train, np.ones(120)]
    assert np.isfinite(fit_reference(constant, np.arange(120), None, "h").distances(constant)).all()


def test_nothing_of_a_case_is_in_the_file(tmp_path):
    train = features().astype(np.float32)
    path = save_reference(tmp_path, fit_reference(train.astype(np.float64), np.arange(120), None, "h"))
    content = path.read_bytes()
    assert len(content) < 1000
    assert not any(row.tobytes()[:12] in content for row in train)


def test_one_temperature_for_labels_of_all_types():
    labels = (
        LabelSpec(name="b"),
        LabelSpec(name="m", type="multiclass", classes=("x", "y", "z")),
        LabelSpec(name="age", type="continuous", mean=50.0, deviation=10.0),
    )
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (3000, 5))
    shown = np.exp(honest[:, 1:4]) / np.exp(honest[:, 1:4]).sum(axis=1, keepdims=True)
    truth = np.stack(
        [
            rng.random(3000) < 1 / (1 + np.exp(-honest[:, 0])),
            (rng.random((3000, 1)) > shown.cumsum(axis=1)).sum(axis=1).clip(max=2),
            rng.normal(50, 10, 3000),
        ],
        axis=1,
    ).astype(np.float64)
    truth[::7, 0] = np.nan
    found = calibrate(labels, torch.from_numpy(2.5 * honest), truth)
    assert found.temperature == pytest.approx(2.5, rel=0.08)
    assert "log loss went from" in found.note
    few = calibrate(labels, torch.from_numpy(honest[:4]), truth[:4])
    assert few.temperature == 1.0
    assert "fewer than 10" in few.note
    one_class = calibrate(labels[:1], torch.from_numpy(honest[:, :1]), np.ones((3000, 1)))
    assert one_class.temperature == 1.0
