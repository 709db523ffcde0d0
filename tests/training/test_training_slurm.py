"""Slurm: options, the batch script and what its processes do, with sbatch, srun and scontrol played by scripts."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import slurm_work

from headctssl.cli import pretrain as command_module
from headctssl.errors import HeadCTSSLError, UsageError
from headctssl.training import slurm
from headctssl.training.slurm import parse_slurm, submit
from headctssl.training.slurm_job import note_job

pytest.importorskip("submitit")
Command = Callable[..., tuple[int, str, str]]

SBATCH = """#!/bin/bash
cp "$1" "$PLAYED/batch.sh"
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
# Like srun: as many tasks as the script asks for, the largest exit code of all.
echo "$@" >> "$PLAYED/srun_calls"
while [ "${1#--}" != "$1" ]; do
    if [ "$1" = --output ]; then shift; fi
    shift
done
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$PLAYED/batch.sh")
worst=0
for rank in $(seq 0 $((tasks - 1))); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=$tasks "${@//%j/7}" >> "$PLAYED/log" 2>&1
    code=$?
    if [ "$code" -gt "$worst" ]; then worst=$code; fi
done
exit $worst
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$PLAYED/scontrol_calls"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose scripts play Slurm."""
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PLAYED", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where slurm_work is
    return tmp_path


def start(cluster: Path, restarts: int) -> int:
    """Run the batch script as Slurm would."""
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    if restarts:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    return subprocess.run(["bash", str(cluster / "batch.sh")], env=environment, check=False).returncode


def test_a_job_is_requeued_when_its_time_is_up_and_goes_on(cluster: Path) -> None:
    options = parse_slurm("partition=gpu,gpus=2,hours=1.5,nodes=1,account=7,warn_seconds=90,memory_gb=64")
    work = functools.partial(slurm_work.note_and_stop, str(cluster))
    number, log = submit(work, options, cluster / "jobs", "pretrain_mae")
    assert number == "7"
    assert log == cluster / "jobs" / "7" / "7_0_log.out"
    flags = {line.removeprefix("#SBATCH ") for line in (cluster / "batch.sh").read_text().splitlines() if "#SB" in line}
    assert {
        "--partition=gpu",
        "--nodes=1",
        "--gpus-per-node=2",
        "--ntasks-per-node=2",
        "--cpus-per-task=8",
        "--time=90",
        "--mem=64000M",
        "--account=7",
        "--signal=USR1@90",
        "--requeue",
        "--job-name=pretrain_mae",
    } <= flags
    assert not any("wckey" in flag for flag in flags)

    assert start(cluster, 0) == 75
    assert (cluster / "scontrol_calls").read_text().splitlines() == ["requeue 7"]
    assert "--kill-on-bad-exit=0 --wait=0 --cpus-per-task=8" in (cluster / "srun_calls").read_text()
    found = [json.loads((cluster / f"start1_rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [(f["RANK"], f["LOCAL_RANK"], f["WORLD_SIZE"]) for f in found] == [("0", "0", "2"), ("1", "1", "2")]
    assert found[0]["MASTER_ADDR"] == "localhost"
    assert found[0]["MASTER_PORT"] == found[1]["MASTER_PORT"]
    assert found[0]["again"] is False

    assert start(cluster, 1) == 0
    assert json.loads((cluster / "start2_rank0.json").read_text())["again"] is True
    assert len((cluster / "scontrol_calls").read_text().splitlines()) == 1


def test_a_job_that_fails_is_not_requeued(cluster: Path) -> None:
    submit(slurm_work.fail, parse_slurm("gpus=0"), cluster / "jobs", "x")
    assert "gpus-per-node" not in (cluster / "batch.sh").read_text()
    assert start(cluster, 0) == 2
    assert not (cluster / "scontrol_calls").exists()


def test_a_job_that_gets_nowhere_ends(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(slurm_work.fail, parse_slurm("gpus=0"), cluster / "jobs", "x")
    text = (cluster / "batch.sh").read_text()
    (cluster / "srun").write_text("#!/bin/bash\nexit 75\n")
    assert start(cluster, slurm.MOST_RESTARTS - 1) == 75
    assert start(cluster, slurm.MOST_RESTARTS) == 75
    assert len((cluster / "scontrol_calls").read_text().splitlines()) == 1, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "could not be parsed"),
        ("", "could not be parsed"),
        ("partitoin=gpu", "Unknown setting"),
        ("gpus=some", "does not accept"),
        ("hours=0", "does not accept"),
        ("gpus=2,gpus=4", "given twice"),
        ("gpus=2,processes=2", "one process per GPU"),
    ],
)
def test_wrong_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_slurm(text)


def test_names_may_look_like_numbers() -> None:
    options = parse_slurm("account=0815,partition=1")
    assert (options.account, options.partition) == ("0815", "1")
    assert parse_slurm("gpus=0,processes=3").processes_per_node == 3
    assert parse_slurm("gpus=4,nodes=2").processes_per_node == 4


def test_without_slurm_the_call_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="could not be given to Slurm"):
        submit(slurm_work.fail, parse_slurm("gpus=0"), tmp_path, "x")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"headctssl\[slurm\]"):
        submit(slurm_work.fail, parse_slurm("gpus=0"), tmp_path, "x")


def test_the_command_submits_itself(
    dataset: Path, roots: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[tuple[object, ...]] = []

    def take(*what: object) -> tuple[str, Path]:
        submitted.append(what)
        return "12", roots / "log"

    monkeypatch.setattr(slurm, "submit", take)
    call = ("pretrain", "-d", 1, "-m", "mae", "-c", "vit_test", "--overwrite")
    code, out, err = command(*call, "--slurm", "partition=gpu,gpus=4,hours=24")
    assert code == 0, err
    assert "Slurm job 12, 1 node(s) with 4 process(es)" in out
    work, options, folder, name = submitted[0]
    assert (options.gpus, name) == (4, "pretrain_mae")  # type: ignore[attr-defined]  # SlurmOptions
    assert folder == roots / "results" / dataset.name / "slurm"

    calls: list[dict[str, object]] = []
    monkeypatch.setattr(command_module, "_train", lambda call: calls.append(call) or 0)
    assert callable(work)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    run = roots / "results" / dataset.name / "pretrain" / "mae__vit_test__plans"
    run.mkdir(parents=True)
    (run / "slurm_job.txt").write_text("7\n")
    assert work(False) == work(True) == 0  # the run in the folder is another's
    note_job(run)
    assert work(True) == 0
    assert [(call["resume"], call["overwrite"]) for call in calls] == [(False, True), (False, True), (True, False)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-d", 1, "-m", "meta"), "Unknown method"),
        (("-d", 1, "-m", "mae", "-c", "vit_tset"), "Unknown configuration"),
        (("-d", 1, "-m", "mae", "-p", "other"), "no plans named"),
        (("-d", 1, "-m", "mae", "--track", "wandv"), "Unknown tracker"),
        (("-d", 1, "-m", "mae", "-c", "vit_test"), "exists already"),
    ],
)
def test_what_is_wrong_shows_before_the_queue(
    words: tuple[object, ...], message: str, dataset: Path, roots: Path, command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: object) -> None:
        raise HeadCTSSLError("submitted")

    monkeypatch.setattr(slurm, "submit", never)
    run = roots / "results" / dataset.name / "pretrain" / "mae__vit_test__plans"
    run.mkdir(parents=True)
    (run / "config.json").touch()
    code, _, err = command("pretrain", *words, "--slurm", "gpus=1")
    assert code == 2
    assert message in err
