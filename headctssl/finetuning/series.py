"""Series: the runs that several folds, draws and numbers of shots of one call stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from headctssl.dataset.splits import load_splits
from headctssl.errors import UsageError
from headctssl.finetuning.prepare import Call, locate
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.training.run_folder import is_finished, look_at_run

__all__ = ["ALL", "Asked", "Shots", "expand", "is_done", "number_of"]

ALL = "all"
"""Every fold in turn (`-f`), or every training case (`--few_shots`)."""

Shots = int | Literal["all"] | None


@dataclass(frozen=True)
class Asked:
    """What a call asks for beyond one run."""

    shots: tuple[Shots, ...]  # None or 'all': every training case
    draws: int  # draws of every number of shots, from the call's own draw on
    folds: tuple[str, ...]  # numbers, 'none', or 'all' alone

    @property
    def single(self) -> bool:
        """Whether one run is asked for."""
        return len(self.shots) == self.draws == len(self.folds) == 1 and self.folds != (ALL,)


def number_of(shots: Shots) -> int | None:
    """K, or None for every training case.

    Raises:
        UsageError: it is neither a number nor 'all'.
    """
    if shots is None or isinstance(shots, int):
        return shots
    if shots != ALL:
        raise UsageError(
            "This is not a number of shots.",
            got=f"--few_shots {shots}",
            expected=f"patients per class, as 8, or '{ALL}' for every training case",
            do="Correct --few_shots.",
        )
    return None


def expand(call: Call, asked: Asked) -> list[Call]:
    """One call per run: numbers of shots in the order given, for each the draws, for each the folds.

    Args:
        call: what the runs share; its draw is the first one.
        asked: folds, draws and numbers of shots.

    Raises:
        UsageError: something is asked for twice, draws without few shots, or a run exists already.
        HeadCTSSLError: as `finetune`.
    """
    _check(asked)
    folds = asked.folds if asked.folds != (ALL,) else _all_folds(call)
    calls = []
    for shots in asked.shots:
        few = number_of(shots)
        # All training cases are the same whatever was to be drawn.
        draws = range(call.draw, call.draw + asked.draws) if few is not None else (0,)
        negatives = call.negatives if few is not None else "same"
        for draw in draws:
            calls += [replace(call, few_shots=few, draw=draw, negatives=negatives, fold=fold) for fold in folds]
    if call.resume and len(calls) > 1:
        return [replace(one, reuse=True) for one in calls]
    for one in calls:  # told before the first of them begins
        look_at_run(locate(one).folder, resume=False, overwrite=call.overwrite)
    return calls


def is_done(call: Call) -> bool:
    """Whether the run of a call that may reuse one is finished."""
    return call.reuse and is_finished(locate(call).folder)


def _all_folds(call: Call) -> tuple[str, ...]:
    """The folds of splits.json, which is made first where the dataset is new."""
    place = locate(replace(call, fold="0"))
    ensure_preprocessed(call.dataset_id, place.start.storage, quiet=call.quiet, num_workers=call.num_workers)
    return tuple(str(k) for k in range(len(load_splits(preprocessed_dataset(call.dataset_id)).folds)))


def _check(asked: Asked) -> None:
    for values, flag in ((asked.folds, "-f"), (asked.shots, "--few_shots")):
        if not values or len(set(values)) != len(values):
            raise UsageError(
                f"{flag} names {'something twice' if values else 'nothing'}.",
                got=" ".join(str(v) for v in values) or "no value",
                expected="each once",
                do=f"Correct {flag}.",
            )
    if ALL in asked.folds and len(asked.folds) > 1:
        raise UsageError(
            "'all' stands for every fold.",
            got=" ".join(asked.folds),
            expected="'all' alone, or numbers",
            do="Correct -f.",
        )
    if asked.draws < 1:
        raise UsageError("There must be a draw.", got=asked.draws, expected="1 or more", do="Correct --draws.")
    if asked.draws > 1 and all(shots in (None, ALL) for shots in asked.shots):
        raise UsageError(
            "Draws belong to few shots.",
            got=f"--draws {asked.draws} with all training cases",
            expected="--few_shots K",
            do="Add --few_shots, or remove --draws.",
        )
