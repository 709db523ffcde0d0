"""Mirror: what every label becomes when left and right are swapped."""

from __future__ import annotations

from collections.abc import Sequence

from headctssl.contract import LabelSpec
from headctssl.errors import UsageError

__all__ = ["mirror_of"]


def mirror_of(labels: Sequence[LabelSpec]) -> tuple[int, ...]:
    """For each label the position of the one it becomes in a mirrored head; its own where that changes nothing.

    Args:
        labels: that are learnt, in order.

    Raises:
        UsageError: a label does not say, or its mirror is not learnt or is of another type.
    """
    names = [spec.name for spec in labels]
    unsaid = [spec.name for spec in labels if spec.mirror is None]
    if unsaid:
        raise UsageError(
            "Left and right cannot be flipped: nothing says what a label becomes in a mirrored head.",
            got=f"views.flip_lr=true, no laterality of {', '.join(unsaid)}",
            expected='"laterality": "self" or {"mirror": OTHER_LABEL} of every label in dataset.json',
            do="State it there, remove views.flip_lr, or choose other labels with --labels.",
        )
    found = []
    for position, spec in enumerate(labels):
        if spec.mirror == "self":
            found.append(position)
            continue
        if spec.mirror not in names:
            raise UsageError(
                f"Left and right cannot be flipped: the mirror of '{spec.name}' is not learnt.",
                got=f"views.flip_lr=true with the labels {', '.join(names)}",
                expected=f"'{spec.mirror}' among them",
                do=f"Add {spec.mirror} to --labels, or remove views.flip_lr.",
            )
        other = labels[names.index(spec.mirror)]
        if (other.type, other.classes, other.mirror) != (spec.type, spec.classes, spec.name):
            raise UsageError(
                f"Left and right cannot be flipped: '{spec.name}' and '{other.name}' are not each other's mirror.",
                got=f"{spec.name} ({spec.type}) and {other.name} ({other.type}, mirror {other.mirror})",
                expected="two labels of one type with the same classes that name each other",
                do="Correct the laterality in dataset.json, or remove views.flip_lr.",
            )
        found.append(names.index(spec.mirror))
    return tuple(found)
