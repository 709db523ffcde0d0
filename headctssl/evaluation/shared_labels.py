"""Shared labels: the labels that a classifier and a dataset both have, matched by their names and classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import Contract, LabelSpec
from headctssl.dataset.manifest import RawDataset
from headctssl.errors import ContractError

__all__ = ["shared_labels", "truth_of"]


def shared_labels(contract: Contract, raw: RawDataset) -> tuple[list[int], list[str]]:
    """Columns of the classifier's labels that the dataset has too, by name, and notes on the others.

    Args:
        contract: of the classifier.
        raw: the dataset.

    Raises:
        ContractError: it has none of them.
    """
    known: dict[str, LabelSpec] = {spec.name: spec for spec in raw.info.labels}
    columns, notes = [], []
    for column, spec in enumerate(contract.labels):
        if spec.name not in known or known[spec.name].type != spec.type:
            notes.append(f"the classifier's label '{spec.name}' is not a {spec.type} label of the dataset: left out")
        elif (why := _other_classes(spec, known[spec.name])) is not None:
            notes.append(f"the classifier's label '{spec.name}' has other classes than the dataset's: left out, {why}")
        else:
            columns.append(column)
    if not columns:
        raise ContractError(
            "The dataset has none of the classifier's labels.",
            got=", ".join(known) or "no labels",
            expected="one of " + ", ".join(spec.name for spec in contract.labels),
            do="Evaluate on a labelled dataset; headct_predict needs no labels.",
        )
    return columns, notes


def _other_classes(spec: LabelSpec, here: LabelSpec) -> str | None:
    """Why the classes of the dataset cannot be read as those of the classifier; None when they can."""
    unknown = [name for name in here.classes if name not in spec.classes]
    if unknown:
        return f"it knows {', '.join(spec.classes)}, not {', '.join(unknown)}"
    in_order = [name for name in spec.classes if name in here.classes]
    if spec.type == "ordinal" and in_order != list(here.classes):
        return f"their order is {', '.join(here.classes)}, not {', '.join(in_order)}"
    return None


def truth_of(spec: LabelSpec, here: LabelSpec, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Truth in the classifier's positions of classes: classes are the same when their names are.

    Args:
        spec: the classifier's label.
        here: the dataset's.
        values: (n,) as `RawDataset.labels`, NaN = unknown.
    """
    if not spec.has_classes:
        return values
    place = np.array([*(spec.classes.index(name) for name in here.classes), np.nan])
    return place[np.where(np.isnan(values), len(here.classes), values).astype(np.int64)]
