"""Tests of finetuning/series.py, pool_folds.py, sum_up.py, ensemble.py: folds, draws and sizes of one call."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_heads import make_dataset, make_encoder

from headctssl.contract import LabelSpec
from headctssl.errors import ContractError, UsageError
from headctssl.evaluation.evaluate import evaluate
from headctssl.finetuning.ensemble import find_classifiers, open_ensemble
from headctssl.finetuning.finetune import finetune
from headctssl.finetuning.series_file import Draws, LearningCurve
from headctssl.finetuning.sum_up import over_draws
from headctssl.inference.predict import predict
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome
from headctssl.paths import ROOT_KINDS
from headctssl.settings import read_json
from headctssl.training.checkpoint import load_weights
from headctssl.training.run_log import RunLog

FAST = {"adapt": "linear", "num_workers": 0, "quiet": True, "device": "cpu", "overrides": ("training.num_epochs=8",)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("series")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "picture", lambda self, final=False: None)
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 32, unknown=2)
        make_encoder(root / "enc")
        yield root


@pytest.fixture(scope="module")
def folds(small):
    return finetune(2, small / "enc", fold="all", **FAST)


def rows(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return {row["case_id"]: row for row in csv.DictReader(handle)}


def splits_of(small):
    return json.loads(next((small / "preprocessed").glob("*/splits.json")).read_text())


def test_all_folds_are_trained_and_every_case_is_predicted_by_the_fold_that_did_not_learn_it(folds, small):
    splits = splits_of(small)
    count = len(splits["folds"])
    assert count > 2
    assert sorted(p.name for p in folds.glob("fold_*")) == [f"fold_{k}" for k in range(count)]
    found = rows(folds / "out_of_fold" / "predictions.csv")
    assert set(found) == {c for fold in splits["folds"] for c in fold["val"]}
    assert not set(found) & set(splits["test"])
    for k, fold in enumerate(splits["folds"]):
        own = rows(folds / f"fold_{k}" / "validation_predictions.csv")
        assert set(own) == set(fold["val"])
        learnt = {c for c, row in rows(folds / f"fold_{k}" / "cases.csv").items() if row["part"] == "train"}
        assert not learnt & set(own)
        assert all(found[c] == row for c, row in own.items())
    metrics = read_json(folds / "out_of_fold" / "metrics.json", Metrics)
    assert metrics.evaluated_on == "out_of_fold"
    assert metrics.num_cases == len(found)
    truth = {f"case2_{k:02d}": (k // 2) % 2 == 0 for k in range(30)}
    known = [c for c in found if c in truth]
    area = roc_auc_score([truth[c] for c in known], [float(found[c]["bleed"]) for c in known])
    assert metrics.label("bleed").auroc == pytest.approx(area)
    assert metrics.label("bleed").auroc_ci[0] <= area <= metrics.label("bleed").auroc_ci[1]


def test_predict_and_evaluate_take_the_mean_of_the_folds(folds, small):
    members = [rows(path / "predictions.csv") for path in sorted(folds.glob("fold_*"))]
    together = rows(folds / "ensemble" / "predictions.csv")
    for case_id, row in together.items():
        mean = np.mean([float(one[case_id]["bleed"]) for one in members])
        assert float(row["bleed"]) == pytest.approx(mean, rel=1e-4)
    written = read_json(folds / "ensemble" / "metrics.json", Metrics)
    found = evaluate(2, folds, num_workers=0, quiet=True, device="cpu")
    assert found.evaluated_on == "test"
    assert found.label("bleed").auroc == pytest.approx(written.label("bleed").auroc)
    assert found.label("bleed").brier == pytest.approx(written.label("bleed").brier, abs=1e-5)
    assert f"{len(members)} folds" in found.notes[0]
    case_id = next(iter(together))
    image = small / "raw" / "Dataset002_Small" / "images" / f"{case_id}.nii.gz"
    done = predict(image, folds, small / "one.csv", num_workers=0, quiet=True, device="cpu")
    assert done.probabilities[0, 0] == pytest.approx(float(together[case_id]["bleed"]), abs=1e-4)
    temperatures = [load_weights(path).contract.temperature for path in find_classifiers(folds)]
    assert open_ensemble(folds).temperature == pytest.approx(np.mean(temperatures))
    assert found.temperature == pytest.approx(np.mean(temperatures))


def test_finished_folds_are_kept_by_continue_and_refused_without(folds, small):
    before = {p: (p / "classifier.safetensors").stat().st_mtime_ns for p in folds.glob("fold_*")}
    with pytest.raises(UsageError, match="exists already"):
        finetune(2, small / "enc", fold=["0", "1"], **FAST)
    (folds / "fold_1" / "metrics.json").unlink()  # a run that was stopped before its end
    assert finetune(2, small / "enc", fold="all", resume=True, **FAST) == folds
    after = {p: (p / "classifier.safetensors").stat().st_mtime_ns for p in folds.glob("fold_*")}
    assert [p.name for p in before if before[p] != after[p]] == ["fold_1"]
    with pytest.raises(UsageError, match=r"'training\.num_steps' differs"):
        finetune(2, small / "enc", fold="all", resume=True, **{**FAST, "overrides": ("training.num_epochs=9",)})


def test_folds_of_other_labels_are_no_ensemble(folds, small):
    other = finetune(2, small / "enc", labels=["bleed"], fold="1", tag="other", **FAST)
    mixed = small / "mixed"
    for name, run in (("fold_0", folds / "fold_0"), ("fold_1", other)):
        (mixed / name).mkdir(parents=True)
        (mixed / name / "classifier.safetensors").write_bytes((run / "classifier.safetensors").read_bytes())
    with pytest.raises(ContractError, match="different labels"):
        open_ensemble(mixed)


def test_draws_and_sizes_make_a_learning_curve_of_nested_draws(small, command):
    call = ["-d", 2, "-w", small / "enc", "--adapt", "linear", "--labels", "bleed", "--few_shots", 1, 2, "all"]
    code, out, err = command(
        "finetune", *call, "--draws", 2, "--device", "cpu", "--num_workers", 0, "--set", "training.num_epochs=4"
    )
    assert code == 0, err
    assert "2 draws of 2 patients per class" in out
    folder = next((small / "results" / "Dataset002_Small" / "finetune").glob("bleed-curve__linear__*"))
    curve = read_json(folder / "learning_curve.json", LearningCurve)
    assert [point.few_shots for point in curve.points] == [1, 2, None]
    assert [point.num_train for point in curve.points[:2]] == [(2, 2), (4, 4)]
    curve_files = {f"learning_curve.{x}" for x in ("json", "csv", "png")}
    assert {p.name for p in folder.iterdir()} == curve_files | {"report.html"}
    task = next(folder.parent.glob("bleed-2shots__linear__*"))
    draws = read_json(task / "draws.json", Draws)
    assert draws.draws == (0, 1)
    assert draws.auroc[0].mean == pytest.approx(np.mean(draws.auroc[0].per_draw))
    one = next(folder.parent.glob("bleed-1shots__linear__*"))
    for part in ("fold_0", "draw_1/fold_0"):
        cases = [{c for c, r in rows(t / part / "cases.csv").items() if r["part"] == "train"} for t in (one, task)]
        assert cases[0] < cases[1]
    assert rows(task / "fold_0" / "cases.csv").keys() != rows(task / "draw_1" / "fold_0" / "cases.csv").keys()
    # Another adaptation and another seed learn from the same patients.
    options = {**FAST, "adapt": "full", "overrides": ("training.num_steps=1", "training.seed=5")}
    other = finetune(2, small / "enc", few_shots=2, draw=1, labels=["bleed"], **options)
    assert rows(other / "cases.csv") == rows(task / "draw_1" / "fold_0" / "cases.csv")


def test_a_classifier_of_every_case_is_no_fold_of_the_others(small):
    task = finetune(2, small / "enc", labels=["bleed"], fold=["0", "none", "1"], tag="every", **FAST)
    assert (task / "fold_none" / "metrics.json").is_file()
    for folder in ("ensemble", "out_of_fold"):
        assert read_json(task / folder / "metrics.json", Metrics).fold == "0, 1"
    members = [rows(task / f"fold_{k}" / "predictions.csv") for k in (0, 1)]
    for case_id, row in rows(task / "ensemble" / "predictions.csv").items():
        assert float(row["bleed"]) == pytest.approx(
            np.mean([float(one[case_id]["bleed"]) for one in members]), rel=1e-4
        )
    found = evaluate(2, task, num_workers=0, quiet=True, device="cpu")
    assert found.label("bleed").brier == pytest.approx(
        read_json(task / "ensemble" / "metrics.json", Metrics).label("bleed").brier, abs=1e-5
    )


def test_a_curve_of_all_negatives_is_named_so_whatever_comes_first(small):
    folder = finetune(2, small / "enc", labels=["bleed"], few_shots=["all", 2], all_negatives=True, tag="negatives",
                      **FAST)  # fmt: skip
    assert folder.name.startswith("bleed-curve_all_negatives__")


def test_wrong_series_are_told(small):
    for wrong, match in (
        ({"fold": ["0", "0"]}, "something twice"),
        ({"fold": ["all", "0"]}, "stands for every fold"),
        ({"draws": 2}, "Draws belong to few shots"),
        ({"draws": 0, "few_shots": 2}, "must be a draw"),
        ({"few_shots": [2, 2]}, "something twice"),
        ({"few_shots": "many"}, "number of shots"),
        ({"all_negatives": True}, "belong to few shots"),
        ({"draw": 1}, "belong to few shots"),
    ):
        with pytest.raises(UsageError, match=match):
            finetune(2, small / "enc", **{**FAST, **wrong})


def test_intervals_over_draws_hold_the_chance_of_draws_and_of_patients():
    rng = np.random.default_rng(0)
    truth = (np.arange(200) < 60).astype(np.float64)[:, None]
    ids = tuple(f"c{k}" for k in range(200))
    outcomes = [
        Outcome(
            (LabelSpec(name="x"),), ids, ("",) * 200, truth, 1 / (1 + np.exp(-(truth + rng.normal(0, s, (200, 1)))))
        )
        for s in (0.7, 1.0, 1.5, 2.0)
    ]
    (found,) = over_draws(outcomes[0].specs, outcomes)
    areas = [roc_auc_score(truth[:, 0], o.probability[:, 0]) for o in outcomes]
    assert found.per_draw == pytest.approx(areas)
    assert found.deviation == pytest.approx(np.std(areas, ddof=1))
    assert found.draws_ci == pytest.approx(
        tuple(np.mean(areas) + np.array([-1, 1]) * 3.1824463 * np.std(areas, ddof=1) / 2), abs=1e-4
    )
    assert found.ci[0] < found.draws_ci[0] < found.mean < found.draws_ci[1] < found.ci[1]
    (single,) = over_draws(outcomes[0].specs, outcomes[:1])
    assert (single.draws_ci, single.ci, single.deviation) == (None, None, None)


def test_draws_that_are_judged_by_their_own_cases_are_scored_by_their_own_truth():
    """Where nothing is held out, every draw is judged by the cases it learnt from."""
    rng = np.random.default_rng(1)
    outcomes = []
    for draw in range(3):
        truth = rng.permutation(np.repeat([0.0, 1.0], 10))[:, None]
        ids = tuple(f"c{draw}_{k}" for k in range(20))
        outcomes.append(Outcome((LabelSpec(name="x"),), ids, ("",) * 20, truth, truth * 0.5 + rng.random((20, 1)) / 4))
    (found,) = over_draws(outcomes[0].specs, outcomes)
    assert found.per_draw == (1.0, 1.0, 1.0)
    assert found.draws_ci == (1.0, 1.0)
    assert found.ci is None
