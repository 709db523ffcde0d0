"""Tests of evaluation/jobs.py: processes that die, refuse or crash cost their own job, and are named."""

from __future__ import annotations

import multiprocessing

import pytest
from comparison_jobs import act

from headctssl.errors import UsageError
from headctssl.evaluation.jobs import Job, Share, run_jobs


def job(tmp_path, text):
    name = text.replace(" ", "-")
    return Job(f"{text} {tmp_path / name}", name, tmp_path / "logs" / f"{name}.log")


def run(tmp_path, texts, num_jobs, follow=None):
    ended = {}

    def on_end(one, error):
        ended[one.title] = error
        return [job(tmp_path, follow[one.title])] if follow and one.title in follow else []

    jobs = [job(tmp_path, text) for text in texts]
    environment = {"headctssl_results": "as given"}
    run_jobs(act, jobs, num_jobs, environment=environment, threads=1, on_start=lambda one: None, on_end=on_end)
    return ended


def test_others_go_on(tmp_path):
    ended = run(tmp_path, ["write", "die", "refuse", "crash", "write_too"], 2, {"write": "after"})
    assert set(ended) == {"write", "die", "refuse", "crash", "write_too", "after"}
    assert all(ended[name] is None for name in ("write", "write_too", "after"))
    for name in ("write", "write_too", "after"):
        assert (tmp_path / name).read_text() == "as given"
    assert "killed by SIGKILL" in ended["die"].got
    assert "die" in ended["die"].what
    assert ended["refuse"].what == "This cannot be."
    assert "ZeroDivisionError" in ended["crash"].what
    assert "by nothing" in ended["crash"].got
    log = (tmp_path / "logs" / "crash.log").read_text()
    assert "doing crash" in log
    assert "ZeroDivisionError: by nothing" in log
    assert (tmp_path / "logs" / "write.log").read_text() == "doing write\n"


def test_processes_end_when_the_parent_stops(tmp_path):
    def stop(one, error):
        raise KeyboardInterrupt

    jobs = [job(tmp_path, "sleep"), job(tmp_path, "refuse")]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(act, jobs, 2, environment={}, threads=1, on_start=lambda one: None, on_end=stop)
    assert not [p for p in multiprocessing.active_children() if p.is_alive()]
    assert not (tmp_path / "sleep").exists()


def test_the_machine_is_shared():
    with pytest.raises(UsageError, match="There must be a process"):
        Share.of(0, "cpu", None)
    assert Share.of(2, "cpu", None).readers == 0
    assert Share.of(2, "cpu", 3).readers == 3
    assert Share.of(1, "cpu", None).readers is None
    assert Share.of(10_000, "cpu", None).threads == 1
    assert Share.of(None, "cuda", None).jobs == 1
