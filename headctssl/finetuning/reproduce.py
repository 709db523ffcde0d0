"""Reproduce: start a pretraining or fine-tuning run again as its folder says it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headctssl.finetuning.finetune import run_finetuning
from headctssl.finetuning.prepare import Call
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.settings import read_json
from headctssl.training.reproduce import (
    Again,
    Original,
    Reproduction,
    find_weights_of,
    next_tag,
    open_original,
    repeat,
    reproduce_pretraining,
)

__all__ = ["reproduce"]


def reproduce(
    run: Path | str,
    *,
    init: Path | str | None = None,
    tag: str | None = None,
    check: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    num_workers: int | None = None,
    track: Sequence[str] = (),
    quiet: bool = False,
) -> Reproduction:
    """Start a run again: same datasets, cases, settings and seed, under a new tag. The command is ``headct_reproduce``.

    What the first run derived from its machine (batch, rate, length, precision) is kept. Versions and hardware that
    differ are said. On the same machine, versions and number of processes a CPU gives the same weights bit for bit.

    Args:
        run: a run folder of `pretrain`, or the ``fold_K`` of `finetune`.
        init: the weights it began from, ``-w``; a run of the results root with their hash when None.
        tag: of the new run; ``reproduced`` when None, after the tag that the run had.
        check: compare the weights with the original's at the end.
        resume: go on with the repetition itself, ``--continue``.
        overwrite: replace an existing repetition.
        device: ``cpu``, ``cuda``, ``cuda:1``; the CPU for a run of the CPU, else found, when None.
        num_workers: reader processes; they do not change the weights.
        track: trackers, as for `pretrain`.
        quiet: print errors only.

    Raises:
        UsageError: it is no run, the weights it began from are not found, or there is nothing to check against.
        DataError: the data are not what they were; what differs is named.
        HeadCTSSLError: as `pretrain` or `finetune`.
    """
    again = Again(init, tag, check, resume, overwrite, device, num_workers, tuple(track), quiet)
    original = open_original(run)
    if original.stage == "pretrain":
        return reproduce_pretraining(original, again)
    return _reproduce_finetuning(original, again)


def _reproduce_finetuning(original: Original, again: Again) -> Reproduction:
    settings = read_json(original.folder / "config.json", FinetuneSettings)
    # TASK__ADAPT__INIT[__TAG]: only the name tells all labels from those that were named.
    name = (original.folder.parents[1] if settings.draw else original.folder.parent).name
    old_tag = "".join(name.split("__", 3)[3:])
    weights = find_weights_of(settings.init, again.init)

    def run(device: str | None) -> Path:
        call = Call(
            dataset_id=settings.dataset_ids[0],
            weights="scratch" if weights is None else weights,
            config=settings.config,
            adapt=settings.adapt,
            few_shots=settings.few_shots,
            negatives=settings.few_shot_negatives,
            draw=settings.draw,
            fold=settings.fold,
            labels=None if name.startswith("all-labels") else tuple(spec.name for spec in settings.labels),
            tag=again.tag or next_tag(old_tag),
            resume=again.resume,
            overwrite=again.overwrite,
            device=device,
            num_workers=again.num_workers,
            overrides=settings.overrides,
            quiet=again.quiet,
            repeats=settings,
        )
        return run_finetuning(call, again.track)

    return repeat(original, again, run)
