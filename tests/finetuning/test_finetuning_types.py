"""Tests of the whole road of labels of all types: cases.csv, loss, predictions.csv, metrics.json, evaluate, predict."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score
from small_heads import head, make_dataset, make_encoder

from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import DatasetInfo, load_raw_dataset, write_raw_dataset
from headctssl.dataset.verify import verify_dataset
from headctssl.errors import DataError, UsageError
from headctssl.evaluation.evaluate import evaluate
from headctssl.finetuning.finetune import finetune
from headctssl.inference.predict import predict
from headctssl.metrics.metrics_file import Metrics
from headctssl.paths import ROOT_KINDS, data_root
from headctssl.reporting.report import report
from headctssl.settings import read_json
from headctssl.training.checkpoint import load_weights

LABELS = {
    "bleed": {"type": "binary"},
    "size": {"type": "ordinal", "classes": ["none", "large"]},
    "kind": {"type": "multiclass", "classes": ["blood", "nothing"]},
    "density": {"type": "continuous"},
}
FAST = {"num_workers": 0, "quiet": True, "device": "cpu"}


def declare(folder, labels, change=None):
    """Give dataset 2 the labels, all of which follow from its bleed; `change` edits the frame."""
    raw = load_raw_dataset(int(folder.name[7:10]))
    frame = raw.cases.copy()
    bleeds = frame["bleed"] == "1"
    known = frame["bleed"] != ""
    frame["size"] = np.where(bleeds, "large", np.where(known, "none", ""))
    frame["kind"] = np.where(bleeds, "blood", "nothing")
    frame["density"] = np.where(bleeds, "60.5", "30.5")
    frame.loc[frame.index[::5], "density"] = ""
    frame["session_id"] = "1"
    if change is not None:
        change(frame)
    write_raw_dataset(
        folder, raw.info.model_copy(update={"labels": DatasetInfo(name="x", labels=labels).labels}), frame
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Root folder and a linear classifier of labels of all types, dataset 2: two scans of each of 20 patients."""
    root = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        declare(make_dataset(2, 40, unknown=2), LABELS)
        make_encoder(root / "enc")
        yield root, finetune(2, root / "enc", adapt="linear", overrides=("training.num_epochs=60",), **FAST)


def rows(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


COLUMNS = ["bleed", "size", "size=none", "size=large", "kind", "kind=blood", "kind=nothing", "density"]


def test_one_run_learns_labels_of_all_types(mixed):
    _, run = mixed
    metrics, table = read_json(run / "metrics.json", Metrics), rows(run / "predictions.csv")
    assert [m.type for m in metrics.labels] == ["binary", "ordinal", "multiclass", "continuous"]
    assert list(table[0]) == ["case_id", "subject_id", *COLUMNS]
    truth = load_raw_dataset(2).cases.set_index("case_id").loc[[r["case_id"] for r in table]]
    for row in table:
        assert float(row["size=none"]) + float(row["size=large"]) == pytest.approx(1, abs=1e-5)
        assert float(row["kind=blood"]) + float(row["kind=nothing"]) == pytest.approx(1, abs=1e-5)
        assert row["size"] == ("large" if float(row["size=large"]) > 0.5 else "none")
    assert metrics.label("bleed").auroc > 0.9
    kind = metrics.label("kind")
    assert kind.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(truth["kind"], [row["kind"] for row in table])
    )
    assert kind.auroc > 0.9
    assert metrics.label("size").quadratic_kappa > 0.5
    known = (truth["density"] != "").tolist()
    found = np.array([float(row["density"]) for row in table])[known]
    wanted = truth["density"][known].astype(float)
    density = metrics.label("density")
    assert (density.n_known, density.n_unknown) == (sum(known), len(known) - sum(known))
    assert density.r2 == pytest.approx(r2_score(wanted, found), abs=1e-4)
    assert density.mae == pytest.approx(mean_absolute_error(wanted, found), abs=1e-3)
    assert density.mae < 10  # in its own unit: always saying the mean costs 15
    assert metrics.validation_auroc is None
    assert metrics.validation_score > 0.9
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"validation_loss", "validation_auroc", "validation_score"} <= set(lines[-1])


def test_the_contract_says_what_the_outputs_mean(mixed):
    _, run = mixed
    loaded = load_weights(run, "classifier")
    labels = {spec.name: spec for spec in loaded.contract.labels}
    assert labels["kind"].classes == ("blood", "nothing")
    assert 30.5 < labels["density"].mean < 60.5
    assert labels["density"].deviation == pytest.approx(15, abs=1)
    assert loaded.tensors["head.linear.weight"].shape[0] == 1 + 1 + 2 + 1


def test_evaluating_and_predicting_say_the_same_as_the_run(mixed, tmp_path):
    _, run = mixed
    again = evaluate(2, run, num_workers=0, quiet=True)
    first = read_json(run / "metrics.json", Metrics)
    for name in ("bleed", "size", "kind", "density"):
        ours, theirs = again.label(name), first.label(name)
        defined = [f for f in ("auroc", "quadratic_kappa", "accuracy", "mae", "r2") if getattr(ours, f) is not None]
        assert defined
        for field in defined:
            assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-4), field
    wanted = rows(run / "predictions.csv")[0]
    image = data_root("raw") / "Dataset002_Small" / "images" / f"{wanted['case_id']}.nii.gz"
    result = predict(image, run, tmp_path / "p.csv", quiet=True)
    (row,) = rows(result.file)
    assert list(row) == ["case_id", *COLUMNS]
    for name in COLUMNS:
        assert row[name] == wanted[name] or float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-3, abs=1e-5)
    (entry,) = json.loads(predict(image, run, tmp_path / "p.json", quiet=True).file.read_text())["predictions"]
    assert entry["classes"] == {"size": wanted["size"], "kind": wanted["kind"]}
    assert entry["probabilities"]["kind"]["blood"] == pytest.approx(float(wanted["kind=blood"]), abs=1e-5)
    assert entry["values"]["density"] == pytest.approx(float(wanted["density"]), rel=1e-4)


