"""Optimizers: published optimiser defaults that several methods share."""

from __future__ import annotations

from headctssl.presets import OptimizerDefaults

__all__ = ["OPENMIND_CNN", "OPENMIND_TRANSFORMER"]

OPENMIND_CNN = OptimizerDefaults(
    optimizer="sgd",
    lr=1e-2,
    lr_reference_batch=8,
    lr_rule="fixed",
    weight_decay=3e-5,
    weight_decay_end=3e-5,
    clip_norm=12.0,
    warmup_share=0.0,
    min_lr_share=0.0,
    schedule="poly",
    momentum=0.99,
    source="arXiv 2412.17041; arXiv 2410.23132",
)
"""What OpenMind and S3D trained ResEnc-L with."""

OPENMIND_TRANSFORMER = OptimizerDefaults(
    optimizer="adamw",
    lr=3e-4,
    lr_reference_batch=8,
    lr_rule="fixed",
    weight_decay=0.05,
    weight_decay_end=0.05,
    clip_norm=1.0,
    warmup_share=0.05,
    min_lr_share=0.0,
    schedule="poly",
    betas=(0.9, 0.98),
    source="arXiv 2412.17041",
)
"""What OpenMind trained Primus-M with."""
