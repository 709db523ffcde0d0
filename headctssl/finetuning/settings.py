"""Settings: everything a fine-tuning run was decided to do; `derive` decides it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Literal

from pydantic import Field

from headctssl.contract import HeadSettings, InputSpec, LabelSpec, StorageRule
from headctssl.families import EncoderSettings, FamilySettings
from headctssl.finetuning.few_shot import Negatives
from headctssl.loading.sampler import steps_per_epoch
from headctssl.planning.plans import Decision
from headctssl.planning.run_settings import TrainingSettings, ViewSettings
from headctssl.settings import JsonValue, Settings

__all__ = ["Adaptation", "FinetuneSettings", "LoraSettings", "Schedule", "TaskSettings", "token_gb"]

Adaptation = Literal["full", "linear", "attentive", "lora"]
Schedule = Literal["default", "warmup", "sawtooth", "valley"]
Shape = tuple[int, int, int]

_FREE = {"num_workers", "checkpoint_every"}  # of `training`; a continued run may change them


class TaskSettings(Settings):
    """What is particular to fine-tuning."""

    head_lr_scale: float = Field(100.0, gt=0, description="Learning rate of the head over that of the encoder.")
    schedule: Schedule = Field(
        "default",
        description="default, warmup: the whole network learns from the first step; sawtooth, valley: first the head"
        " alone, its rate rising and falling, or falling.",
    )
    head_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the steps in which only the head learns, sawtooth and valley only."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Learning rate of a layer of the encoder over that of the layer after it."
    )
    balance: Literal["weights", "sampling", "none"] = Field(
        "weights",
        description="Imbalance: weights: rare classes weigh more in the loss; sampling: patients of rare classes come"
        " more often; none: as they are.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of a label that is given to the other classes while training."
    )
    max_ratio: float = Field(20.0, ge=1, description="Largest weight of one class over the other.")
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    most_scans: int = Field(
        4, ge=1, description="Scans of a study drawn for a training step at most, head.scans=attention only."
    )
    whitening: float | None = Field(
        None,
        gt=0,
        description="The head learns once more on normalised features whose directions were made to vary alike, and"
        " validation chooses: the share of their mean variance that is added to each before; none: only as they are;"
        " linear only.",
    )
    eval_batch_size: int = Field(8, ge=1, description="Scans encoded at once without gradient.")
    cache_gb: float = Field(
        4.0,
        ge=0,
        description="Tokens of the frozen encoder kept in memory up to this size in GB (10^9 bytes), else computed"
        " again in every epoch; attentive only.",
    )


class LoraSettings(Settings):
    """Low-rank adapters, `--adapt lora`."""

    rank: int = Field(8, ge=1, description="Rank of every adapter.")
    alpha: float = Field(16.0, gt=0, description="Scale of every adapter, times its rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of every adapter.")
    targets: tuple[str, ...] = Field(
        ("qkv", "proj"), min_length=1, description="Adapted linear layers by part of their name; 'mlp' adds the MLP."
    )


class FinetuneSettings(Settings):
    """config.json of a fine-tuning run."""

    format: Literal[1] = 1
    stage: Literal["finetune"] = "finetune"
    dataset_ids: tuple[int, ...]
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    labels: tuple[LabelSpec, ...] = Field(description="Labels in the order of the outputs.")
    adapt: Adaptation = Field(
        description="full: the whole network learns; lora: adapters and head; linear, attentive: only the head."
    )
    few_shots: int | None = Field(None, description="Patients per class of every label, all when none.")
    few_shot_negatives: Negatives = Field(
        "same", description="same: as many negative patients as positive ones; all: every negative patient."
    )
    draw: int = Field(0, ge=0, description="Number of the few-shot draw; the same patients for every encoder.")
    fold: str = Field(description="Number of the fold, or 'none' for every case outside the test set.")
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
    lora: LoraSettings = LoraSettings()
    num_train: int = Field(ge=1, description="Labelled training cases.")
    num_validation: int = Field(ge=0, description="Labelled validation cases.")
    cases_digest: str = Field(
        "",
        description="SHA-256 over id, subject, session, source, labels and part of every case, first 16 hex digits.",
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
    def token_gb(self) -> float:
        """Size in GB of the tokens of all training and validation cases in float32."""
        return token_gb(self.encoder, self.input, self.num_train + self.num_validation)

    @property
    def tokens_per_case(self) -> int:
        """Tokens, or places of the last stage, of a whole head."""
        return _tokens(self.encoder, self.input)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return steps_per_epoch(self.training.samples_per_epoch, self.training.batch_size)


def token_gb(encoder: FamilySettings, spec: InputSpec, cases: int) -> float:
    """Size in GB (10^9 bytes) of the tokens of whole heads in float32.

    Args:
        encoder: gives tokens, or places of its last stage.
        spec: what it sees.
        cases: how many heads.
    """
    return 4e-9 * cases * _tokens(encoder, spec) * encoder.embed_dim


def _tokens(encoder: FamilySettings, spec: InputSpec) -> int:
    return math.prod(n // size for n, size in zip(spec.shape, encoder.token_size, strict=True))