def test_studies_are_judged_beside_scans(mixed):
    """Two scans of each patient are of one session."""
    root, run = mixed
    first = read_json(run / "metrics.json", Metrics)
    assert first.studies.aggregate == "mean"
    assert first.studies.num_studies == first.studies.num_with_several == first.num_subjects == first.num_cases / 2
    metrics = evaluate(2, run, split="all", aggregate="max", num_workers=0, quiet=True)
    assert metrics.studies.aggregate == "max"
    assert metrics.studies.labels[0].n_positive + metrics.studies.labels[0].n_negative == 19
    folder = next((root / "results" / "Dataset002_Small" / "evaluate").glob("*__all"))
    scans, studies = rows(folder / "predictions.csv"), rows(folder / "predictions_studies.csv")
    assert list(studies[0]) == ["subject_id", "session_id", "num_scans", *COLUMNS]
    for study in studies:
        mine = [scan for scan in scans if scan["subject_id"] == study["subject_id"]]
        assert (study["session_id"], int(study["num_scans"])) == ("1", len(mine))
        assert float(study["bleed"]) == max(float(scan["bleed"]) for scan in mine)
        assert float(study["density"]) == max(float(scan["density"]) for scan in mine)
    with pytest.raises(UsageError, match="brought together"):
        evaluate(2, run, aggregate="median", quiet=True)


def test_the_report_shows_them(mixed, tmp_path):
    _, run = mixed
    text = report(run, output=tmp_path / "r.html", quiet=True).read_text()
    for words in ("Classes, grades and numbers", "Confusion of kind", "called blood", "By study", "root mean square"):
        assert words in text


def test_classes_of_another_dataset_are_matched_by_name(mixed):
    root, run = mixed
    folder = make_dataset(3, 8, name="Other")
    turned = {**LABELS, "kind": {"type": "multiclass", "classes": ["nothing", "blood"]}}
    declare(folder, turned)
    metrics = evaluate(3, run, split="all", num_workers=0, quiet=True)
    table = rows(next((root / "results" / "Dataset003_Other" / "evaluate").glob("*__all")) / "predictions.csv")
    truth = load_raw_dataset(3).cases.set_index("case_id")["kind"].loc[[r["case_id"] for r in table]]
    assert metrics.label("kind").classes == ("blood", "nothing")
    assert metrics.label("kind").accuracy == pytest.approx(np.mean(truth.to_numpy() == [r["kind"] for r in table]))
    assert metrics.label("kind").accuracy > 0.8
    other = {**LABELS, "kind": {"type": "multiclass", "classes": ["nothing", "blood", "SDH"]}}
    declare(folder, {**other, "size": {"type": "ordinal", "classes": ["large", "none"]}})
    metrics = evaluate(3, run, split="all", num_workers=0, quiet=True)
    assert [m.name for m in metrics.labels] == ["bleed", "density"]
    assert any("'kind' has other classes" in note and "not SDH" in note for note in metrics.notes)
    assert any("'size'" in note and "order" in note for note in metrics.notes)


def test_full_fine_tuning_learns_them_too_and_few_shots_of_a_number_are_refused(mixed):
    root, _ = mixed
    overrides = ("training.num_epochs=2", "training.precision=float32")
    run = finetune(2, root / "enc", labels=["density", "kind"], overrides=overrides, **FAST)
    metrics = read_json(run / "metrics.json", Metrics)
    assert [m.name for m in metrics.labels] == ["density", "kind"]
    assert np.isfinite(metrics.label("density").rmse)
    assert metrics.mean_auroc is None
    with pytest.raises(UsageError, match="'density' is a number"):
        finetune(2, root / "enc", labels=["density"], few_shots=2, **FAST)
    shots = finetune(2, root / "enc", adapt="linear", labels=["kind"], few_shots=2, **FAST)
    assert sum(row["part"] == "train" for row in rows(shots / "cases.csv")) == 4


def test_every_wrong_value_is_told_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("headctssl_raw", str(tmp_path))
    folder = tmp_path / "Dataset005_Wrong"
    (folder / "images").mkdir(parents=True)
    cells = [("blood", "large", "12"), ("clot", "none", "1e3"), ("nothing", "huge", "12 mm"), ("", "", "nan")]
    frame = pd.DataFrame(
        [
            {"case_id": f"c{k}", "image": f"images/c{k}.nii.gz", "kind": a, "size": b, "density": c}
            for k, (a, b, c) in enumerate(cells)
        ],
        dtype=str,
    )
    for k in range(4):
        write_nifti(folder / "images" / f"c{k}.nii.gz", head(k, False))
    labels = {name: LABELS[name] for name in ("kind", "size", "density")}
    (folder / "dataset.json").write_text(json.dumps({"format": 1, "name": "Wrong", "labels": labels}))
    frame.to_csv(folder / "cases.csv", index=False)
    report = verify_dataset(5, num_workers=1, quiet=True)
    told = {(fault.case_id, fault.got): fault.expected for fault in report.faults}
    assert told == {
        ("c1", "'clot'"): "one of blood, nothing, or empty",
        ("c2", "'huge'"): "one of none, large, or empty",
        ("c2", "'12 mm'"): "a number or empty",
        ("c3", "'nan'"): "a number or empty",
    }
    with pytest.raises(DataError, match="'c1'"):
        load_raw_dataset(5).labels()
