"""Ensemble: the classifiers of several folds as one, by the mean of their predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headctssl.contract import Contract, HeadSettings
from headctssl.errors import ContractError, UsageError
from headctssl.finetuning.outputs import num_outputs, pooled_outputs, predictions
from headctssl.finetuning.tasks import Classifier, classifier_from
from headctssl.metrics.studies import AGGREGATES, Aggregate
from headctssl.training.checkpoint import WEIGHTS_FILES, find_weights, load_weights

__all__ = ["Ensemble", "Members", "find_classifiers", "open_ensemble"]


@dataclass(frozen=True)
class Ensemble:
    """One or several classifiers of the same labels that see the same input."""

    files: tuple[Path, ...]
    contracts: tuple[Contract, ...]

    @property
    def contract(self) -> Contract:
        """What feeding any of them takes, and the labels."""
        return self.contracts[0]

    @property
    def weights_hash(self) -> str:
        """The hash of the weights; of several the SHA-256 of their hashes."""
        if len(self.contracts) == 1:
            return self.contract.weights_hash
        return hashlib.sha256("".join(c.weights_hash for c in self.contracts).encode()).hexdigest()

    @property
    def temperature(self) -> float:
        """The mean of the temperatures."""
        return float(np.mean([c.temperature for c in self.contracts]))

    def as_one(self) -> Contract:
        """The contract with the hash and the temperature of all together."""
        return self.contract.model_copy(update={"weights_hash": self.weights_hash, "temperature": self.temperature})

    @property
    def weighs_scans(self) -> bool:
        """Whether the classifiers weigh the scans of a study by attention."""
        return _head(self.contract).scans == "attention"

    @property
    def width(self) -> int:
        """Outputs of one classifier, with the score of the scan where it weighs scans."""
        return num_outputs(self.contract.labels) + self.weighs_scans

    def choose(self, aggregate: Aggregate | None) -> Aggregate | None:
        """How scans become a study's prediction: as asked for, else the classifiers' own way if they have learnt one.

        Args:
            aggregate: what is asked for; None: nothing.

        Raises:
            UsageError: it is unknown, or attention that the classifiers have not learnt.
        """
        if aggregate is None:
            return "attention" if self.weighs_scans else None
        if aggregate not in AGGREGATES or (aggregate == "attention" and not self.weighs_scans):
            unknown = aggregate not in AGGREGATES
            raise UsageError(
                "Scans cannot be brought together this way."
                if unknown
                else "The classifier has not learnt to weigh the scans of a study.",
                got=aggregate if unknown else "--aggregate attention, a classifier made without head.scans=attention",
                expected=" or ".join(AGGREGATES if unknown else AGGREGATES[:2]),
                do="Correct --aggregate."
                if unknown
                else "Use --aggregate mean or max, or fine-tune with --set head.scans=attention.",
            )
        return aggregate

    def build(self, device: torch.device, *, features: bool = False) -> Members:
        """The networks, in eval mode.

        Args:
            device: where to put them.
            features: whether they give their features too.
        """
        members = [classifier_from(c, load_weights(f, "classifier").tensors) for f, c in self._pairs()]
        return Members(members, features=features).to(device).eval()

    def predictions(self, outputs: Tensor, *, calibrated: bool = True) -> NDArray[np.float64]:
        """Mean over the classifiers of what each predicts: probabilities of binary labels and classes, numbers.

        Args:
            outputs: (n, M * width), one classifier after the other.
            calibrated: whether each divides its outputs by its temperature.
        """
        parts = [
            predictions(c.labels, outputs[:, self._of(k)], c.temperature if calibrated else 1.0)
            for k, c in enumerate(self.contracts)
        ]
        return np.asarray(np.mean(parts, axis=0))

    def of_studies(self, outputs: Tensor, groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Mean over the classifiers of what each predicts of studies, whose scans it weighs by its own attention.

        Args:
            outputs: (n, M * width) of scans.
            groups: rows of the scans of each study, from `group_scans`.
        """
        assert self.weighs_scans, "see `choose`"
        parts = [
            predictions(c.labels, pooled_outputs(c.labels, outputs[:, self._of(k)], groups), c.temperature)
            for k, c in enumerate(self.contracts)
        ]
        return np.asarray(np.mean(parts, axis=0))

    def _of(self, number: int) -> slice:
        return slice(number * self.width, (number + 1) * self.width)

    def _pairs(self) -> list[tuple[Path, Contract]]:
        return list(zip(self.files, self.contracts, strict=True))


