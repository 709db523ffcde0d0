"""Pretrain parts: the learner, the batches and the trainer of a call, for a run and for measuring some steps of it."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from headctssl.loading.crop_masks import MaskReads
from headctssl.loading.loader import BatchLoader
from headctssl.methods.method import Method
from headctssl.networks import build_from_settings
from headctssl.seeding import derive_seed
from headctssl.training.checkpoint import LoadReport, load_into
from headctssl.training.distributed import Process
from headctssl.training.pretrain_call import PretrainCall
from headctssl.training.run_log import RunLog
from headctssl.training.stored_run import settings_digest
from headctssl.training.trainer import Trainer

__all__ = ["Built", "build_learner", "make_batches", "make_trainer"]

Built = tuple[Method, LoadReport | None]
"""A method ready to train, and what `-w` gave it."""


def make_batches(call: PretrainCall, process: Process, start_step: int) -> BatchLoader:
    """The batches of one process from an optimiser step on."""
    settings, training = call.settings, call.settings.training
    return BatchLoader(
        call.data.indexes,
        read_shape=settings.read_shape,
        batch_size=training.batch_size // (process.world_size * training.accumulation),
        samples_per_epoch=training.samples_per_epoch,
        seed=training.seed,
        rank=process.rank,
        world_size=process.world_size,
        start_step=start_step,
        num_steps=training.num_steps,
        num_workers=training.num_workers,
        accumulation=training.accumulation,
        masks=MaskReads(
            anonymization=True, anatomy=settings.views.focus_anatomy > 0, classes=settings.segmentation_classes
        ),
    )


def build_learner(call: PretrainCall) -> Built:
    """Encoder and method with their first weights, a function of the seed, and what `-w` gave."""
    settings = call.settings
    torch.manual_seed(derive_seed(settings.training.seed, "weights"))
    encoder = build_from_settings(settings.encoder)
    report = None
    if call.init is not None:
        report = load_into(encoder, call.init.part("encoder"), source=call.init.contract.encoder)
    learner = call.method(settings.method)
    learner.build(encoder, settings)
    return learner, report


def make_trainer(
    call: PretrainCall, learner: Method, folder: Path, log: RunLog, device: torch.device, process: Process
) -> Trainer:
    """The loop of a call.

    Args:
        call: what to train on, under which settings.
        learner: from `build_learner`.
        folder: the run folder.
        log: where lines go.
        device: where to compute.
        process: this process.
    """
    settings = call.settings
    return Trainer(
        learner,
        training=settings.training,
        input_spec=settings.input,
        make_batches=functools.partial(make_batches, call, process),
        folder=folder,
        log=log,
        digest=settings_digest(settings),
        device=device,
        process=process,
    )
