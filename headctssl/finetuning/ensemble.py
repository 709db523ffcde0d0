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

from headctssl.contract import Contract
from headctssl.errors import ContractError
from headctssl.finetuning.outputs import num_outputs, predictions
from headctssl.finetuning.tasks import Classifier, classifier_from
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
            outputs: (n, M * O), one classifier after the other.
            calibrated: whether each divides its outputs by its temperature.
        """
        width = num_outputs(self.contract.labels)
        parts = [
            predictions(c.labels, outputs[:, k * width : (k + 1) * width], c.temperature if calibrated else 1.0)
            for k, c in enumerate(self.contracts)
        ]
        return np.asarray(np.mean(parts, axis=0))

    def _pairs(self) -> list[tuple[Path, Contract]]:
        return list(zip(self.files, self.contracts, strict=True))


class Members(nn.Module):
    """Classifiers side by side: (B, C, D, H, W) -> (B, M * O), then the features of each where asked for.

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
        names = [(spec.name, spec.type, spec.classes) for spec in contract.labels]
        if names != [(spec.name, spec.type, spec.classes) for spec in first.labels]:
            raise ContractError(
                f"The classifiers of {path} have different labels.",
                got=f"{file.parent.name}: {', '.join(spec.name for spec in contract.labels)}",
                expected=f"{files[0].parent.name}: {', '.join(spec.name for spec in first.labels)}",
                do="Name one of them with -w.",
            )
    return Ensemble(tuple(files), tuple(contracts))
