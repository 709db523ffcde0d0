"""Run folder: begin, continue or refuse a run, and compare its settings."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from headctssl.errors import UsageError
from headctssl.training.run_state import CHECKPOINT_FILE
from headctssl.training.slurm_job import JOB_FILE

__all__ = ["first_difference", "is_finished", "look_at_run", "open_run_folder", "require_same_settings"]

_LAST_FILES = {"encoder.safetensors": "contract.json", "classifier.safetensors": "metrics.json"}
"""What a finished run exports, and the file it writes after that."""

_SETTLED = ("config.json", "cases.csv", JOB_FILE)
"""What a run is decided to be before its first step, and whose it is."""


def is_finished(folder: Path) -> bool:
    """Whether a run exported its weights and wrote the last of its files."""
    return any((folder / name).exists() and (folder / last).exists() for name, last in _LAST_FILES.items())


def look_at_run(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Decide how a run begins; nothing is changed.

    Args:
        folder: the run folder.
        resume: `--continue`: go on from the checkpoint where there is one.
        overwrite: what is there may be removed.

    Returns:
        True when there is a checkpoint to go on from.

    Raises:
        UsageError: both flags are given; a run exists and neither is; or a finished run that keeps no checkpoint is to
            be continued.
    """
    if resume and overwrite:
        raise UsageError(
            "--continue and --overwrite exclude each other.", got="both", expected="one of them", do="Remove one."
        )
    if folder.is_dir() and any(folder.iterdir()) and not resume and not overwrite:
        raise UsageError(
            f"The run {folder.name} exists already.",
            got=folder,
            expected="a new run",
            do="Go on with --continue, replace it with --overwrite, or give another name with --tag.",
        )
    going_on = resume and (folder / CHECKPOINT_FILE).exists()
    weights = [name for name, last in _LAST_FILES.items() if (folder / name).exists() and (folder / last).exists()]
    if resume and not going_on and weights:
        # A linear head writes no checkpoint, and a user may have deleted one to save space: nothing is lost here.
        raise UsageError(
            f"The run {folder.name} is finished and has no checkpoint to go on from.",
            got=", ".join(weights),
            expected="a run that was stopped before its end",
            do=f"Use it as it is (-w {folder}), replace it with --overwrite, or give another name with --tag.",
        )
    return going_on


def open_run_folder(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Decide as `look_at_run`, remove an old run that is not gone on with, and make the folder.

    Of a run that is to be continued and has no checkpoint the settings and cases stay.

    Args:
        folder: the run folder.
        resume: `--continue`.
        overwrite: remove what is there.

    Returns:
        True when there is a checkpoint to go on from.

    Raises:
        UsageError: as `look_at_run`.
    """
    going_on = look_at_run(folder, resume=resume, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for path in () if going_on else folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not (resume and path.name in _SETTLED):
            path.unlink()
    for left_over in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        left_over.unlink()
    return going_on


def first_difference(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> tuple[str, object, object] | None:
    """The first field in which two JSON mappings differ: dotted name, stored value, wanted value."""
    for name in sorted(set(stored) | set(wanted)):
        one, other = stored.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            inner = first_difference(one, other, f"{prefix}{name}.")
            if inner is not None:
                return inner
        elif one != other:
            return f"{prefix}{name}", one, other
    return None


def require_same_settings(
    folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], free: Collection[str] = ()
) -> None:
    """Refuse to go on with a run whose settings differ.

    Args:
        folder: the run folder, for the message.
        stored: JSON content of its config.json.
        wanted: JSON content of the settings now asked for.
        free: top-level fields that may differ.

    Raises:
        UsageError: a field differs; it is named.
    """
    found = first_difference(
        {k: v for k, v in stored.items() if k not in free}, {k: v for k, v in wanted.items() if k not in free}
    )
    if found is not None:
        name, one, other = found
        raise UsageError(
            f"The run {folder.name} was started with other settings: '{name}' differs.",
            got=other,
            expected=one,
            do="Use the same settings, replace the run with --overwrite, or give another name with --tag.",
        )
