"""Tests of finetuning/leakage.py: the whole chain of runs behind an encoder counts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from small_heads import INPUT, STORAGE

from headctssl.contract import Contract
from headctssl.finetuning.leakage import describe_leakage, describe_reuse
from headctssl.presets import encoder_preset
from headctssl.settings import write_json


class Judged(SimpleNamespace):
    """As much of a CaseIndex as is looked at."""

    def __len__(self):
        return len(self.rows)


JUDGED = Judged(rows=[SimpleNamespace(source_sha256=name) for name in ("s1", "s2", "s3")])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes a finished run of the results root; returns its weights file and contract."""
    monkeypatch.setenv("headctssl_results", str(tmp_path))

    def make(name, init, sources, kind="encoder"):
        folder = tmp_path / "Dataset001_A" / ("pretrain" if kind == "encoder" else "finetune/task") / f"fold_{name}"
        folder.mkdir(parents=True)
        contract = Contract(
            package_version="0", kind=kind, storage=STORAGE, input=INPUT, preset="vit_test", method="dino",
            encoder=encoder_preset("vit_test").settings, settings=json.dumps({"init": init}), num_scans=1,
            cases_digest="0", weights_hash=name,
        )  # fmt: skip
        write_json(folder / "contract.json", contract)
        if sources is not None:
            text = "".join(f"1,case_{source},{source}\n" for source in sources)
            (folder / "cases.csv").write_text("dataset_id,case_id,source_sha256\n" + text)
        return folder / f"{kind}.safetensors", contract

    return make


def test_cases_of_every_run_of_the_chain_count(run):
    run("first", "scratch", ["s1", "x"])
    run("second", "first", ["s2", "y"])
    told = describe_leakage(*run("third", "second", ["z"]), JUDGED)
    assert told == "pretraining: 2 of 3 judged cases were used without their labels, so metrics may be optimistic"


def test_a_chain_without_overlap_counts_its_scans(run):
    run("first", "scratch", ["x", "y"])
    told = describe_leakage(*run("second", "first", ["y", "z"]), JUDGED)
    assert told == "pretraining: no overlap with its 3 scans"


def test_an_earlier_run_that_is_not_here_is_told(run):
    told = describe_leakage(*run("second", "0123456789abcdef", ["s1"]), JUDGED)
    assert "1 of 3 judged cases" in told
    assert "began from weights 01234567, whose cases cannot be checked" in told
    run("old", "scratch", None)
    told = describe_leakage(*run("new", "old", ["x"]), JUDGED)
    assert (
        told == "pretraining: no overlap with its 1 scans; cannot be checked, the earlier run old has no list of cases"
    )
    told = describe_leakage(*run("bare", "scratch", None), JUDGED)
    assert told == "pretraining: cannot be checked, the encoder's folder has no list of cases"


def test_an_earlier_classifier_saw_labels(run):
    run("first", "scratch", ["s1"])
    run("labels", "first", ["s2", "x"], kind="classifier")
    told = describe_leakage(*run("second", "labels", ["z"]), JUDGED)
    assert "2 of 3 judged cases were used, 1 of them with their labels" in told
    assert "trained a classifier, so labels may have been seen" in told


def test_a_classifier_follows_the_chain_of_its_encoder(run):
    run("first", "scratch", ["s3"])
    run("second", "first", ["x"])
    told = describe_reuse(*run("model", "second", ["y"], kind="classifier"), JUDGED)
    assert "training: no overlap with its 1 scans" in told
    assert "pretraining: 1 of 3 judged cases" in told
    assert "no run here wrote this encoder" in describe_reuse(*run("m2", "gone", ["y"], kind="classifier"), JUDGED)
    assert "from scratch" in describe_reuse(*run("m3", "scratch", ["y"], kind="classifier"), JUDGED)
