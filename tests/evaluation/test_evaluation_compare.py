"""Tests of evaluation/compare.py: a comparison on tiny heads, killed, gone on with, reused, and what it refuses."""

from __future__ import annotations

import csv
import json
import multiprocessing
import threading
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from small_heads import make_dataset, make_encoder

from headctssl.cli.main import run_command
from headctssl.errors import DataError, UsageError
from headctssl.evaluation.cells import read_predictions
from headctssl.evaluation.compare import compare
from headctssl.evaluation.comparison import TIDY_COLUMNS, Comparison
from headctssl.evaluation.roster import Roster
from headctssl.metrics.paired import holm
from headctssl.paths import ROOT_KINDS
from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
from headctssl.settings import read_json

FAST = ("pretrain.training.num_steps=2", "finetune.training.num_epochs=1")
ASKED = {
    "encoders": ("vit_test", "resenc_test"),
    "methods": ("mae", "scratch"),
    "few_shots": (2, "all"),
    "seeds": 1,
    "num_jobs": 2,
    "num_resamples": 60,
    "device": "cpu",
    "overrides": FAST,
    "quiet": True,
}
ONE = {**ASKED, "encoders": ("vit_test",), "methods": (), "few_shots": ("all",), "adapt": ("linear",), "num_jobs": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 36, unknown=2)
        plan_and_preprocess([2], num_workers=1, quiet=True)
        perfect = [(f"case2_{k:02d}", float((k // 2) % 2 == 0)) for k in range(36)]
        (root / "other.csv").write_text(
            "case_id,f0,f1\n" + "".join(f"{c},{v},{k}\n" for k, (c, v) in enumerate(perfect))
        )
        yield root


def folder_of(root, name="comparison"):
    return root / "results" / "Dataset002_Small" / "compare" / name


@pytest.fixture(scope="module")
def killed(small):
    """The first call, one of whose processes is killed while it fine-tunes."""
    asked = {**ASKED, "embeddings": {"other": small / "other.csv"}}
    found = []
    thread = threading.Thread(target=lambda: found.append(compare(2, **asked)))
    thread.start()
    logs = folder_of(small) / "logs"
    deadline = time.monotonic() + 600  # a busy machine begins late
    while thread.is_alive() and time.monotonic() < deadline:
        if [path for path in logs.glob("*.log") if len(path.stem) == 16]:  # named by the key of a fine-tuning run
            victim = next((p for p in multiprocessing.active_children() if p.is_alive()), None)
            if victim is not None:
                victim.kill()
                break
        time.sleep(0.02)
    thread.join()
    return asked, found[0]


@pytest.fixture(scope="module")
def finished(killed):
    """The same call again."""
    asked, _ = killed
    return compare(2, **asked)


def test_a_killed_process_is_named_and_others_go_on(killed):
    _, result = killed
    status = Counter(cell.status for cell in result.comparison.cells)
    assert result.exit_code == 1
    assert status["failed"] == result.num_failed >= 1
    assert status["done"] > status["failed"]
    assert all("SIGKILL" in cell.error for cell in result.comparison.cells if cell.status == "failed")


def test_the_same_call_makes_what_is_missing_and_only_that(killed, finished):
    _, before = killed
    assert finished.exit_code == 0
    failed = [cell.status == "failed" for cell in before.comparison.cells]
    assert [cell.status for cell in finished.comparison.cells] == ["done" if lost else "reused" for lost in failed]


def test_everything_is_in_the_table(finished):
    comparison = finished.comparison
    kinds = Counter(arm.kind for arm in comparison.arms)
    assert kinds == {"pretrained": 4, "scratch": 2, "random": 2, "histogram": 1, "embeddings": 1}
    assert len(comparison.cells) == 10 * 2
    for budget in (2, None):
        ranked = comparison.ranked("Dataset002_Small", budget)
        assert {entry.arm for entry in ranked} == {arm.name for arm in comparison.arms}
        assert [entry.rank for entry in ranked] == sorted(entry.rank for entry in ranked)
    entry = {e.arm: e for e in comparison.ranked("Dataset002_Small", None)}
    assert entry["mae/resenc_test/full"].reference == "scratch/resenc_test/full"
    assert entry["other"].labels[0].auroc == 1.0  # its vectors hold the label
    assert entry["other"].overlap == "unchecked"
    assert entry["mae/vit_test/full"].overlap == ""
    assert entry["mae/vit_test/full"].cost.scans_seen > 0
    assert entry["scratch/vit_test/full"].cost.scans_seen == 0
    full, linear = (entry[f"mae/vit_test/{adapt}"].cost.parameters_trained for adapt in ("full", "linear"))
    assert full > 10 * linear > 0
    assert any("cannot be checked" in note for note in comparison.notes)


def test_files(finished, small):
    folder = finished.folder
    assert folder == folder_of(small)
    assert read_json(folder / "comparison.json", Comparison) == finished.comparison
    assert {p.name for p in folder.iterdir()} == {
        "comparison.json", "comparison.csv", "learning_curves.png", "radar.png", "logs",
    }  # fmt: skip
    with open(folder / "comparison.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert tuple(rows[0]) == TIDY_COLUMNS
    runs = {tuple(row[c] for c in TIDY_COLUMNS[1:8]) for row in rows}
    assert len(runs) == 20
    assert {row["metric"] for row in rows if row["label"] == "bleed"} >= {"auroc", "auprc", "brier"}
    counts = {(row["label"], row["n_positive"], row["n_negative"]) for row in rows if row["label"] != "(mean)"}
    assert len(counts) == 2  # one pair of counts per label: the same test cases in every run
    for name in ("comparison.json", "comparison.csv"):
        text = (folder / name).read_text()
        assert "case2_" not in text
        assert str(small) not in text


def test_every_run_predicts_the_same_test_cases_and_seeds_have_folders_of_their_own(finished, small):
    splits = json.loads(next((small / "preprocessed").glob("*/splits.json")).read_text())
    cells = folder_of(small, "cells")
    for cell in finished.comparison.cells:
        assert sorted(read_predictions(cells / cell.key / "predictions.csv").case_ids) == sorted(splits["test"])
        if cell.arm.startswith("mae"):
            assert cell.pretraining_run.endswith("__plans__seed0")
            assert (small / "results" / cell.pretraining_run / "encoder.safetensors").is_file()
    assert len({cell.key for cell in finished.comparison.cells}) == 20


def test_a_reused_comparison_is_the_same(finished, killed):
    asked, _ = killed
    folder = finished.folder
    table, cell = folder / "comparison.csv", folder.parent / "cells" / finished.comparison.cells[0].key / "cell.json"
    before = table.read_bytes(), cell.stat().st_mtime_ns
    again = compare(2, **asked)
    assert {c.status for c in again.comparison.cells} == {"reused"}
    assert again.comparison.ranking == finished.comparison.ranking
    assert (table.read_bytes(), cell.stat().st_mtime_ns) == before


def test_a_run_with_other_settings_is_refused_and_the_field_named(finished, killed):
    asked, _ = killed
    with pytest.raises(UsageError, match=r"training\.num_steps") as caught:
        compare(2, **{**asked, "overrides": ("pretrain.training.num_steps=3", FAST[1])})
    assert "--set pretrain" in caught.value.do


def test_p_values_are_corrected_for_all_comparisons_of_the_file(finished):
    raw = {(e.label_budget, e.arm): e.p_value for e in finished.comparison.ranking if e.p_value is not None}
    found = {(e.label_budget, e.arm): e.p_holm for e in finished.comparison.ranking if e.p_holm is not None}
    assert found.keys() == raw.keys()
    assert len(raw) == 2 * 8  # every arm but the two from scratch, at both budgets
    assert found == dict(zip(raw, holm(list(raw.values())), strict=True))
    assert found != raw


def test_a_changed_label_or_subject_makes_new_runs(roots):
    raw = make_dataset(3, 24)
    plan_and_preprocess([3], num_workers=1, quiet=True)
    first = compare(3, **ONE)
    (splits,) = (roots / "preprocessed").glob("*/splits.json")
    test = json.loads(splits.read_text())["test"][0]
    table = pd.read_csv(raw / "cases.csv", dtype=str, keep_default_na=False)
    row = table["case_id"] == test
    table.loc[row, "noise"] = {"0": "1", "1": "0"}[table.loc[row, "noise"].item()]
    table.to_csv(raw / "cases.csv", index=False)
    second = compare(3, **ONE)
    assert {cell.status for cell in second.comparison.cells} == {"done"}, "no kept result is of the old labels"
    assert second.comparison.tests[0].positives != first.comparison.tests[0].positives
    info = json.loads((raw / "dataset.json").read_text())
    info["labels"] = {{"noise": "sound"}.get(name, name): spec for name, spec in info["labels"].items()}
    (raw / "dataset.json").write_text(json.dumps(info))
    table.rename(columns={"noise": "sound"}).to_csv(raw / "cases.csv", index=False)
    third = compare(3, **ONE)
    assert {cell.status for cell in third.comparison.cells} == {"done"}, "nor of the old name of a label"
    assert {score.label for entry in third.comparison.ranking for score in entry.labels} == {"bleed", "sound"}
    table = table.rename(columns={"noise": "sound"})
    subjects = table.loc[table["case_id"].isin(json.loads(splits.read_text())["test"]), "subject_id"]
    table["subject_id"] = table["subject_id"].replace(subjects.iloc[0], subjects.iloc[-1])
    table.to_csv(raw / "cases.csv", index=False)
    fourth = compare(3, **ONE)
    assert fourth.comparison.tests[0].num_subjects == third.comparison.tests[0].num_subjects - 1
    assert {cell.status for cell in fourth.comparison.cells} == {"done"}, "nor of subjects that were grouped otherwise"


def test_labels_without_an_auroc_are_left_out_and_told_or_refused(roots):
    raw = make_dataset(4, 8)
    info = json.loads((raw / "dataset.json").read_text())
    info["labels"]["noise"] = {"type": "continuous"}
    (raw / "dataset.json").write_text(json.dumps(info))
    roster = Roster.open(4, None, "0")
    assert roster.labels == ("bleed",)
    assert roster.left_out == (
        "Dataset004_Small: label 'noise' is continuous: left out, since a comparison ranks by AUROC",
    )
    assert Roster.open(4, ("bleed",), "0").left_out == ()
    with pytest.raises(DataError, match="ranks by AUROC") as caught:
        Roster.open(4, ("bleed", "noise"), "0")
    assert caught.value.got == "noise (continuous)"
    assert "bleed" in caught.value.do
    info["labels"]["bleed"] = {"type": "continuous"}
    (raw / "dataset.json").write_text(json.dumps(info))
    plan_and_preprocess([4], num_workers=1, quiet=True)
    with pytest.raises(UsageError, match="None of the datasets has a binary label"):
        compare(4, **ONE)


def test_overlap_is_refused_then_marked(finished, small, capsys):
    splits = json.loads(next((small / "preprocessed").glob("*/splits.json")).read_text())
    stored = next((small / "preprocessed").glob("*/spl_*/cases.csv"))
    with open(stored, newline="") as handle:
        source = {row["case_id"]: row["source_sha256"] for row in csv.DictReader(handle)}
    encoder = make_encoder(small / "seen")
    used = [*splits["test"][:2], splits["folds"][0]["train"][0]]
    text = "dataset_id,case_id,source_sha256\n" + "".join(f"7,copy{k},{source[c]}\n" for k, c in enumerate(used))
    (encoder / "cases.csv").write_text(text)
    call = {**ONE, "weights": {"seen": encoder}, "name": "overlap"}
    with pytest.raises(DataError, match="Test cases were in the pretraining data") as caught:
        compare(2, **call)
    assert "seen/vit_test on Dataset002_Small: 2 test cases" in caught.value.got
    assert not folder_of(small, "overlap").exists()
    result = compare(2, **call, allow_overlap=True)
    marks = {entry.arm: entry.overlap for entry in result.comparison.ranking}
    assert marks.pop("seen/vit_test/linear") == "overlap"
    assert set(marks.values()) == {""}
    assert any("2 of" in note for note in result.comparison.notes)


def test_a_vector_that_is_missing_is_an_error_that_says_how_many(small, finished):
    lines = (small / "other.csv").read_text().splitlines()
    (small / "fewer.csv").write_text("\n".join(lines[:-4]) + "\n")
    with pytest.raises(DataError, match=r"no vector of [234] of 3\d cases"):
        compare(2, **{**ONE, "name": "fewer", "embeddings": {"fewer": small / "fewer.csv"}})
    assert not folder_of(small, "fewer").exists()


def test_a_dry_run_makes_nothing_and_says_what_it_would(small, finished, command):
    before = sorted((small / "results").rglob("*"))
    call = ["-d", 2, "--encoders", "vit_test", "--methods", "dino", "--seeds", 2, "--few_shots", 2, 4, "all"]
    code, out, _ = command("compare", *call, "--dry_run", "--name", "planned")
    assert code == 0
    assert "0 reused, 0 to go on with, 2 to make" in out
    assert "process(es) at a time" in out
    assert sorted((small / "results").rglob("*")) == before


def test_wrong_calls(small, capsys):
    with pytest.raises(UsageError, match="needs --encoders"):
        compare(2, methods=("dino",), quiet=True)
    with pytest.raises(UsageError, match="no raw dataset"):
        compare(99, encoders=("vit_test",), quiet=True)
    with pytest.raises(UsageError, match="Unknown label"):
        compare(2, encoders=("vit_test",), labels=("bled",), quiet=True)
    with pytest.raises(UsageError, match="name of the comparison"):
        compare(2, encoders=("vit_test",), name="a/b", quiet=True)
    with pytest.raises(UsageError, match="no weights"):
        compare(2, weights={"x": small / "nothing"}, quiet=True)
    with pytest.raises(SystemExit):
        run_command("compare", ["-d", "2", "--weights", "nameless"])
    assert "is not NAME=PATH" in capsys.readouterr().err


def test_the_command_leaves_a_page(small, finished):
    call = ["-d", "2", "--encoders", "vit_test", "--adapt", "linear", "--few_shots", "all", "--seeds", "1"]
    more = ["--labels", "bleed", "--name", "one", "--num_jobs", "1", "--device", "cpu", "--quiet"]
    overrides = [text for setting in FAST for text in ("--set", setting)]
    assert run_command("compare", [*call, *more, *overrides]) == 0
    folder = folder_of(small, "one")
    assert (folder / "report.html").is_file()
    comparison = read_json(folder / "comparison.json", Comparison)
    assert comparison.grid.labels == ("bleed",)
    assert {score.label for entry in comparison.ranking for score in entry.labels} == {"bleed"}
    assert np.isfinite([entry.mean_auroc for entry in comparison.ranking]).all()
