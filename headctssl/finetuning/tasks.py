"""Tasks: a classifier on an encoder, and the learner that the training loop runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from headctssl.contract import Contract, HeadSettings, InputSpec
from headctssl.errors import ContractError, TrainingError
from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.layer_rates import encoder_groups
from headctssl.finetuning.outputs import num_outputs
from headctssl.finetuning.phases import Phases
from headctssl.finetuning.settings import TaskSettings
from headctssl.loading.views import ViewGroup, ViewPlan, global_group
from headctssl.methods.method import ParamGroup, split_decay
from headctssl.networks import build_from_settings
from headctssl.networks.encoder import Encoder
from headctssl.networks.heads import ClassifierHead, build_head
from headctssl.networks.lora import lora_layers
from headctssl.networks.scan_attention import pool_scans
from headctssl.planning.run_settings import ViewSettings
from headctssl.types import Clock, EncoderOutput, StepResult, Views

__all__ = ["Classifier", "ClassifyTask", "Features", "classifier_from", "with_prior"]

Weights = Mapping[str, Tensor]


class Features(nn.Module):
    """An encoder reduced to its features, (B, C, D, H, W) -> (B, F), or to its tokens, (B, N, F)."""

    def __init__(self, encoder: Encoder, *, tokens: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        """Features or tokens of a batch of views in [0, 1]."""
        return _read(self.encoder, x, tokens=self.tokens)[0]


class Classifier(nn.Module):
    """Encoder and head; its state has the names of classifier.safetensors, ``encoder.*`` and ``head.*``."""

    def __init__(self, encoder: Encoder, head: ClassifierHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, O) float32, see `outputs.predictions`, of views (B, C, D, H, W) in [0, 1].

        A head that weighs the scans of a study adds the score of each in a last column, see `outputs.pooled_outputs`.
        """
        return self.with_features(x)[0]

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, O) float32 and the encoder's features (B, F), from one pass of the encoder."""
        read, features = self.read(x)
        outputs: Tensor = self.head(read)
        return outputs, features

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads of views, features (B, F) or tokens (B, N, F), and the features in either case."""
        return _read(self.encoder, x, tokens=self.head.reads_tokens)


def _read(encoder: Encoder, x: Tensor, *, tokens: bool) -> tuple[Tensor, Tensor]:
    """Tokens, where they are asked for, or features; and the features."""
    if tokens:
        found: EncoderOutput = encoder(x)
        return found.tokens, found.features
    features = encoder.features_only(x)
    return features, features


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

    Labels that nothing could be learnt of get the same outputs for every case.

    Args:
        classifier: as trained.
        loss: what it was trained with; see `LabelLoss.prior_shift` and `LabelLoss.constant`.

    Returns:
        name -> tensor on the CPU, a copy.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
    bias = state["head.linear.bias"]
    shifted = bias - loss.prior_shift().to(bias.dtype)
    learnt = torch.isnan(loss.constant)
    state["head.linear.bias"] = torch.where(learnt, shifted, loss.constant.to(bias.dtype))
    state["head.linear.weight"][~learnt] = 0.0
    return state


class ClassifyTask(nn.Module):
    """The learner of full fine-tuning and of LoRA: encoder and head, the loss of each type of label where it is known.

    In the first phase of some schedules the encoder rests: it is in eval mode and computes without gradient, so that
    the optimiser finds none to act on and BatchNorm keeps its statistics.

    Args:
        classifier: encoder, with adapters for LoRA, and head.
        loss: of the outputs.
        task: rates of the head and of the layers.
        views: how scans are seen.
        spec: what the encoder sees.
        phases: when the encoder rests; never when None.
        mirror: (L,) for each label the position of the label that it becomes when left and right are swapped; needed
            where views are flipped.
        most_scans: where studies are learnt from, how many scans of one are in a batch at most, as `BagSampler` numbers
            them; None: every scan by itself.
    """

    batch_coupled = False

    def __init__(
        self,
        classifier: Classifier,
        loss: LabelLoss,
        task: TaskSettings,
        views: ViewSettings,
        spec: InputSpec,
        *,
        phases: Phases | None = None,
        mirror: Sequence[int] | None = None,
        most_scans: int | None = None,
    ) -> None:
        super().__init__()
        assert mirror is None or most_scans is None, "scans of one study would be mirrored each by itself"
        assert mirror is not None or not views.flip_lr, "flipped views need the mirror of every label"
        self.classifier = classifier
        self.task = task
        self.loss = loss
        self.phases = phases
        self.mirror = None if mirror is None else list(mirror)
        self._plan = ViewPlan((_left_right(global_group(views, spec)),))
        self.most_scans = most_scans
        self._adapters_seen = False

    @property
    def find_unused_parameters(self) -> bool:
        """Whether some parameters get no gradient in some steps."""
        return self.phases is not None and self.phases.has_frozen

    def scheduled_rate(self, step: int) -> float | None:
        """The learning rate of a step; None: as the training settings say."""
        return None if self.phases is None else self.phases.rate(step)

    def views(self) -> ViewPlan:
        """One crop of nearly the whole head."""
        return self._plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """The loss of one batch, averaged over the views of each scan or study."""
        losses = [
            self.loss(*self._by_study(self._outputs(view, clock), self.labels_of(views, number), views), smooth=True)
            for number, view in enumerate(views.groups["global"])
        ]
        return StepResult(torch.stack(losses).mean())

    def _by_study(self, outputs: Tensor, labels: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """(S, ...) outputs and labels of scans as those of the studies of the batch, whose scans follow each other."""
        if self.most_scans is None:
            return outputs, labels
        number = views.sample_index.to(outputs.device) // self.most_scans
        _, study, sizes = torch.unique(number, return_inverse=True, return_counts=True)  # ascending, as they come
        pooled = pool_scans(outputs[:, :-1], outputs[:, -1], study, len(sizes))
        return pooled, labels[sizes.cumsum(0) - sizes]

    def labels_of(self, views: Views, number: int) -> Tensor:
        """(B, L), the labels as one view shows them: those with a side are swapped where the view is mirrored.

        Args:
            views: of a batch.
            number: which view of each scan.
        """
        assert views.labels is not None, "fine-tuning batches carry labels"
        if self.mirror is None:
            return views.labels
        flipped = views.flipped["global"][number].to(views.labels.device)
        return torch.where(flipped[:, None], views.labels[:, self.mirror], views.labels)

    def _outputs(self, view: Tensor, clock: Clock) -> Tensor:
        rests = self.phases is not None and self.phases.frozen(clock.step)
        self.classifier.encoder.train(self.training and not rests)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not rests):
            read, _ = self.classifier.read(view)
        outputs: Tensor = self.classifier.head(read)
        return outputs

    def before_optimizer_step(self, clock: Clock) -> None:
        """See once that every adapter is reached by the loss.

        Raises:
            TrainingError: the encoder does not call a layer that LoRA adapts, but reads its weight.
        """
        if self._adapters_seen or (self.phases is not None and self.phases.frozen(clock.step)):
            return
        for name, layer in lora_layers(self.classifier):
            if layer.up.grad is None:
                raise TrainingError(
                    "LoRA adapts a layer that has no part in the result.",
                    got=f"no gradient for '{name}'",
                    expected="a layer that the encoder calls",
                    do="Take it out of lora.targets.",
                )
        self._adapters_seen = True

    def after_step(self, clock: Clock) -> None:
        """Nothing."""

    def param_groups(self) -> list[ParamGroup]:
        """The encoder at the scheduled rate, layer by layer, the head at a multiple of it; biases, norms undecayed."""
        return [
            *encoder_groups(self.classifier.encoder, self.task.layer_decay),
            *split_decay(self.classifier.head, self.task.head_lr_scale, name="head"),
        ]


def _left_right(group: ViewGroup) -> ViewGroup:
    """A group that is flipped left and right at most: no head is scanned upside down or with its face behind."""
    return replace(group, flip_probability=(0.0, 0.0, group.flip_probability[2]))
