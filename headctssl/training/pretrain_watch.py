"""Pretrain watch: the monitor of a run, with its probe cases and what it keeps of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import headctssl
from headctssl.contract import Contract
from headctssl.methods.method import Method
from headctssl.planning.decisions import Asked, Ledger
from headctssl.planning.resolve_training import rate
from headctssl.training.checkpoint import PROBE_BEST_FILE, save_encoder
from headctssl.training.collapse_causes import Cause, likely_causes
from headctssl.training.monitor import Monitor
from headctssl.training.pretrain_call import PretrainCall
from headctssl.training.probe import Probe
from headctssl.training.probe_cases import choose_probe_cases
from headctssl.training.room import needing_room
from headctssl.training.run_lines import read_metrics
from headctssl.training.run_log import RunLog
from headctssl.training.stored_run import settings_of_weights
from headctssl.training.trainer import Trainer

__all__ = ["watch", "write_encoder"]


def watch(trainer: Trainer, call: PretrainCall, folder: Path, learner: Method, log: RunLog) -> None:
    """Let a run be watched as its settings say.

    Args:
        trainer: of the run, at the step it begins or goes on from; its log is open.
        call: the run.
        folder: the run folder.
        learner: the method that is trained.
        log: takes what there is to say.
    """
    settings = call.settings
    monitor = Monitor(
        learner,
        settings,
        device=trainer.device,
        process=trainer.process,
        probe=_probe(call, trainer, log),
        say=log.say,
        causes=lambda: _causes(call),
        keep_best=lambda: _keep_best(call, folder, learner, log),
    )
    if trainer.step and trainer.process.is_main:
        monitor.take_up(read_metrics(folder / "metrics.jsonl"))
    trainer.monitor = monitor


def write_encoder(call: PretrainCall, path: Path, learner: Method) -> Contract:
    """Write the encoder of a method as it is now, with its contract.

    Args:
        call: the run.
        path: the file.
        learner: the method.

    Raises:
        TrainingError: it cannot be written.
    """
    settings, encoder = call.settings, learner.encoder_to_export()
    contract = Contract(
        package_version=headctssl.__version__,
        kind="encoder",
        storage=settings.storage,
        input=settings.input,
        preset=settings.config,
        encoder=encoder.settings,
        method=settings.method_name,
        settings=settings_of_weights(settings),
        num_scans=call.data.num_cases,
        cases_digest=call.data.digest,
        synthetic=call.data.synthetic,
    )
    with needing_room(f"The encoder {path}", path.parent):
        return save_encoder(path, encoder, contract)


def _probe(call: PretrainCall, trainer: Trainer, log: RunLog) -> Probe | None:
    """The probes that the settings ask for; said once, also why there are none."""
    settings = call.settings
    if not settings.monitor.probe_cases:
        why = next((d.because for d in settings.decisions if d.what == "probe cases"), "monitor.probe_cases=0")
        if not trainer.step:
            log.say(f"no probes: {why}")
        return None
    cases = choose_probe_cases(call.data.labelled, call.data.indexes, settings.monitor.probe_cases)
    if not cases.names:
        log.say(f"no probes: too few cases of a class of every label ({', '.join(cases.left_out) or 'none'})")
        return None
    learning = int(cases.learns.sum())
    log.say(
        f"probes: learn from {learning} cases and are scored on {len(cases) - learning} others, of other subjects, "
        f"none of the test set; labels {', '.join(cases.names)}"
        + (f"; too few cases of a class: {', '.join(cases.left_out)}" if cases.left_out else "")
    )
    return Probe(cases, settings.input, attentive=settings.monitor.attentive, process=trainer.process)


def _causes(call: PretrainCall) -> Sequence[Cause]:
    settings = call.settings
    kind = settings.encoder.kind
    planned = rate(Ledger(), Asked({}), settings.training, call.method.optimizer_defaults(kind), kind).lr
    return likely_causes(settings, planned)


def _keep_best(call: PretrainCall, folder: Path, learner: Method, log: RunLog) -> None:
    write_encoder(call, folder / PROBE_BEST_FILE, learner)
    log.say(f"the best probe so far: exported {PROBE_BEST_FILE}")
