"""Tests of finetuning/leakage.py: the whole chain of runs behind an encoder counts, and the run's own cases do."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
from small_heads import INPUT, STORAGE, make_dataset, make_encoder

from headctssl.contract import Contract
from headctssl.dataset.manifest import load_raw_dataset, write_raw_dataset
from headctssl.evaluation.evaluate import evaluate
from headctssl.finetuning.finetune import finetune
from headctssl.finetuning.leakage import describe_leakage, describe_out_of_fold, describe_reuse, describe_run
from headctssl.metrics.metrics_file import Metrics
from headctssl.presets import encoder_preset
from headctssl.settings import read_json, write_json


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


def test_the_cases_a_run_itself_learns_from_count(run, tmp_path):
    weights, contract = run("first", "scratch", ["s3"])
    model, own = run("model", "first", ["s1", "x"], kind="classifier")
    told = describe_run(model.parent, weights, contract, JUDGED)
    assert told == describe_reuse(model, own, JUDGED)
    assert told.startswith("training: 1 of 3 judged cases were used with their labels, so metrics may be optimistic; ")
    assert "pretraining: 1 of 3 judged cases" in told
    assert "cannot be checked, the classifier's" in describe_run(tmp_path / "none", weights, contract, JUDGED)


def test_validation_cases_of_folds_are_looked_for_in_the_training_of_their_own_fold(run, tmp_path):
    _, contract = run("model", "scratch", None, kind="classifier")
    for fold, rows in (("0", "a,train b,train c,val d,val"), ("1", "c,train d,train a,val b,val")):
        (tmp_path / fold).mkdir()
        lines = [f"1,case_{row.replace(',', f',{row[0]},')}" for row in rows.split()]
        (tmp_path / fold / "cases.csv").write_text("\n".join(["dataset_id,case_id,source_sha256,part", *lines]) + "\n")
    folders = [tmp_path / "0", tmp_path / "1"]
    assert "training: no overlap with the training scans" in describe_out_of_fold(folders, contract)
    text = (tmp_path / "1" / "cases.csv").read_text()
    (tmp_path / "1" / "cases.csv").write_text(text.replace("case_a,a", "case_a,d"))
    assert "training: 1 of 4 judged cases were used with their labels" in describe_out_of_fold(folders, contract)
    assert "cannot be checked" in describe_out_of_fold([*folders, tmp_path / "none"], contract)


def test_a_test_scan_that_is_also_listed_for_training_is_told_by_every_command(roots, capsys):
    folder = make_dataset(2, 16, unknown=0)
    raw = load_raw_dataset(2)
    split = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    write_raw_dataset(folder, raw.info, raw.cases.assign(split=split))
    shutil.copy(folder / "images" / "case2_00.nii.gz", folder / "images" / "case2_13.nii.gz")
    make_encoder(roots / "enc")
    fast = {"adapt": "linear", "labels": ["bleed"], "num_workers": 0, "device": "cpu"}
    run = finetune(2, roots / "enc", overrides=("training.num_epochs=2",), **fast)
    told = "training: 1 of 4 judged cases were used with their labels, so metrics may be optimistic"
    printed = capsys.readouterr()
    assert told in read_json(run / "metrics.json", Metrics).leakage
    assert f"leakage: {told}" in printed.out
    assert told in evaluate(2, run, num_workers=0, quiet=True).leakage
    # Preprocessing warned before.
    assert "warning: 1 of the cases of Dataset002_Small have the file of a case of another subject" in printed.err
    assert "case 'case2_13' has the same file as case 'case2_00' of subject 'patient2_0'" in printed.err
    with open(run / "cases.csv", newline="", encoding="utf-8") as handle:
        assert {row["part"] for row in csv.DictReader(handle)} == {"train", "val"}
