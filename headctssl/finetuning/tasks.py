"""Tasks: a classifier on an encoder, and the learner that the training loop runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from headctssl.contract import Contract, HeadSettings, InputSpec
from headctssl.errors import ContractError
from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.outputs import num_outputs
from headctssl.finetuning.settings import TaskSettings
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.method import ParamGroup, split_decay
from headctssl.networks import build_from_settings
from headctssl.networks.encoder import Encoder
from headctssl.networks.heads import ClassifierHead, build_head
from headctssl.planning.run_settings import ViewSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Classifier", "ClassifyTask", "Features", "classifier_from", "with_prior"]

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
        """Outputs (B, O) float32, see `outputs.predictions`, of views (B, C, D, H, W) in [0, 1]."""
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
    head = build_head(contract.head or HeadSettings(), encoder.embed_dim, num_outputs(contract.labels))
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


def with_prior(classifier: Classifier, loss: LabelLoss) -> dict[str, Tensor]:
    """The classifier's state with the effect of the class weights taken off the head's bias.

    Args:
        classifier: as trained.
        loss: what it was trained with; see `LabelLoss.prior_shift`.

    Returns:
        name -> tensor on the CPU, a copy.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
    bias = state["head.linear.bias"]
    state["head.linear.bias"] = bias - loss.prior_shift().to(bias.dtype)
    return state


class ClassifyTask(nn.Module):
    """The learner of full fine-tuning: the whole network, the loss of each type of label where it is known."""

    batch_coupled = False

    def __init__(
        self, classifier: Classifier, loss: LabelLoss, task: TaskSettings, views: ViewSettings, spec: InputSpec
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.task = task
        self.loss = loss
        self._plan = ViewPlan((global_group(views, spec),))

    def views(self) -> ViewPlan:
        """One crop of nearly the whole head."""
        return self._plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """The loss of one batch, averaged over the views of each scan."""
        assert views.labels is not None, "fine-tuning batches carry labels"
        losses = [self.loss(self.classifier(view), views.labels) for view in views.groups["global"]]
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
