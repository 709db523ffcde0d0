"""Outputs: what the columns of a head mean, and the predictions in them: probabilities, classes, numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headctssl.contract import LabelSpec, output_slices

__all__ = ["cumulative_logits", "num_outputs", "pooled_outputs", "predictions", "rank_scores"]

# Legend: n cases, L labels, O outputs of the head, C classes of a label, P predicted columns.


def num_outputs(labels: Sequence[LabelSpec]) -> int:
    """Outputs of a head that predicts these labels."""
    return sum(spec.num_outputs for spec in labels)


def cumulative_logits(outputs: Tensor) -> Tensor:
    """Logits of "above class k" of an ordinal label, falling with k.

    A cumulative link model (McCullagh 1980, section 2): one logit and C - 2 distances between thresholds, each made
    positive by a softplus, so that no class can get a negative probability, whatever the weights.

    Args:
        outputs: (n, C - 1), the logit of "above the first class", then a number per further threshold.

    Returns:
        (n, C - 1), the logit of P(y > k) for k = 0 ... C - 2.
    """
    first, gaps = outputs[:, :1], functional.softplus(outputs[:, 1:])
    return torch.cat([first, first - gaps.cumsum(dim=1)], dim=1)


def pooled_outputs(labels: Sequence[LabelSpec], outputs: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The outputs of studies: those of their scans, weighed by attention; see `pool_scans`.

    A study is computed by itself: it depends on no other, and on the order of its scans only as far as `groups` does,
    which `group_scans` sorts. A study of one scan has that scan's outputs, bit for bit.

    Args:
        labels: of the classifier.
        outputs: (n, O + 1) of a head that scores scans, the score last.
        groups: rows of the scans of each study.

    Returns:
        (s, O) float32 on the CPU.
    """
    width = num_outputs(labels)
    assert outputs.shape[1] == width + 1, "a head that scores scans"
    table = outputs.double().cpu()
    found = torch.zeros(len(groups), width, dtype=torch.float64)
    for study, group in enumerate(groups):
        scans = table[list(group)]
        found[study] = scans[:, width].softmax(dim=0) @ scans[:, :width]
    return found.float()


def predictions(labels: Sequence[LabelSpec], outputs: Tensor, temperature: float = 1.0) -> NDArray[np.float64]:
    """What a head's outputs say, label by label in the columns of `column_slices`.

    Args:
        labels: of the classifier, in the order of its outputs.
        outputs: (n, O), or (n, O + 1) with the score of each scan last, which is not looked at.
        temperature: divides the logits of binary, multiclass and ordinal labels.

    Returns:
        (n, P): the probability of a binary label, the probability of each class, the number in the label's own unit.
    """
    found = []
    for spec, where in zip(labels, output_slices(labels), strict=True):
        raw = outputs[:, where].double().cpu()
        if spec.type == "continuous":
            found.append(raw * (spec.deviation or 1.0) + (spec.mean or 0.0))
        elif spec.type == "ordinal":
            above = torch.sigmoid(cumulative_logits(raw) / temperature)
            certain, never = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
            found.append(torch.cat([certain, above], dim=1) - torch.cat([above, never], dim=1))
        elif spec.type == "multiclass":
            found.append(torch.softmax(raw / temperature, dim=1))
        else:
            found.append(torch.sigmoid(raw / temperature))
    return torch.cat(found, dim=1).numpy()


def rank_scores(spec: LabelSpec, outputs: Tensor) -> NDArray[np.float64]:
    """What cases are ranked by: (n,), or (n, C) per class of a multiclass label; probabilities are not rounded here.

    Args:
        spec: the label.
        outputs: (n, `spec.num_outputs`) of this label.
    """
    raw = outputs.double().cpu()
    if spec.type == "ordinal":
        return torch.sigmoid(cumulative_logits(raw)).sum(dim=1).numpy()
    if spec.type == "multiclass":
        # One class against the rest: the log-odds, which a probability near 1 would round.
        others = [raw[:, [c for c in range(raw.shape[1]) if c != k]].logsumexp(dim=1) for k in range(raw.shape[1])]
        return (raw - torch.stack(others, dim=1)).numpy()
    return raw[:, 0].numpy()
