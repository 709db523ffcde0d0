"""Stored run: the settings and cases of a run as its folder has them, and what a continued run may change."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headctssl.errors import DataError, UsageError
from headctssl.paths import atomic_path
from headctssl.planning.run_settings import RunSettings
from headctssl.settings import Settings
from headctssl.training.pretrain_data import PretrainData
from headctssl.training.run_folder import require_same_settings

__all__ = [
    "continued_settings",
    "read_run_settings",
    "require_same_cases",
    "settings_digest",
    "settings_of_weights",
    "write_cases",
]

FREE = ("num_workers", "checkpoint_every")
"""Fields of `training` that a continued run may change: neither its weights nor its metrics depend on them."""

FREE_TO_WATCH = ("on_collapse",)
"""The same of `monitor`."""

_NOT_OF_WEIGHTS = (*FREE, "log_every")

_DERIVED = ("training", "method", "monitor", "estimate", "decisions", "overrides")
"""Fields that also depend on the machine; a continued run keeps its own, and only `overrides` is compared."""


def read_run_settings(path: Path, method_settings: type[Settings]) -> RunSettings:
    """Read config.json of a pretraining run.

    Args:
        path: the file.
        method_settings: settings class of the run's method.

    Raises:
        DataError: the file is missing or does not fit.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        method = method_settings.model_validate(content["method"])
        return RunSettings.model_validate({**content, "method": method})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"{path.name} of the run {path.parent.name} cannot be read.",
            got=reason[:200],
            expected="the settings of a pretraining run",
            do="Start the run again with --overwrite.",
        ) from None


def settings_of_weights(settings: RunSettings) -> str:
    """JSON text of every setting that the weights depend on: no estimate, monitor, readers or intervals.

    Of the choice of cases only the digest: an expression may name cases or subjects, and weights are shared.
    """
    content = settings.model_dump(mode="json", exclude={"estimate", "decisions", "overrides", "monitor"})
    content["training"] = {k: v for k, v in content["training"].items() if k not in _NOT_OF_WEIGHTS}
    content["where"] = None if settings.where is None else settings.where.digest
    return json.dumps(content, sort_keys=True)


def settings_digest(settings: RunSettings) -> str:
    """SHA-256 of `settings_of_weights`, first 16 hex digits."""
    return hashlib.sha256(settings_of_weights(settings).encode()).hexdigest()[:16]


def continued_settings(folder: Path, stored: RunSettings, wanted: RunSettings) -> RunSettings:
    """The settings a continued run goes on with.

    What the user and the data decide must be as it was. What `resolve` derived from the machine (batch,
    length, rate) stays as stored, since the machine may be another one now or measure a little differently.

    Args:
        folder: the run folder, for messages.
        stored: its config.json.
        wanted: what this call resolved to.

    Raises:
        UsageError: a field differs; it is named.
    """
    require_same_settings(folder, _asked(stored), _asked(wanted))
    require_same_settings(folder, _compared(stored), _compared(wanted), free=(*_DERIVED, "read_shape"))
    free = {name: getattr(wanted.training, name) for name in FREE}
    training = stored.training.model_copy(update=free)
    watched = {name: getattr(wanted.monitor, name) for name in FREE_TO_WATCH}
    monitor = stored.monitor.model_copy(update=watched)
    return stored.model_copy(update={"training": training, "monitor": monitor, "overrides": wanted.overrides})


def _compared(settings: RunSettings) -> dict[str, Any]:
    """All settings; of --where the expression only, since `require_same_cases` compares what it picked."""
    content = settings.model_dump(mode="json")
    content["where"] = None if settings.where is None else settings.where.expression
    return content


def _asked(settings: RunSettings) -> dict[str, Any]:
    """What --set gave, by dotted key, without the fields that are free."""
    pairs = (text.partition("=") for text in settings.overrides)
    free = {f"training.{name}" for name in FREE} | {f"monitor.{name}" for name in FREE_TO_WATCH}
    return {key: value for key, _, value in pairs if key not in free}


def write_cases(folder: Path, data: PretrainData) -> None:
    """Write cases.csv, the cases a run trains on (not shareable).

    Args:
        folder: the run folder.
        data: the cases.
    """
    with atomic_path(folder / "cases.csv") as temporary:
        temporary.write_text(_cases_text(data), encoding="utf-8")


def require_same_cases(folder: Path, data: PretrainData) -> None:
    """Refuse to go on with a run on other cases than it was started with.

    Args:
        folder: the run folder.
        data: the cases as they are now.

    Raises:
        UsageError: cases were added, removed or changed.
    """
    path, now = folder / "cases.csv", _cases_text(data).splitlines()
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if before != now:
        raise UsageError(
            f"The run {folder.name} was started with other cases.",
            got=f"{data.num_cases} cases, {len(set(now) - set(before))} of them new or changed",
            expected=f"the {max(0, len(before) - 1)} cases of its cases.csv",
            do="Start a new run with --tag, or replace it with --overwrite.",
        )


def _cases_text(data: PretrainData) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset_id", "case_id", "source_sha256"])
    for plans, index in zip(data.plans, data.indexes, strict=True):
        writer.writerows([plans.dataset_id, row.case_id, row.source_sha256] for row in index.rows)
    return buffer.getvalue()
