"""Tasks: a classifier on an encoder, its masked and weighted loss, and the learner that the training loop runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headctssl.contract import Contract, HeadSettings, InputSpec
from headctssl.errors import ContractError
from headctssl.finetuning.settings import TaskSettings
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.method import ParamGroup, split_decay
from headctssl.networks import build_from_settings
from headctssl.networks.encoder import Encoder
from headctssl.networks.heads import ClassifierHead, build_head
from headctssl.planning.run_settings import ViewSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Classifier", "ClassifyTask", "Features", "class_weights", "classifier_from", "masked_loss", "with_prior"]

Weights = Mapping[str, Tensor]


def read(encoder: Encoder, head: ClassifierHead, x: Tensor) -> Tensor:
    """What a head reads of views (B, C, D, H, W) in [0, 1]: features (B, F), or tokens (B, N, F)."""
    tokens: Tensor = encoder(x).tokens if head.reads_tokens else encoder.features_only(x)
    return tokens


class Features(nn.Module):
    """An encoder reduced to its features, (B, C, D, H, W) -> (B, F)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Features of a batch of views in [0, 1]."""
        return self.encoder.features_only(x)


class Classifier(nn.Module):
    """Encoder and head; its state has the names of classifier.safetensors, ``encoder.*`` and ``head.*``."""

    def __init__(self, encoder: Encoder, head: ClassifierHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, L) float32 of views (B, C, D, H, W) in [0, 1]."""
        logits: Tensor = self.head(read(self.encoder, self.head, x))
        return logits


def classifier_from(contract: Contract, tensors: Weights) -> Classifier:
    """The classifier of a weights file, in eval mode.

    Args:
        contract: of kind classifier.
        tensors: names beginning with ``encoder.`` or ``head.``.

    Raises:
        ContractError: the tensors do not fit the contract.
    """
    encoder = build_from_settings(contract.encoder)
    head = build_head(contract.head or HeadSettings(), encoder.embed_dim, len(contract.labels))
    classifier = Classifier(encoder, head)
    own = {name: tuple(tensor.shape) for name, tensor in classifier.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != given:
        wrong = min(name for name, _ in set(own.items()) ^ set(given.items()))
        raise ContractError(
            f"The weights do not fit the classifier of their own contract, first at '{wrong}'.",
            got=given.get(wrong, "no such tensor"),
            expected=own.get(wrong, "no such tensor"),
            do="Use the version of headctssl that wrote them.",
        )
    classifier.load_state_dict(dict(tensors))
    return classifier.eval()


def class_weights(labels: NDArray[np.floating], task: TaskSettings) -> Tensor:
    """Weights of the negative and the positive term of the loss per label.

    Their ratio is negatives over positives, held within 1/max and max; their mean over the known entries is one over
    the share of known entries, so that the loss of a balanced and of a rare label have the same scale, and the loss
    of all training cases is a mean over the known entries. A label with one class is not weighted.

    Args:
        labels: (n, L) 0 or 1 of the training cases, NaN = unknown.
        task: how imbalance is handled.

    Returns:
        (L, 2) float32: negative, positive.
    """
    positives = (labels > 0.5).sum(axis=0).astype(np.float64)
    negatives = (labels <= 0.5).sum(axis=0).astype(np.float64)
    usable = (positives > 0) & (negatives > 0) & (task.balance == "weights")
    ratio = np.where(usable, negatives / np.maximum(positives, 1), 1.0)
    ratio = np.clip(ratio, 1 / task.max_ratio, task.max_ratio)
    scale = np.where(usable, (positives + negatives) / np.maximum(positives * ratio + negatives, 1), 1.0)
    scale *= labels.size / max(1, int((~np.isnan(labels)).sum()))
    return torch.tensor(np.stack([scale, scale * ratio], axis=1), dtype=torch.float32)


def masked_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over all entries, of which the unknown ones count as 0.

    What a scan adds does not depend on what is known of its batch mates, so that a batch gives the same gradient in
    one piece, in several passes and on several processes. The weights make up for the unknown share.

    Args:
        logits: (B, L) float32.
        labels: (B, L) 0 or 1, NaN = unknown.
        weights: (L, 2), from `class_weights`.
    """
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, torch.zeros_like(labels))
    weight = torch.where(target > 0.5, weights[:, 1], weights[:, 0]) * known
    loss = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return (loss * weight).mean()


def with_prior(classifier: Classifier, weights: Tensor) -> dict[str, Tensor]:
    """The classifier's state with the effect of the class weights taken off the head's bias.

    Weighting the positive term by w shifts the best logit by log w (Elkan 2001, theorem 1 and 2), so
    log w is subtracted: ranks per label stay, probabilities follow the share of positives again.

    Args:
        classifier: as trained.
        weights: (L, 2), from `class_weights`.

    Returns:
        name -> tensor on the CPU, a copy.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
    shift = torch.log(weights[:, 1] / weights[:, 0]).cpu()
    state["head.linear.bias"] = state["head.linear.bias"] - shift.to(state["head.linear.bias"].dtype)
    return state


class ClassifyTask(nn.Module):
    """The learner of full fine-tuning: the whole network, masked weighted cross-entropy."""

    batch_coupled = False

    def __init__(
        self, classifier: Classifier, weights: Tensor, task: TaskSettings, views: ViewSettings, spec: InputSpec
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.task = task
        self.register_buffer("weights", weights)
        self.weights: Tensor
        self._plan = ViewPlan((global_group(views, spec),))

    def views(self) -> ViewPlan:
        """One crop of nearly the whole head."""
        return self._plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """The loss of one batch, averaged over the views of each scan."""
        assert views.labels is not None, "fine-tuning batches carry labels"
        losses = [masked_loss(self.classifier(view), views.labels, self.weights) for view in views.groups["global"]]
        return StepResult(torch.stack(losses).mean())

    def before_optimizer_step(self, clock: Clock) -> None:
        """Nothing."""

    def after_step(self, clock: Clock) -> None:
        """Nothing."""

    def param_groups(self) -> list[ParamGroup]:
        """The encoder at the scheduled rate, the head at a multiple of it; biases and norms without decay."""
        return [
            *split_decay(self.classifier.encoder, name="encoder"),
            *split_decay(self.classifier.head, self.task.head_lr_scale, name="head"),
        ]