class Members(nn.Module):
    """Classifiers side by side: (B, C, D, H, W) -> (B, M * `Ensemble.width`), then the features of each if asked for.

    Args:
        members: the classifiers.
        features: whether the features of each encoder follow the outputs of all.
    """

    def __init__(self, members: Sequence[Classifier], *, features: bool) -> None:
        super().__init__()
        self.classifiers = tuple(members)
        self.members = nn.ModuleList(members)  # the same, for `to` and `eval`
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all members, float32."""
        found = [classifier.with_features(x) for classifier in self.classifiers]
        parts = [outputs for outputs, _ in found]
        if self.features:
            parts += [features.float() for _, features in found]
        return torch.cat(parts, dim=1)


def _head(contract: Contract) -> HeadSettings:
    return contract.head or HeadSettings()


def find_classifiers(path: Path | str) -> list[Path]:
    """The classifier that `-w` means, or those of all its folds when it is the folder of a task with several.

    Raises:
        UsageError: there is none.
    """
    folder = Path(path).expanduser()
    name = WEIGHTS_FILES["classifier"]
    # A classifier of every case (`fold_none`) is no fold of the others: it is named by its own folder.
    folds = [f for f in folder.glob("fold_*") if (f / name).is_file() and f.name.removeprefix("fold_").isdecimal()]
    if not folder.is_dir() or (folder / name).is_file() or len(folds) < 2:
        return [find_weights(path, "classifier")]
    return [fold / name for fold in sorted(folds, key=lambda f: int(f.name.removeprefix("fold_")))]


def open_ensemble(path: Path | str) -> Ensemble:
    """Open the classifier or the classifiers that `-w` means.

    Raises:
        UsageError: there is none.
        DataError: a file is damaged.
        ContractError: one is no classifier, or they differ in labels or in what they must be fed.
    """
    files = find_classifiers(path)
    contracts = [load_weights(file, "classifier").contract for file in files]
    first = contracts[0]
    for file, contract in zip(files, contracts, strict=True):
        for field in ("storage", "input"):
            if getattr(contract, field) != getattr(first, field):
                raise ContractError(
                    f"The classifiers of {path} cannot be fed alike: '{field}' differs.",
                    got=f"{file.parent.name}: {getattr(contract, field)}",
                    expected=f"{files[0].parent.name}: {getattr(first, field)}",
                    do="Name one of them with -w.",
                )
        if _head(contract).scans != _head(first).scans:
            raise ContractError(
                f"Some of the classifiers of {path} weigh the scans of a study, others do not.",
                got=f"{file.parent.name}: head.scans={_head(contract).scans}",
                expected=f"{files[0].parent.name}: head.scans={_head(first).scans}",
                do="Name one of them with -w.",
            )
        names = [(spec.name, spec.type, spec.classes) for spec in contract.labels]
        if names != [(spec.name, spec.type, spec.classes) for spec in first.labels]:
            raise ContractError(
                f"The classifiers of {path} have different labels.",
                got=f"{file.parent.name}: {', '.join(spec.name for spec in contract.labels)}",
                expected=f"{files[0].parent.name}: {', '.join(spec.name for spec in first.labels)}",
                do="Name one of them with -w.",
            )
    return Ensemble(tuple(files), tuple(contracts))
