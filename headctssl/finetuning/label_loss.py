"""Label loss: the loss of each type of label, masked where it is unknown, weighted, and on one scale."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headctssl.contract import LabelSpec, output_slices
from headctssl.finetuning.balance import sampled_shares
from headctssl.finetuning.outputs import cumulative_logits
from headctssl.finetuning.settings import TaskSettings

__all__ = ["HUBER_DELTA", "LabelLoss", "balancing_weights", "standardised"]

# Legend: B samples, L labels, O outputs of the head, C classes of a label.

HUBER_DELTA = 1.345
"""Standard deviations up to which the loss of a continuous label is quadratic: 95 % efficient on normal errors
(Huber 1964; Holland and Welsch 1977)."""

_LN2 = math.log(2)


class LabelLoss(nn.Module):
    """The mean loss over all entries (case, label), of which the unknown ones count as 0.

    What a scan adds does not depend on what is known of its batch mates, so that a batch gives the same gradient in
    one piece, in several passes and on several processes. A common factor makes up for the unknown share, so that the
    loss of all training cases is a mean over the known entries.

    Every label's loss is scaled so that a prediction that knows nothing loses ln 2, what a probability of one half
    loses under cross-entropy: the labels of one run count alike, whatever their type and number of classes.

    - binary: cross-entropy, weighted by class; one half loses ln 2.
    - multiclass: cross-entropy of the softmax, weighted by class, over ln C / ln 2; equal probabilities lose ln 2.
    - ordinal: mean over the thresholds of the cross-entropy of being above (Li and Lin 2006; CORAL, arXiv 1901.07884,
      equation 4); one half at every threshold loses ln 2.
    - continuous: Huber's loss of the standardised value, scaled; the mean of the training cases loses ln 2 on them.

    Args:
        labels: their types; continuous ones with mean and deviation, see `standardised`.
        truth: (n, L) of the training cases, NaN = unknown; classes by their position.
        task: how imbalance is handled.
        chances: (n,) chance of each case where they are drawn by `balance.sampling_weights`; all alike when None.

    Attributes:
        constant: (O,) on the CPU: the outputs to give every case for labels that training shows one value or none of;
            NaN for all others.
    """

    def __init__(
        self,
        labels: Sequence[LabelSpec],
        truth: NDArray[np.floating],
        task: TaskSettings,
        chances: NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__()
        assert truth.shape[1] == len(labels), "one column per label"
        self.labels = tuple(labels)
        self.where = output_slices(labels)
        self.smoothing = task.label_smoothing
        self.drawn_shift = torch.cat([_drawn_shift(s, truth[:, c], chances) for c, s in enumerate(labels)])
        known = float(np.average((~np.isnan(truth)).mean(axis=1), weights=chances))
        self.known_factor = 1 / known if known > 0 else 1.0
        self.terms = nn.ModuleList(_TERMS[s.type](s, truth[:, c], task) for c, s in enumerate(labels))
        self.constant = torch.cat([_constant(s, truth[:, c]) for c, s in enumerate(labels)])

    def forward(self, outputs: Tensor, truth: Tensor, *, smooth: bool = False) -> Tensor:
        """The loss, a scalar.

        Args:
            outputs: (B, O) of the head.
            truth: (B, L), NaN = unknown.
            smooth: whether labels are smoothed as the task says, which is for training alone.
        """
        return self.entries(outputs, truth, smooth=smooth).mean()

    def entries(self, outputs: Tensor, truth: Tensor, *, smooth: bool = False) -> Tensor:
        """(B, L) float32: the loss of each entry, scaled and weighted; 0 and without a gradient where unknown."""
        share = self.smoothing if smooth else 0.0
        known = ~torch.isnan(truth)
        target = torch.where(known, truth, torch.zeros_like(truth)).float()
        columns = [
            term(outputs[:, where].float(), target[:, column], share)
            for column, (term, where) in enumerate(zip(self.terms, self.where, strict=True))
        ]
        return torch.stack(columns, dim=1) * known * self.known_factor

    def prior_shift(self) -> Tensor:
        """(O,) on the CPU: what weights and draws add to the best outputs: the logarithm of a class's weight.

        Weighting a class by w multiplies its odds by w at the optimum (Elkan 2001, theorem 1 and 2), and so does
        drawing it w times as often. Subtracted from the bias, probabilities follow the shares of the training cases
        again and ranks per output stay. For draws that balance several labels at once this is an approximation: they
        also change how often labels come together.
        """
        terms = [term for term in self.terms if isinstance(term, _Term)]
        return torch.cat([term.shift().cpu() for term in terms]) + self.drawn_shift


def _constant(spec: LabelSpec, values: NDArray[np.floating]) -> Tensor:
    """(outputs of the label,): what to say of every case where training shows no two values; NaN where it shows more.

    Nothing can be learnt of such a label, but by chance its outputs would differ from case to case. They give each
    class (times seen + 1) / (cases + classes), Laplace's rule of succession, and of a number the mean.
    """
    known = values[~np.isnan(values)]
    if known.size and np.ptp(known) > 0:
        return torch.full((spec.num_outputs,), torch.nan)
    if spec.type == "continuous":
        return torch.zeros(1)
    classes = max(2, len(spec.classes))
    shares = (np.bincount(known.astype(np.int64), minlength=classes) + 1.0) / (known.size + classes)
    if spec.type == "multiclass":
        return _float32(np.log(shares))
    above = 1.0 - shares.cumsum()[:-1]
    logits = np.log(above / (1.0 - above))
    # Of an ordinal label the first logit, then what `cumulative_logits` makes the distances of.
    return _float32(np.concatenate([logits[:1], np.log(np.expm1(-np.diff(logits)))]))


def _drawn_shift(spec: LabelSpec, values: NDArray[np.floating], chances: NDArray[np.floating] | None) -> Tensor:
    """(outputs of the label,): the logarithm of how much more often each class is drawn than it comes in the cases.

    0 for numbers, and for ordinal labels, whose thresholds would have to move and must keep their order.
    """
    if chances is None or spec.type not in ("binary", "multiclass"):
        return torch.zeros(spec.num_outputs)
    classes = max(2, len(spec.classes))
    drawn, natural = sampled_shares(values, classes, chances), sampled_shares(values, classes)
    seen = (drawn > 0) & (natural > 0)
    shift = np.where(seen, np.log(np.where(seen, drawn, 1.0) / np.where(seen, natural, 1.0)), 0.0)
    if spec.type == "multiclass":
        return _float32(shift)
    return _float32(shift[1:] - shift[:1]) if seen.all() else torch.zeros(1)


def balancing_weights(truth: NDArray[np.floating], classes: int, task: TaskSettings) -> NDArray[np.float64]:
    """A weight per class: as much rarer a class is than the commonest one, so much more each of its cases counts.

    The ratio is held at `task.max_ratio`; the mean over the known cases is 1, so that balanced and rare classes give a
    loss of one scale. Classes that do not occur weigh as the commonest one, and a label that shows only one class, or
    a `balance` other than 'weights', is not weighted.

    Args:
        truth: (n,) positions of the classes, NaN = unknown.
        classes: how many there are.
        task: how imbalance is handled.
    """
    count = np.bincount(truth[~np.isnan(truth)].astype(np.int64), minlength=classes).astype(np.float64)
    if task.balance != "weights" or (count > 0).sum() < 2:
        return np.ones(classes)
    ratio = np.where(count > 0, np.minimum(count.max() / np.maximum(count, 1), task.max_ratio), 1.0)
    return np.asarray(ratio * count.sum() / (ratio * count).sum())


def standardised(labels: Sequence[LabelSpec], truth: NDArray[np.floating]) -> tuple[LabelSpec, ...]:
    """The labels, continuous ones with the mean and standard deviation of their training cases.

    Args:
        labels: the labels.
        truth: (n, L) of the training cases, NaN = unknown.

    Returns:
        A label whose training cases are all the same, or unknown, gets a deviation of 1.
    """
    found = []
    for column, spec in enumerate(labels):
        known = truth[~np.isnan(truth[:, column]), column].astype(np.float64)
        if spec.type != "continuous":
            found.append(spec)
            continue
        spread = float(known.std()) if known.size else 0.0
        middle = float(known.mean()) if known.size else 0.0
        found.append(spec.model_copy(update={"mean": middle, "deviation": spread if spread > 0 else 1.0}))
    return tuple(found)


class _Term(nn.Module, ABC):
    """The loss of one label, from its outputs (B, O) and its known truth (B,)."""

    @abstractmethod
    def forward(self, outputs: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """(B,): the loss of each case; a share `smoothing` of the label goes to the other classes."""

    @abstractmethod
    def shift(self) -> Tensor:
        """(O,) what its weights add to the best outputs."""


class _Binary(_Term):
    """Weighted binary cross-entropy."""

    def __init__(self, spec: LabelSpec, truth: NDArray[np.floating], task: TaskSettings) -> None:
        super().__init__()
        self.register_buffer("weights", _float32(balancing_weights(truth, 2, task)))
        self.weights: Tensor  # (2,): negative, positive

    def forward(self, outputs: Tensor, target: Tensor, smoothing: float) -> Tensor:
        loss = functional.binary_cross_entropy_with_logits(
            outputs[:, 0], _smoothed(target, smoothing), reduction="none"
        )
        return loss * torch.where(target > 0.5, self.weights[1], self.weights[0])

    def shift(self) -> Tensor:
        return torch.log(self.weights[1:] / self.weights[:1])


class _Multiclass(_Term):
    """Weighted cross-entropy of the softmax, over the entropy of a uniform guess."""

    def __init__(self, spec: LabelSpec, truth: NDArray[np.floating], task: TaskSettings) -> None:
        super().__init__()
        self.register_buffer("weights", _float32(balancing_weights(truth, len(spec.classes), task)))
        self.weights: Tensor  # (C,)
        self.scale = _LN2 / math.log(len(spec.classes))

    def forward(self, outputs: Tensor, target: Tensor, smoothing: float) -> Tensor:
        place = target.long()
        loss = functional.cross_entropy(outputs, place, reduction="none", label_smoothing=smoothing)
        return loss * self.weights[place] * self.scale

    def shift(self) -> Tensor:
        return torch.log(self.weights)


class _Ordinal(_Term):
    """Mean cross-entropy of being above each class but the last.

    It is not weighted: to take weights off again, thresholds would have to move, and they must keep their order.
    """

    def __init__(self, spec: LabelSpec, truth: NDArray[np.floating], task: TaskSettings) -> None:
        super().__init__()
        self.thresholds = len(spec.classes) - 1

    def forward(self, outputs: Tensor, target: Tensor, smoothing: float) -> Tensor:
        above = target[:, None] > torch.arange(self.thresholds, device=target.device)
        logits = cumulative_logits(outputs)
        wanted = _smoothed(above.to(logits.dtype), smoothing)
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return loss.mean(dim=1)

    def shift(self) -> Tensor:
        return torch.zeros(self.thresholds)


class _Continuous(_Term):
    """Huber's loss of the standardised value, over what predicting the mean loses on the training cases."""

    def __init__(self, spec: LabelSpec, truth: NDArray[np.floating], task: TaskSettings) -> None:
        super().__init__()
        assert spec.mean is not None, "standardised by `standardised`"
        assert spec.deviation is not None, "standardised by `standardised`"
        self.mean, self.deviation = spec.mean, spec.deviation
        known = torch.from_numpy(truth[~np.isnan(truth)].astype(np.float64))
        null = self._huber(torch.zeros_like(known), known).mean() if len(known) else torch.zeros(())
        self.scale = _LN2 / float(null) if null > 0 else 1.0

    def _huber(self, outputs: Tensor, target: Tensor) -> Tensor:
        value = (target - self.mean) / self.deviation
        return functional.huber_loss(outputs, value, reduction="none", delta=HUBER_DELTA)

    def forward(self, outputs: Tensor, target: Tensor, smoothing: float) -> Tensor:
        return self._huber(outputs[:, 0], target) * self.scale

    def shift(self) -> Tensor:
        return torch.zeros(1)


_TERMS: dict[str, type[_Binary | _Multiclass | _Ordinal | _Continuous]] = {
    "binary": _Binary,
    "multiclass": _Multiclass,
    "ordinal": _Ordinal,
    "continuous": _Continuous,
}


def _smoothed(target: Tensor, share: float) -> Tensor:
    """0 or 1 drawn towards one half, as for two classes in arXiv 1512.00567, section 7."""
    return target * (1.0 - share) + 0.5 * share


def _float32(values: NDArray[np.float64]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
