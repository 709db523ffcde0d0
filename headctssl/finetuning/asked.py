"""Asked: which settings the user may set for a fine-tuning run; one that would have no effect is refused."""

from __future__ import annotations

from collections.abc import Iterable

from headctssl.errors import UsageError

__all__ = ["check_asked"]

_NOT_IN_LINEAR = (
    "views.",
    "task.head_lr_scale",
    "task.validate_every",
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
"""Without effect where features are computed once, in float32, from unaugmented heads."""

_NOT_IN_FULL = ("views.local_", "views.augment_local")
"""Without effect in full fine-tuning, which draws global views only."""


def check_asked(keys: Iterable[str], *, linear: bool, pretrained: bool) -> None:
    """Refuse dotted keys that this run does not have or would ignore.

    Args:
        keys: what `--set` names.
        linear: whether only a linear head learns.
        pretrained: whether a checkpoint says which encoder it is.

    Raises:
        UsageError: a key does not belong here.
    """
    sections = ("training", "views", "head", "task", *(() if pretrained else ("encoder",)))
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
        if key.startswith(_NOT_IN_LINEAR if linear else _NOT_IN_FULL):
            raise UsageError(
                f"The setting '{key}' has no effect with --adapt {'linear' if linear else 'full'}.",
                got=key,
                expected="a setting that changes this run",
                do="Remove it, or use --adapt full." if linear and "local" not in key else "Remove it.",
            )
