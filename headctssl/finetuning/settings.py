"""Settings: everything a fine-tuning run was decided to do; `derive` decides it."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field

from headctssl.contract import HeadSettings, InputSpec, LabelSpec, StorageRule
from headctssl.families import EncoderSettings
from headctssl.loading.sampler import steps_per_epoch
from headctssl.planning.plans import Decision
from headctssl.planning.run_settings import TrainingSettings, ViewSettings
from headctssl.settings import JsonValue, Settings

__all__ = ["Adaptation", "FinetuneSettings", "TaskSettings"]

Adaptation = Literal["full", "linear"]
Shape = tuple[int, int, int]

_FREE = {"num_workers", "checkpoint_every"}  # of `training`; a continued run may change them


class TaskSettings(Settings):
    """What is particular to fine-tuning."""

    head_lr_scale: float = Field(100.0, gt=0, description="Learning rate of the head over that of the encoder.")
    balance: Literal["weights", "none"] = Field(
        "weights", description="Imbalance: the loss weighs positives over negatives as negatives over positives."
    )
    max_ratio: float = Field(20.0, ge=1, description="Largest weight of one class over the other.")
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    eval_batch_size: int = Field(8, ge=1, description="Scans encoded at once without gradient.")


class FinetuneSettings(Settings):
    """config.json of a fine-tuning run."""

    format: Literal[1] = 1
    stage: Literal["finetune"] = "finetune"
    dataset_ids: tuple[int, ...]
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    labels: tuple[LabelSpec, ...] = Field(description="Labels in the order of the outputs.")
    adapt: Adaptation = Field(description="full: the whole network learns; linear: only the head.")
    few_shots: int | None = Field(None, description="Positive and negative patients per label, all when none.")
    fold: str = Field(description="Number of the fold, or 'all' for every case outside the test set.")
    config: str = Field(description="Encoder preset by name.")
    method: str = Field(description="Pretraining method, or 'scratch'.")
    init: str = Field(description="'scratch', or the weights hash of the checkpoint it begins from.")
    storage: StorageRule
    input: InputSpec
    encoder: EncoderSettings
    head: HeadSettings = HeadSettings()
    read_shape: Shape = Field(description="Voxels (z, y, x) read per scan at storage spacing.")
    training: TrainingSettings
    views: ViewSettings
    task: TaskSettings = TaskSettings()
    num_train: int = Field(ge=1, description="Labelled training cases.")
    num_validation: int = Field(ge=0, description="Labelled validation cases.")
    cases_digest: str = Field(
        "", description="SHA-256 over id, source, labels and part of every case used, first 16 hex digits."
    )
    overrides: tuple[str, ...] = Field((), description="What --set changed, as typed.")
    decisions: tuple[Decision, ...] = ()

    def of_run(self) -> dict[str, JsonValue]:
        """Every setting that a continued run must keep: no reasons, reader processes or intervals of checkpoints."""
        content: dict[str, JsonValue] = self.model_dump(mode="json", exclude={"decisions", "overrides"})
        content["training"] = self.training.model_dump(mode="json", exclude=_FREE)
        return content

    def of_weights(self) -> dict[str, JsonValue]:
        """Every setting that the weights depend on; how often metrics are written is none."""
        training = self.training.model_dump(mode="json", exclude={*_FREE, "log_every"})
        return {**self.of_run(), "training": training}

    def shareable(self) -> dict[str, JsonValue]:
        """`of_weights` without the name of the dataset, which a user may have given a meaning."""
        return {name: value for name, value in self.of_weights().items() if name != "dataset_name"}

    def digest(self) -> str:
        """SHA-256 of `of_weights`, first 16 hex digits."""
        text = json.dumps(self.of_weights(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def epochs(self) -> int:
        """Epochs the run lasts, at least 1."""
        return max(1, round(self.training.num_steps / self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return steps_per_epoch(self.training.samples_per_epoch, self.training.batch_size)
