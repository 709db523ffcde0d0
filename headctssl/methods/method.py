"""Method: the contract between an objective and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_of
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Method", "ParamGroup", "check_views", "no_decay_names", "split_decay"]

Requirement = Literal["mask", "keep", "pyramid", "segmentation"]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a weight decay and a learning-rate factor."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0  # factor on the scheduled learning rate
    weight_decay: bool = True  # False: exempt


class Method(nn.Module, ABC):
    """A self-supervised objective. One folder per method holds its subclass.

    Life of a method: constructed with its settings, `build` attaches the encoder, then for every
    optimiser step the loop calls `training_step`, backward, `before_optimizer_step`, clip, step,
    `after_step`. State that must survive a resume lives in parameters and buffers.
    """

    Settings: ClassVar[type[BaseSettings]]
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    batch_coupled: ClassVar[bool] = False  # True: the loss couples samples, accumulation above 1 is refused

    def __init__(self, settings: BaseSettings) -> None:
        super().__init__()
        self.settings = settings

    @classmethod
    @abstractmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser the objective was published with, for one kind of encoder."""

    @abstractmethod
    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """Attach the encoder and make heads, teacher and tables. Random numbers come from torch's global generator."""

    @abstractmethod
    def views(self) -> ViewPlan:
        """Which views of a scan the objective needs."""

    @abstractmethod
    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """The loss of one batch."""

    def before_optimizer_step(self, clock: Clock) -> None:
        """Change gradients before clipping and the step; nothing by default."""

    def after_step(self, clock: Clock) -> None:
        """Update what follows the weights (EMA); nothing by default."""

    def param_groups(self) -> list[ParamGroup]:
        """All trainable parameters, each exactly once; biases, norms, tokens, tables without weight decay."""
        return split_decay(self)

    @abstractmethod
    def encoder_to_export(self) -> Encoder:
        """The encoder whose weights users get."""


def check_views(plan: ViewPlan, encoder: Encoder) -> None:
    """Refuse views that the encoder cannot take.

    Raises:
        UsageError: a side is not a multiple of the token size, or an encoder with stages is left with a single
            place, which its norms cannot normalise.
    """
    for group in plan.groups:
        try:
            d, h, w = grid_of(group.shape, encoder.token_size)
        except ValueError as error:
            problem = str(error)
        else:
            if encoder.drops_tokens or d * h * w > 1:
                continue
            problem = f"{group.shape} voxels leave one place"
        raise UsageError(
            f"The {group.name} views do not fit the encoder.",
            got=problem,
            expected=f"sides that are multiples of {encoder.token_size}"
            + ("" if encoder.drops_tokens else ", more than one place in all"),
            do="Set views.local_shape to fit." if group.name != "global" else "Choose another preset with -c.",
        )


def no_decay_names(module: nn.Module) -> set[str]:
    """Names of trainable parameters that weight decay must not touch.

    Biases and norms (one dimension or fewer) and whatever the module that owns it lists in its
    attribute ``no_weight_decay`` (class token, registers, position table, mask token, prototypes' scale).
    """
    listed: set[str] = set()
    for prefix, child in module.named_modules():
        for name in getattr(child, "no_weight_decay", ()):
            listed.add(f"{prefix}.{name}" if prefix else name)
    return {n for n, p in module.named_parameters() if p.requires_grad and (p.ndim <= 1 or n in listed)}


def split_decay(module: nn.Module, lr_scale: float = 1.0, name: str = "") -> list[ParamGroup]:
    """Two groups of the module's trainable parameters: with and without weight decay."""
    exempt = no_decay_names(module)
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    with_decay = tuple(p for n, p in named if n not in exempt)
    without = tuple(p for n, p in named if n in exempt)
    prefix = f"{name}." if name else ""
    groups = [
        ParamGroup(f"{prefix}decay", with_decay, lr_scale, True),
        ParamGroup(f"{prefix}no_decay", without, lr_scale, False),
    ]
    return [g for g in groups if g.parameters]
