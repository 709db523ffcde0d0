"""Trackers: the services that `--track` names; they get scalars and shareable settings, nothing else."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headctssl.errors import UsageError, unknown_name
from headctssl.paths import data_root
from headctssl.settings import JsonValue

__all__ = ["TRACKERS", "Tracked", "Tracker", "check_trackers", "open_tracker"]

TRACKERS: dict[str, str] = {
    "mlflow": "headctssl.training.trackers:MLflow",
    "wandb": "headctssl.training.trackers:WandB",
}
"""Name of a tracker, which is also the package it needs -> its class."""

PROJECT = "headctssl"
_FINISH_SECONDS = 20.0


@dataclass(frozen=True)
class Tracked:
    """A run as a tracker sees it."""

    id: str  # random; the same after --continue
    name: str  # of the run folder
    settings: Mapping[str, JsonValue]  # what the weights depend on: no case, path, host or dataset name
    folder: Path  # for files that stay here; never sent


class Tracker(Protocol):
    """What a service must take; any exception ends the tracking, never the run.

    `load` imports the package, in the main thread: a reader process that is forked during an import could wait for
    its lock for ever. The others are called in a thread of the tracker's own.
    """

    def load(self) -> None: ...  # noqa: D102
    def begin(self, run: Tracked) -> None: ...  # noqa: D102
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...  # noqa: D102
    def end(self, *, finished: bool) -> None: ...  # noqa: D102


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        UsageError: a name is unknown, or its package is missing.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--track {name} needs a package that is not installed.",
                got=f"no package '{name}'",
                expected="the extra 'tracking'",
                do="pip install 'headctssl[tracking]', or leave out --track.",
            )


def open_tracker(name: str) -> Tracker:
    """The tracker of this name; its package is imported when it begins."""
    module, _, attribute = TRACKERS[name].partition(":")
    tracker: Tracker = getattr(importlib.import_module(module), attribute)()
    return tracker


class WandB:
    """Weights & Biases. Offline unless WANDB_MODE says otherwise; `wandb sync` sends an offline run later."""

    def __init__(self) -> None:
        self.run: Any = None

    def load(self) -> None:
        """Import wandb without its reports of errors to its makers."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        importlib.import_module("wandb")

    def begin(self, run: Tracked) -> None:
        """Open the run; by default wandb would send host, user, command line, code, console and package list."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=_FINISH_SECONDS,
            host="",
            login_timeout=5.0,
            program="",
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.name,
            resume="allow",
            dir=str(run.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]  # wandb checks the text
            config=dict(run.settings),
            settings=settings,
        )
        # wandb's own step must grow; after --continue the steps since the checkpoint come a second time.
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        self.run.log({"step": step, **values})

    def end(self, *, finished: bool) -> None:
        """Close the run."""
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """MLflow. The server of MLFLOW_TRACKING_URI, else mlflow.db in the results root."""

    def __init__(self) -> None:
        self.client: Any = None
        self.run_id = ""

    def load(self) -> None:
        """Import mlflow without its telemetry."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        importlib.import_module("mlflow.tracking")

    def begin(self, run: Tracked) -> None:
        """Open the run, or the one of before; the plain client sends neither user nor path nor source."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        local = f"sqlite:///{data_root('results').resolve() / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI", local)
        self.client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        known = self.client.search_runs([experiment], filter_string=f"tags.headctssl_id = '{run.id}'")
        if known:
            self.run_id = known[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(experiment, run_name=run.name, tags={"headctssl_id": run.id}).info.run_id
        params = [Param(key, value) for key, value in _flat(run.settings).items()]
        for start in range(0, len(params), 100):  # the most that a request may have
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except Exception:  # another run made it since: whatever else is wrong shows in the next line
            return str(self.client.get_experiment_by_name(name).experiment_id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def end(self, *, finished: bool) -> None:
        """Close the run."""
        self.client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")


def _flat(settings: Mapping[str, JsonValue], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and texts of at most 500 characters, which every MLflow takes."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = str(value)[:500]
    return found
