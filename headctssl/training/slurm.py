"""Slurm: submit a run with one process per GPU, which is requeued with --continue when its time is up."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from headctssl.errors import StoppedError, UsageError
from headctssl.methods import method_class
from headctssl.paths import results_dataset
from headctssl.planning.plans import load_plans
from headctssl.settings import Settings, parse_overrides, with_overrides
from headctssl.training.checkpoint import load_weights
from headctssl.training.pretrain_call import as_ids, name_of_run
from headctssl.training.run_folder import look_at_run
from headctssl.training.slurm_job import InJob
from headctssl.training.trackers import check_trackers

__all__ = ["SlurmOptions", "check_before_queueing", "parse_slurm", "submit"]

MOST_RESTARTS = 100  # a job that never gets anywhere must end
_CORES_PER_GPU = 8  # the most reader processes that planning gives a process


class SlurmOptions(Settings):
    """What `--slurm KEY=VALUE[,KEY=VALUE]` may say."""

    partition: str | None = Field(None, description="Partition; the cluster's default when none.")
    nodes: int = Field(1, ge=1, description="Nodes.")
    gpus: int = Field(1, ge=0, description="GPUs per node, each with a process of its own; 0 trains on the CPU.")
    processes: int = Field(1, ge=1, description="Processes per node where there is no GPU.")
    hours: float = Field(24.0, gt=0, description="Time limit of one start in hours; the job goes on after it.")
    cores: int | None = Field(None, ge=1, description="Cores per process; 8 with a GPU, else the cluster's default.")
    memory_gb: float | None = Field(None, gt=0, description="Memory per node in GB; the cluster's default when none.")
    warn_seconds: int = Field(120, ge=1, description="Seconds before the limit at which the checkpoint is written.")
    account: str | None = Field(None, description="Account to charge.")
    qos: str | None = Field(None, description="Quality of service.")
    constraint: str | None = Field(None, description="Features that nodes must have.")

    @property
    def processes_per_node(self) -> int:
        """One per GPU, else as asked."""
        return self.gpus or self.processes


def parse_slurm(text: str) -> SlurmOptions:
    """Read ``partition=gpu,gpus=4,hours=24``.

    Raises:
        UsageError: a key is unknown, given twice or without a value, or a value does not fit.
    """
    texts = [part.strip() for part in text.split(",") if part.strip()]
    faults = [part for part in texts if "=" not in part]
    if faults or not texts:
        raise UsageError(
            "--slurm could not be parsed.",
            got=f"--slurm {text}",
            expected="KEY=VALUE[,KEY=VALUE], of " + ", ".join(SlurmOptions.model_fields),
            do="For example: --slurm partition=gpu,gpus=4,hours=24",
        )
    given = parse_overrides(texts)
    for name in ("partition", "account", "qos", "constraint"):
        if name in given:
            given[name] = str(given[name])  # a name may look like a number
    options = with_overrides(SlurmOptions(), given, "slurm ")
    if options.gpus and "processes" in given:
        raise UsageError(
            "With GPUs there is one process per GPU.",
            got=f"--slurm {text}",
            expected="gpus=0 with processes=N, or gpus=N alone",
            do="Remove processes, or set gpus=0.",
        )
    return options


def submit(work: Callable[[bool], int], options: SlurmOptions, folder: Path, name: str) -> tuple[str, Path]:
    """Give a job to Slurm.

    The job's steps get SIGUSR1 before the time limit; the processes write a checkpoint and end with 75, and the batch
    script requeues the job. Whatever else ends it (done, an error, scancel) does not.

    Args:
        work: as for `InJob`.
        options: what to ask Slurm for.
        folder: where the batch script and the logs go, a folder per job; all nodes must see it.
        name: of the job.

    Returns:
        The number of the job, and its log.

    Raises:
        UsageError: submitit is not installed, there is no Slurm, or Slurm refuses.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UsageError(
            "--slurm needs a package that is not installed.",
            got="no package 'submitit'",
            expected="the extra 'slurm'",
            do="pip install 'headctssl[slurm]', or write the job yourself: documentation/how-to/slurm.md.",
        )
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder / "%j")
        executor.update_parameters(**_parameters(options, name))
        job = executor.submit(InJob(work))
    except (RuntimeError, OSError, subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        raise UsageError(
            "The job could not be given to Slurm.",
            got=str(error).strip()[:500],
            expected="a login node of a Slurm cluster, and options that it accepts",
            do="Correct --slurm, or leave it out to run here.",
        ) from error
    return str(job.job_id), Path(job.paths.stdout)


def _parameters(options: SlurmOptions, name: str) -> dict[str, object]:
    """The options in submitit's words."""
    gpus = options.gpus
    cores = options.cores or (_CORES_PER_GPU if gpus else None)
    found: dict[str, object] = {
        "job_name": name,
        "partition": options.partition,
        "time": max(1, round(options.hours * 60)),
        "nodes": options.nodes,
        "ntasks_per_node": options.processes_per_node,
        "cpus_per_task": cores,
        "gpus_per_node": gpus or None,
        "mem": None if options.memory_gb is None else f"{round(options.memory_gb * 1000)}M",
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {"signal": f"USR1@{options.warn_seconds}", "requeue": True},
        "srun_args": _srun_arguments(cores),
        "teardown": _requeue_lines(),
    }
    return {key: value for key, value in found.items() if value is not None or key == "wckey"}


def _srun_arguments(cores: int | None) -> list[str]:
    """All processes may end in their own time: the main one still writes when the others are done.

    Since Slurm 22.05 srun does not take the cores per process from the job.
    """
    return ["--kill-on-bad-exit=0", "--wait=0", *([f"--cpus-per-task={cores}"] if cores else [])]


def _requeue_lines() -> Sequence[str]:
    """The end of the batch script; srun's exit code is the largest of its processes."""
    command = shlex.join(["scontrol", "requeue"])
    return [
        "code=$?",
        f'if [ "$code" -eq {StoppedError.exit_code} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MOST_RESTARTS} ]; then',
        f'    {command} "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]


def check_before_queueing(
    dataset_ids: Sequence[int],
    method: str,
    *,
    config: str | None,
    plans_name: str,
    init: Path | str | None,
    tag: str | None,
    resume: bool,
    overwrite: bool,
    track: Sequence[str],
    overrides: Sequence[str],
    **_others: object,
) -> None:
    """Refuse what is wrong with a call of `pretrain` and shows without the machine that it will run on.

    Raises:
        HeadCTSSLError: a name, plans, weights or an existing run do not fit.
    """
    method_class(method)
    check_trackers(track)
    parse_overrides(overrides)
    ids = as_ids(dataset_ids)
    plans = [load_plans(dataset_id, plans_name) for dataset_id in ids]
    weights = None if init in (None, "scratch") else load_weights(str(init))
    preset = config or (None if weights is None else weights.contract.preset)
    name = name_of_run(method, preset or "chosen later", plans_name, ids, tag)
    if preset is not None:
        plans[0].configuration(preset)
        look_at_run(results_dataset(ids[0]) / "pretrain" / name, resume=resume, overwrite=overwrite)
