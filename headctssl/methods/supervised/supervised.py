"""Supervised: an encoder pretrained by segmenting, as SuPreM, over datasets that mark different classes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.supervised.supervised_loss import dice_and_bce, mean_over_known
from headctssl.networks.decoders import voxel_decoder
from headctssl.networks.encoder import Encoder
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Supervised", "SupervisedSettings"]


class SupervisedSettings(BaseSettings):
    """Defaults are SuPreM's (arXiv 2501.11253)."""

    dice_weight: float = Field(1.0, ge=0, description="Weight of the Dice loss.")
    bce_weight: float = Field(1.0, ge=0, description="Weight of the binary cross-entropy.")
    dice_smooth: float = Field(1.0, gt=0, description="Added above and below in Dice, in voxels.")
    focus_classes: float = Field(
        0.667, ge=0, lt=1, description="Chance that a view is centred on a voxel of a class; 2 in 3 as published."
    )


class Supervised(Method):
    """Per-voxel supervision with partial labels (SuPreM, arXiv 2501.11253).

    Encoder and published decoder predict one sigmoid per class. The classes are those of all datasets of
    the run, by name; a scan adds loss only for the classes its dataset marks, and only at voxels that were
    stored, were not anonymised and have a known label. The decoder stays behind: the encoder is exported.

    Args:
        settings: weights of the losses, and where to look.
    """

    Settings: ClassVar[type[BaseSettings]] = SupervisedSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset({"segmentation"})

    def __init__(self, settings: SupervisedSettings) -> None:
        super().__init__(settings)
        self.settings: SupervisedSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser, the same for every encoder."""
        del kind
        return OptimizerDefaults(
            optimizer="adamw",
            lr=1e-3,
            lr_reference_batch=2,
            lr_rule="fixed",
            weight_decay=1e-5,
            weight_decay_end=1e-5,
            clip_norm=None,
            warmup_share=20 / 800,
            min_lr_share=0.0,
            schedule="cosine",
            source="SuPreM (arXiv 2501.11253): 20 of 800 epochs of warm-up",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: the run has no classes, or flips left and right although a class has a side in its name.
        """
        if not run.segmentation_classes:
            raise UsageError(
                "The method 'supervised' needs classes to segment.",
                got="datasets without segmentation_classes",
                expected="a column 'segmentation' in cases.csv, and segmentation_classes in dataset.json",
                do="Add them, or choose a method that needs no masks.",
            )
        sided = [
            name for name in run.segmentation_classes if {"left", "right"} & set(re.findall("[a-z]+", name.lower()))
        ]
        if sided and run.views.flip_lr:
            raise UsageError(
                "Flipping left and right would show the model classes on the wrong side.",
                got=f"views.flip_lr=true with the class '{sided[0]}'",
                expected="no such flips where the name of a class says left or right",
                do="Add --set views.flip_lr=false.",
            )
        self.encoder = encoder
        group = global_group(run.views, run.input)
        self.plan = ViewPlan((replace(group, focus=(("segmentation", self.settings.focus_classes), *group.focus)),))
        check_views(self.plan, encoder)
        self.classes = run.segmentation_classes
        self.decoder = voxel_decoder(encoder, len(self.classes))

    def views(self) -> ViewPlan:
        """Global views only, two of three centred on a marked voxel; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        known = views.known_classes
        assert known is not None, "a run with classes reads segmentations"
        assert known.shape[1] == len(self.classes), "one column per class"
        losses, scores, shares = [], [], []
        for index, volume in enumerate(views.groups["global"]):
            labels = views.segmentation["global"][index]
            counted = views.valid("global", index) & (labels >= 0)
            logits = self.decoder(self.encoder(volume), volume)
            dice, bce = dice_and_bce(logits, labels, counted, self.settings.dice_smooth)
            losses.append(
                mean_over_known(self.settings.dice_weight * dice + self.settings.bce_weight * bce, known),
            )
            with torch.no_grad():
                scores.append(1.0 - mean_over_known(dice, known))
                shares.append((counted & (labels > 0)).float().mean())
        logs = {"soft_dice": torch.stack(scores).mean(), "class_share": torch.stack(shares).mean()}
        return StepResult(torch.stack(losses).mean(), logs)

    def encoder_to_export(self) -> Encoder:
        """The trained encoder, without the decoder."""
        return self.encoder
