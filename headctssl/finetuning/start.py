"""Start: where a classifier begins, a checkpoint under its contract or a preset of the dataset's plans."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from headctssl.contract import Contract, InputSpec, StorageRule, require_same
from headctssl.errors import UsageError
from headctssl.families import FamilySettings
from headctssl.planning.plans import changed_encoder, load_plans
from headctssl.settings import JsonValue
from headctssl.training.checkpoint import find_weights, load_weights

__all__ = ["Start", "resolve_start"]

SCRATCH = "scratch"


@dataclass(frozen=True)
class Start:
    """An encoder to begin from and what feeding it takes."""

    config: str  # preset
    method: str  # pretraining method, or 'scratch'
    init: str  # 'scratch' or the hash of the weights
    encoder: FamilySettings
    storage: StorageRule
    input: InputSpec
    file: Path | None  # where the weights lie; None: random weights
    contract: Contract | None = None  # the checkpoint's

    @property
    def pretrained(self) -> bool:
        """Whether weights are loaded."""
        return self.file is not None

    @property
    def tensors(self) -> dict[str, Tensor] | None:
        """The encoder's weights, read anew from the file; None without one."""
        return None if self.file is None else load_weights(self.file, "encoder").part("encoder")

    @property
    def name(self) -> str:
        """INIT of the run folder, e.g. ``dino-vit_tiny-1f2e3d4c`` or ``scratch-vit_tiny``."""
        preset = re.sub(r"[^A-Za-z0-9_.]", "_", self.config)
        if not self.pretrained:
            return f"{SCRATCH}-{preset}"
        method = re.sub(r"[^A-Za-z0-9_.]", "_", self.method)
        return f"{method}-{preset}-{self.init[:8]}"


def resolve_start(
    dataset_id: int, weights: str | Path, config: str | None, encoder_overrides: dict[str, JsonValue]
) -> Start:
    """Find out where a classifier begins.

    Args:
        dataset_id: its plans fit the encoder when it starts from scratch.
        weights: a weights file, a run folder, or 'scratch'.
        config: the preset; needed for scratch, else it must be the checkpoint's.
        encoder_overrides: fields of the encoder's settings, scratch only.

    Raises:
        UsageError: there are no such weights or configuration, scratch without a configuration, or a field of the
            encoder that the plans decide.
        DataError: the weights cannot be read, or the dataset has no plans.
        ContractError: the checkpoint is of another kind or another preset.
    """
    if str(weights) == SCRATCH:
        if config is None:
            known = ", ".join(c.preset for c in load_plans(dataset_id).configurations)
            raise UsageError(
                "Starting from scratch needs the name of an encoder.",
                got="-w scratch without -c",
                expected=f"-c with one of {known}",
                do="Add -c, for example -c vit_tiny.",
            )
        plans = load_plans(dataset_id)
        plan = plans.configuration(config)
        encoder = changed_encoder(plan, encoder_overrides)
        return Start(config, SCRATCH, SCRATCH, encoder, plans.storage, plan.input, None)
    file = find_weights(weights, "encoder")
    contract = load_weights(file, "encoder").contract
    if config is not None:
        require_same("config", config, contract.preset, "Leave out -c: the checkpoint says which encoder it is.")
    return Start(
        contract.preset,
        contract.method,
        contract.weights_hash,
        contract.encoder,
        contract.storage,
        contract.input,
        file,
        contract,
    )
