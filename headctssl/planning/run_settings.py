"""Run settings: everything a pretraining run was decided to do, stored as its config.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SerializeAsAny, field_validator

from headctssl.contract import InputSpec, StorageRule
from headctssl.planning.plans import Decision
from headctssl.presets import EncoderSettings
from headctssl.settings import Settings

__all__ = ["ChosenCases", "Estimate", "MonitorSettings", "RunSettings", "TrainingSettings", "ViewSettings"]

Shape = tuple[int, int, int]
Range = tuple[float, float]


class TrainingSettings(Settings):
    """The optimiser's side of a run."""

    num_steps: int = Field(ge=1, description="Optimiser steps in all.")
    samples_per_epoch: int = Field(ge=1, description="Scans seen per epoch, over all processes.")
    batch_size: int = Field(ge=1, description="Scans per optimiser step, over all processes and accumulation.")
    accumulation: int = Field(1, ge=1, description="Forward passes per optimiser step.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float = Field(gt=0, description="Peak learning rate as used.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the last step.")
    schedule: Literal["cosine", "poly"] = Field("cosine", description="Decay after warm-up; poly has exponent 0.9.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from 0.")
    weight_decay: float = Field(0.04, ge=0, description="Weight decay at the first step; biases, norms, tokens exempt.")
    weight_decay_end: float = Field(0.04, ge=0, description="Weight decay at the last step, reached by a cosine.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW betas, each at least 0 and below 1.")
    momentum: float = Field(0.99, ge=0, lt=1, description="SGD Nesterov momentum.")
    clip_norm: float | None = Field(3.0, gt=0, description="Largest gradient norm; none switches clipping off.")
    seed: int = Field(0, ge=0, description="Seed of every random number of the run.")
    precision: Literal["bf16", "fp16", "float32"] = Field("float32", description="Autocast type of the forward pass.")
    recompute: bool = Field(
        False,
        description="Whether transformer blocks are computed again in the backward pass instead of being kept: less "
        "memory, a third more work.",
    )
    compile: bool = Field(
        False,
        description="Whether transformer blocks of the family vit are compiled; never in deterministic mode. On a CPU "
        "it gains 1 to 12 % of a block in bf16; on a GPU it was not measured.",
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    log_every: int = Field(1, ge=1, description="Steps between lines of metrics.jsonl.")
    num_workers: int = Field(1, ge=0, description="Reader processes; 0 reads in the training process.")
    on_nonfinite: Literal["stop", "rewind"] = Field(
        "stop",
        description="What follows nonfinite_limit steps in a row whose loss or gradient is not finite: the run stops, "
        "or goes on with the weights of an earlier checkpoint and the next scans.",
    )
    nonfinite_limit: int = Field(10, ge=1, description="Steps in a row that were not finite before that follows.")
    rewind_every: int = Field(200, ge=1, description="Steps between the checkpoints that a rewind goes back to.")
    most_rewinds: int = Field(3, ge=1, description="Rewinds in a run; the next one stops it.")
    deterministic: bool = Field(
        False, description="Whether every operation on a GPU gives the same bits each time, slower; a CPU always does."
    )

    @field_validator("betas")
    @classmethod
    def _is_below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("two numbers of 0 or more and below 1")
        return value


class ViewSettings(Settings):
    """How views are drawn. Sizes are linear shares of the field of view."""

    global_count: int = Field(2, ge=0, description="Global views per scan.")
    global_scale: Range = Field((0.5, 1.0), description="Side of a global crop over the field of view, per axis.")
    local_count: int = Field(0, ge=0, description="Local views per scan.")
    local_scale: Range = Field((0.29, 0.5), description="Side of a local crop over the field of view, per axis.")
    local_shape: Shape = Field((48, 48, 48), description="Voxels (z, y, x) of a local view.")
    base_grid: int = Field(
        0, ge=0, description="Rows and columns of a grid of views as large as local ones, for methods that have one."
    )
    flip_lr: bool = Field(False, description="Whether left and right may be flipped.")
    flip_probability: float = Field(0.2, ge=0, le=1, description="Chance of a flip along each allowed axis.")
    rotate_probability: float = Field(0.0, ge=0, le=1, description="Chance of a rotation.")
    rotate_degrees: float = Field(10.0, ge=0, le=45, description="Largest rotation about each axis in degrees.")
    window_probability: float = Field(0.0, ge=0, le=1, description="Chance that the windows are moved and stretched.")
    window_shift: float = Field(0.1, ge=0, le=1, description="Largest move of a window's level, in its width.")
    window_stretch: float = Field(
        0.2, ge=0, lt=1, description="Largest share by which a window's width grows or shrinks."
    )
    shift_probability: float = Field(0.5, ge=0, le=1, description="Chance of an intensity shift after windowing.")
    shift: float = Field(0.2, ge=0, le=1, description="Largest intensity shift, in units of the window.")
    blur_probability: Range = Field((0.2, 0.0), description="Chance of a blur in global view 1 and 2.")
    blur_sigma: Range = Field((0.5, 1.0), description="Standard deviation of the blur in voxels of the view.")
    gamma_probability: Range = Field((0.0, 0.2), description="Chance of a gamma change in global view 1 and 2.")
    gamma: Range = Field((0.2, 1.0), description="Exponent of the gamma change.")
    noise_probability: float = Field(0.0, ge=0, le=1, description="Chance of added Gaussian noise.")
    noise_sigma: float = Field(0.02, ge=0, description="Largest standard deviation of the noise, in windows.")
    focus_anatomy: float = Field(
        0.33, ge=0, le=1, description="Chance that a view is centred in the anatomy mask, in scans that have one."
    )
    augment_local: bool = Field(
        True, description="Whether local views get flips, rotations, window changes and intensity shifts too."
    )

    @field_validator("global_scale", "local_scale")
    @classmethod
    def _is_share(cls, value: Range) -> Range:
        low, high = value
        if not 0 < low <= high <= 1:
            raise ValueError("two shares of the field of view: 0 < smallest <= largest <= 1")
        return value


class MonitorSettings(Settings):
    """What is watched while training."""

    every: int = Field(50, ge=1, description="Steps between looks at the features of a batch (feature std, RankMe).")
    probe_cases: int = Field(
        0, ge=0, description="Labelled cases, never of the test set, that probes learn from and are scored on; 0: none."
    )
    probe_every: int = Field(
        1000, ge=1, description="Steps between probes; there is one before the first step and after the last, too."
    )
    attentive: bool = Field(True, description="Whether probes also read the tokens through learnt attention.")
    views: int = Field(
        0,
        ge=0,
        description="Views drawn of each scan of a batch for LiDAR, alignment and uniformity, 2 or more; 0 leaves them "
        "out.",
    )
    layer_gradients: bool = Field(False, description="Whether looks also give the gradient norm of every layer.")
    on_collapse: Literal["warn", "stop"] = Field(
        "warn",
        description="What follows signs of collapse: a warning that names cause and cure, or the end of the run.",
    )

    @field_validator("views")
    @classmethod
    def _is_pair(cls, value: int) -> int:
        if value == 1:
            raise ValueError("0, or 2 and more: views of a scan are compared")
        return value


class Estimate(Settings):
    """What the run is expected to take on this machine."""

    step_seconds: float = Field(ge=0, description="Seconds per optimiser step.")
    scans_per_second: float = Field(ge=0)
    memory_gb: float = Field(ge=0, description="Peak memory of one process in GB (10^9 bytes).")
    hours: float = Field(ge=0, description="Hours for all steps.")


class ChosenCases(Settings):
    """Which cases an expression over their columns picked."""

    expression: str = Field(description="The expression of --where, as typed.")
    num_cases: int = Field(ge=0, description="Cases it picked.")
    of_cases: int = Field(ge=0, description="Cases it picked them from.")
    digest: str = Field(description="SHA-256 over dataset and id of the picked cases, first 16 hex digits.")


class RunSettings(Settings):
    """config.json of a pretraining run."""

    format: Literal[1] = 1
    stage: Literal["pretrain"] = "pretrain"
    dataset_ids: tuple[int, ...]
    plans_name: str = "plans"
    method_name: str
    config: str = Field(description="Encoder preset by name.")
    init: str = Field("scratch", description="'scratch', or the weights hash of the checkpoint it began from.")
    pretrain_on: Literal["train", "all"] = Field("train", description="'all' uses the test cases too.")
    where: ChosenCases | None = Field(None, description="What --where picked; none when it was not given.")
    storage: StorageRule
    input: InputSpec
    encoder: EncoderSettings
    read_shape: Shape = Field(description="Voxels (z, y, x) read per scan at storage spacing.")
    training: TrainingSettings
    views: ViewSettings
    monitor: MonitorSettings = MonitorSettings()
    method: SerializeAsAny[Settings] = Field(description="Settings of the method.")
    segmentation_classes: tuple[str, ...] = Field(
        (), description="Classes that the method learns to segment, of all datasets, by name; most methods need none."
    )
    overrides: tuple[str, ...] = Field((), description="What --set changed, as typed; asked for again by --continue.")
    estimate: Estimate
    decisions: tuple[Decision, ...]
