"""Judging: how good a classifier is on the validation cases, one number over labels of all types."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.outputs import rank_scores
from headctssl.metrics.concordance import concordance

__all__ = ["NO_VERDICT", "Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """What validation says of an epoch."""

    score: float | None  # mean over the labels, in [0, 1]; None where it is defined for none
    loss: float
    line: dict[str, float]  # for metrics.jsonl


NO_VERDICT = Verdict(None, 0.0, {})
"""Without validation cases."""


def judge(outputs: Tensor, truth: NDArray[np.float32], loss: LabelLoss) -> Verdict:
    """The mean score over the labels where it is defined, and the training loss.

    The score of a label is the share of pairs of cases with different truth that are ranked right, .5 by chance, 1 at
    best: for a binary label that is the AUROC, for a multiclass label the mean AUROC of one class against the rest,
    for ordinal and continuous labels the concordance index (Harrell et al. 1982). So labels of every type count alike.

    Args:
        outputs: (n, O) float32 of the head.
        truth: (n, L), NaN = unknown.
        loss: the training loss; it has the labels.
    """
    scores: dict[str, list[float]] = {}
    for column, (spec, where) in enumerate(zip(loss.labels, loss.where, strict=True)):
        known = ~np.isnan(truth[:, column])
        label, ranked = truth[known, column].astype(np.float64), rank_scores(spec, outputs[:, where])[known]
        if spec.type == "multiclass":
            found = [concordance(np.equal(label, k), ranked[:, k]) for k in range(len(spec.classes))]
            defined = [value for value in found if value is not None]
            value = float(np.mean(defined)) if defined else None
        else:
            value = concordance(label, ranked)
        if value is not None:
            scores.setdefault(spec.type, []).append(value)
    device = next(loss.buffers(), outputs).device
    line = {"validation_loss": float(loss(outputs.to(device), torch.from_numpy(truth).to(device)))}
    if "binary" in scores:
        line["validation_auroc"] = float(np.mean(scores["binary"]))
    everything = [value for values in scores.values() for value in values]
    score = float(np.mean(everything)) if everything else None
    if score is not None and set(scores) != {"binary"}:
        line["validation_score"] = score
    return Verdict(score, line["validation_loss"], line)
