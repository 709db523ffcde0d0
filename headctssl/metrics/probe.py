"""Probe: what frozen features tell of labels: nearest neighbours, a linear readout, an attentive one on tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headctssl.metrics.classification import one_class_reason

__all__ = ["attentive_scores", "knn_scores", "linear_scores"]

# Legend: n training cases, m cases to score, C channels, N tokens, L labels.

Array = NDArray[np.float64]

_NEIGHBOURS = 20
_TEMPERATURE = 0.07
_STRENGTHS = tuple(float(v) for v in 10.0 ** np.arange(-4.0, 6.0))
"""L2 penalties of the linear probe that leave-one-out chooses among, on standardised features. Weak ones are needed
where features have nearly all of their variance in a few directions and say what they know in others."""
_STEPS, _RATE, _DECAY = 60, 0.05, 0.1  # of the attentive probe, full batch


def knn_scores(train: Array, labels: NDArray[np.floating], held_out: Array) -> Array:
    """Share of positives among the nearest training cases, weighted by exp(cosine / 0.07).

    DINO's protocol (arXiv 2104.14294, appendix A: 20 neighbours), but on features standardised over the training
    cases: heads look much alike, and what all have in common would leave every cosine near 1.

    Args:
        train: (n, C) features.
        labels: (n, L) 0, 1 or NaN = unknown, left out label by label.
        held_out: (m, C) features.

    Returns:
        (m, L); 0.5 where no training case is known.
    """
    one, other = _unit_pair(train, held_out)
    cosines = other @ one.T
    out = np.full((len(held_out), labels.shape[1]), 0.5)
    for column in range(labels.shape[1]):
        known = np.flatnonzero(~np.isnan(labels[:, column]))
        if not known.size:
            continue
        near = np.argsort(-cosines[:, known], axis=1, kind="stable")[:, :_NEIGHBOURS]
        weights = np.exp((np.take_along_axis(cosines[:, known], near, 1) - 1.0) / _TEMPERATURE)
        out[:, column] = (weights * (labels[known, column] > 0.5)[near]).sum(1) / weights.sum(1)
    return out


def linear_scores(train: Array, labels: NDArray[np.floating], held_out: Array) -> Array:
    """A linear readout of every label: least squares with the L2 penalty that leave-one-out finds best.

    scikit-learn's RidgeCV on standardised features: in closed form, so that it costs milliseconds and has no setting
    to choose (regularised least-squares classification, Rifkin 2003). AUROC needs a ranking, not probabilities.

    Args:
        train: (n, C) features, n at least 2.
        labels: (n, L) 0, 1 or NaN = unknown, left out label by label.
        held_out: (m, C) features.

    Returns:
        (m, L); the same number for all cases where training knows one class only.
    """
    from sklearn.linear_model import RidgeCV

    mean, scale = _moments(train)
    inputs, queries = (train - mean) / scale, (held_out - mean) / scale
    out = np.zeros((len(held_out), labels.shape[1]))
    usable = np.array([one_class_reason(column) is None for column in np.asarray(labels, np.float64).T], bool)
    known = ~np.isnan(labels)
    # Labels that are known of the same cases are solved together.
    for pattern in np.unique(known[:, usable], axis=1).T if usable.any() else ():
        columns = np.flatnonzero(usable & (known == pattern[:, None]).all(0))
        model = RidgeCV(alphas=_STRENGTHS, alpha_per_target=True)
        model.fit(inputs[pattern], labels[pattern][:, columns] > 0.5)
        out[:, columns] = model.predict(queries).reshape(len(queries), -1)
    return out


def attentive_scores(train: Tensor, labels: NDArray[np.floating], held_out: Tensor) -> Array:
    """An attentive readout of every label: a learnt query weighs the tokens, a linear layer reads their mean.

    One query per label; all begin at zero, that is, as the mean of the tokens, so that nothing is drawn at random.
    It finds what sits in a few places, which a mean over the head dilutes (attentive probing: arXiv 2202.03026,
    section 3.3; V-JEPA, arXiv 2404.08471, appendix D, here with a single layer).

    Args:
        train: (n, N, C) tokens, any float type.
        labels: (n, L) 0, 1 or NaN = unknown.
        held_out: (m, N, C) tokens.

    Returns:
        (m, L) logits.
    """
    with torch.enable_grad(), torch.autocast(train.device.type, enabled=False):
        mean = train.float().mean((0, 1))
        scale = (train.float() - mean).square().mean((0, 1)).sqrt().clamp_min(1e-6)
        tokens = (train.float() - mean) / scale
        target = torch.from_numpy(np.nan_to_num(np.asarray(labels, np.float32))).to(tokens.device)
        weight = _balance(np.asarray(labels, np.float64)).to(tokens.device)
        both = torch.zeros(2 * target.shape[1], tokens.shape[2], device=tokens.device, requires_grad=True)
        offset = torch.zeros(target.shape[1], device=tokens.device, requires_grad=True)
        optimizer = torch.optim.AdamW([both, offset], _RATE, weight_decay=_DECAY)
        for _ in range(_STEPS):
            logits = _attend(tokens, both, offset)
            loss = functional.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's method
            optimizer.step()
    with torch.no_grad(), torch.autocast(train.device.type, enabled=False):
        scores = _attend((held_out.float() - mean) / scale, both, offset)
    return np.asarray(scores.double().cpu().numpy())


def _attend(tokens: Tensor, both: Tensor, offset: Tensor) -> Tensor:
    """Logits (n, L) of tokens (n, N, C); `both` (2 L, C) are the queries and what is read, one pass over the tokens."""
    found = functional.linear(tokens, both) * tokens.shape[2] ** -0.5
    heat, values = found.chunk(2, dim=2)  # (n, N, L) each; reading a mean is the mean of what is read
    logits: Tensor = (torch.softmax(heat, dim=1) * values).sum(1) + offset
    return logits


def _balance(labels: Array) -> Tensor:
    """Weights (n, L) that add up to one half per class and label; 0 where a label is unknown or has one class."""
    positive, negative = labels > 0.5, labels <= 0.5  # both False for NaN
    counts = np.stack([positive.sum(0), negative.sum(0)])
    usable = (counts > 0).all(0)
    each = 0.5 / np.maximum(counts, 1) * usable
    return torch.from_numpy((positive * each[0] + negative * each[1]).astype(np.float32))


def _moments(train: Array) -> tuple[Array, Array]:
    """Mean and standard deviation per channel, 1 where a channel does not vary."""
    scale = train.std(0)
    return train.mean(0), np.where(scale > 1e-12, scale, 1.0)


def _unit_pair(train: Array, held_out: Array) -> tuple[Array, Array]:
    """Both standardised by the training cases and brought to length 1."""
    mean, scale = _moments(train)
    parts = [(rows - mean) / scale for rows in (train, held_out)]
    one, other = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in parts)
    return one, other
