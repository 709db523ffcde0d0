"""Asked: which settings the user may set for a fine-tuning run; one that would have no effect is refused."""

from __future__ import annotations

from collections.abc import Iterable

from headctssl.errors import UsageError
from headctssl.finetuning.settings import Adaptation

__all__ = ["check_asked"]

_NOT_IN_FROZEN = (
    "views.",
    "lora.",
    "head.kind",
    "task.head_lr_scale",
    "task.validate_every",
    "task.schedule",
    "task.head_share",
    "task.layer_decay",
    "training.accumulation",
    "training.precision",
    "training.compile",
    "training.recompute",
    "training.on_nonfinite",
    "training.nonfinite_limit",
    "training.rewind_every",
    "training.most_rewinds",
    "training.log_every",
    "training.checkpoint_every",
)
"""Without effect where the encoder is frozen and sees unaugmented heads in float32; the adaptation says which head."""

_NEVER = ("views.local_", "views.augment_local")
"""Without effect in fine-tuning, which draws global views only."""

_NOT_IN: dict[Adaptation, tuple[str, ...]] = {
    "full": (*_NEVER, "lora.", "task.cache_gb"),
    "lora": (*_NEVER, "task.cache_gb"),
    "linear": (*_NOT_IN_FROZEN, "task.cache_gb", "head.heads"),
    "attentive": _NOT_IN_FROZEN,
}


def check_asked(keys: Iterable[str], *, adapt: Adaptation, pretrained: bool) -> None:
    """Refuse dotted keys that this run does not have or would ignore.

    Args:
        keys: what `--set` names.
        adapt: what learns.
        pretrained: whether a checkpoint says which encoder it is.

    Raises:
        UsageError: a key does not belong here.
    """
    sections = ("training", "views", "head", "task", "lora", *(() if pretrained else ("encoder",)))
    for key in keys:
        section = key.partition(".")[0]
        if section not in sections:
            known = ", ".join(f"{s}.*" for s in sections)
            hint = " The encoder is fixed by its checkpoint." if section == "encoder" else ""
            raise UsageError(
                f"The setting '{key}' cannot be set for this run.{hint}",
                got=key,
                expected=f"one of {known}",
                do="Remove it, or correct its name.",
            )
        if key.startswith(_NOT_IN[adapt]):
            others = [name for name, refused in _NOT_IN.items() if not key.startswith(refused)]
            elsewhere = f", or use --adapt {' or '.join(others)}" if others else ""
            raise UsageError(
                f"The setting '{key}' has no effect with --adapt {adapt}.",
                got=key,
                expected="a setting that changes this run",
                do=f"Remove it{elsewhere}.",
            )
