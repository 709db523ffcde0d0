"""Tests of evaluation/evaluate.py: another dataset with another spacing, shared labels, leakage, refusals."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from small_heads import make_dataset, make_encoder

from headctssl.errors import ContractError, DataError, UsageError
from headctssl.evaluation.evaluate import evaluate
from headctssl.finetuning.finetune import finetune
from headctssl.paths import ROOT_KINDS, data_root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Dataset 2 with a classifier of it, and dataset 3 of other heads at another spacing, never planned."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 24)
        make_dataset(3, 16, spacing=6.0, name="Other")
        make_encoder(root / "enc")
        overrides = ("training.num_epochs=20",)
        yield root, finetune(2, root / "enc", adapt="linear", overrides=overrides, num_workers=0, quiet=True)


def test_another_dataset_needs_no_further_flag(trained, command):
    root, classifier = trained
    code, out, _ = command("evaluate", "-d", 3, "-w", classifier, "--split", "all", "--num_workers", 0)
    assert code == 0
    assert "not preprocessed" in out
    folder = next((root / "results" / "Dataset003_Other" / "evaluate").glob("*__all"))
    assert {p.name for p in folder.iterdir()} == {
        "contract.json", "evaluation.json", "metrics.json", "predictions.csv", "report.html",
    }  # fmt: skip
    content = json.loads((folder / "metrics.json").read_text())
    assert content["num_cases"] == 16
    assert content["num_subjects"] == 8
    with open(folder / "predictions.csv", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert list(table[0]) == ["case_id", "subject_id", "bleed", "noise"]
    known = [(k // 2) % 2 == 0 for k in range(15)]
    score = [float(row["bleed"]) for row in sorted(table, key=lambda r: r["case_id"])][:15]
    bleed = content["labels"]["bleed"]
    assert bleed["n_unknown"] == 1
    assert bleed["auroc"] == pytest.approx(roc_auc_score(known, score))
    assert bleed["auprc"] == pytest.approx(average_precision_score(known, score))
    assert bleed["auroc"] > 0.8
    assert bleed["auroc_ci"][0] <= bleed["auroc"] <= bleed["auroc_ci"][1]
    assert "no overlap with its" in content["leakage"]
    assert any("too few to tell" in note for note in content["notes"])


def test_evaluation_repeats_the_test_metrics_of_the_run(trained):
    _, classifier = trained
    again = evaluate(2, classifier, num_workers=0, quiet=True)
    first = json.loads((classifier / "metrics.json").read_text())
    assert again.label("bleed").auroc == pytest.approx(first["labels"]["bleed"]["auroc"])
    assert again.weights_hash == first["weights_hash"]
    everything = evaluate(2, classifier, split="all", num_workers=0, quiet=True)
    assert "of 24 judged cases were used with their labels" in everything.leakage
    assert "pretraining: cannot be checked" in everything.leakage


def test_labels_are_matched_by_name(trained):
    _, classifier = trained
    folder = make_dataset(4, 8, name="Renamed")
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace('"noise"', '"fracture"'))
    table = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(table.replace("noise", "fracture"))
    metrics = evaluate(4, classifier, split="all", num_workers=0, quiet=True)
    assert [m.name for m in metrics.labels] == ["bleed"]
    assert any("'noise'" in note for note in metrics.notes)
    assert np.isfinite(metrics.mean_auroc)
    for path in (folder / "dataset.json", folder / "cases.csv"):
        path.write_text(path.read_text().replace("bleed", "tumour"))
    with pytest.raises(ContractError, match="none of the classifier's labels"):
        evaluate(4, classifier, split="all", quiet=True)


def test_test_cases_that_left_the_dataset_are_left_out_and_counted(trained):
    _, classifier = trained
    folder = make_dataset(6, 16, name="Shrinks")
    before = evaluate(6, classifier, num_workers=0, quiet=True)
    path = next((data_root("preprocessed") / folder.name).glob("splits.json"))
    test = json.loads(path.read_text())["test"]
    table = folder / "cases.csv"
    whole = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in whole if not line.startswith(test[0])))
    after = evaluate(6, classifier, num_workers=0, quiet=True)
    assert (before.num_cases, after.num_cases, after.num_failed) == (len(test), len(test) - 1, 0)
    assert any(f"1 of {len(test)} test cases" in note for note in after.notes)
    table.write_text("".join(line for line in whole if not line.startswith(tuple(test))))
    with pytest.raises(DataError, match="none of its test cases any more"):
        evaluate(6, classifier, num_workers=0, quiet=True)


def test_refusals(trained):
    root, classifier = trained
    with pytest.raises(ContractError, match="another kind"):
        evaluate(2, root / "enc", quiet=True)
    with pytest.raises(UsageError, match="no raw dataset"):
        evaluate(99, classifier, quiet=True)
    with pytest.raises(UsageError, match="split"):
        evaluate(2, classifier, split="train", quiet=True)
    make_dataset(5, 4, name="Few")  # two patients: all for training
    with pytest.raises(DataError, match="no test cases"):
        evaluate(5, classifier, num_workers=0, quiet=True)
