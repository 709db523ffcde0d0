"""Reports of runs: what real runs leave is shown whole, and what is missing or damaged is said."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_folders import LABELS, make_comparison, make_curve, make_evaluation, make_evidence, make_typed
from report_html import Html, checked
from small_heads import make_dataset

from headctssl.cli.main import main
from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset
from headctssl.errors import DataError
from headctssl.evaluation.evaluate import evaluate, evaluation_folder
from headctssl.finetuning.finetune import finetune
from headctssl.paths import ROOT_KINDS
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
from headctssl.reporting.report import report, report_at_end
from headctssl.settings import write_json
from headctssl.training.checkpoint import find_weights, load_weights
from headctssl.training.pretrain import pretrain

NAME = "Dataset002_Small"
ALWAYS = ["Data", "Model card", "What was decided, and why", "All settings", "Software and machine"]


@dataclass(frozen=True)
class Runs:
    """Real folders."""

    root: Path
    pretraining: Path
    fold: Path
    evaluation: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """A dataset, an encoder of three steps, a linear head on it and its evaluation on all cases."""
    root = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 40)
        plan_and_preprocess([2], num_workers=0, quiet=True)
        few = ["training.num_steps=3", "training.batch_size=4"]
        run = pretrain([2], "mae", config="vit_test", overrides=few, num_workers=0, device="cpu", quiet=True)
        fold = finetune(2, run, adapt="linear", overrides=["training.num_epochs=8"], num_workers=0, quiet=True)
        evaluate(2, fold, split="all", num_workers=0, quiet=True)
        contract = load_weights(find_weights(fold, "classifier"), "classifier").contract
        yield Runs(root, run, fold, evaluation_folder(2, contract, "all"))


def page_of(folder: Path, tmp_path: Path) -> Html:
    html = checked(report(folder, output=tmp_path / "page.html", quiet=True))
    assert str(tmp_path.parent.parent) not in html.text
    return html


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage, under the same name."""
    return Path(shutil.copytree(folder, tmp_path / "copy" / folder.name))


def test_a_pretraining_run(runs: Runs, tmp_path: Path) -> None:
    html = page_of(runs.pretraining, tmp_path)
    plans = "What the plans decided, and why"
    assert html.sections == ["Training", "Data", "Model card", plans, "What the run decided, and why", *ALWAYS[3:]]
    assert "Not for sharing" in html.said[:400]
    assert "3 of 3" in html.said
    assert "No label was used." in html.said
    assert "Test cases of splits.json were left out." in html.said
    assert "synthetic" in html.said
    assert "Not intended: diagnosis" in html.said
    for reason in json.loads((runs.pretraining / "config.json").read_text())["decisions"]:
        assert " ".join(reason["because"].split()) in html.said
    assert "torch" in html.said
    assert str(runs.root) not in html.text


def test_a_fine_tuning_run(runs: Runs, tmp_path: Path) -> None:
    html = page_of(runs.fold, tmp_path)
    measured = ["What to know before reading the numbers", "How good it is", "Calls at a threshold", "Calibration"]
    assert html.sections == [*measured, "Best and worst cases", "Data", "Learning curves", *ALWAYS[1:]]
    metrics = json.loads((runs.fold / "metrics.json").read_text())
    for entry in metrics["labels"].values():
        assert entry["auroc"] is not None, "the fixture is meant to have both classes"
        low, high = entry["auroc_ci"]
        assert f"{entry['auroc']:.3f} ({low:.3f} to {high:.3f})" in html.said
        assert f"{entry['brier']:.3f}" in html.said
    assert "Leakage. Training: no overlap with its " in html.said
    assert "; pretraining: " in html.said
    assert str(runs.root) not in html.text
    shown = html.text.count('<article class="case')
    assert 0 < shown <= 12
    assert html.text.count('<article class="case wrong') < shown
    assert sum("window, through the" in alt for alt in html.alts) == 4 * shown, "four slices of every case"


def test_scans_are_synthetic_by_what_the_run_noted_not_by_their_name(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset of patients of the same name lies under headctssl_raw now; then no dataset does."""
    info = json.loads((runs.root / "raw" / NAME / "dataset.json").read_text())
    assert info["profile"] != "real"
    for folder in (runs.pretraining, runs.fold, runs.evaluation):
        assert json.loads((folder / "contract.json").read_text())["synthetic"] == "all"
    for folder in (runs.fold, runs.evaluation):
        assert json.loads((folder / "metrics.json").read_text())["synthetic"] is True
    raw = Path(shutil.copytree(runs.root / "raw" / NAME, tmp_path / "raw" / NAME))
    monkeypatch.setenv("headctssl_raw", str(tmp_path / "raw"))
    write_json(raw / "dataset.json", DatasetInfo.model_validate({**info, "profile": "real"}))
    for folder in (runs.pretraining, runs.fold, runs.evaluation):
        html = page_of(folder, tmp_path)
        assert "These scans are synthetic." in html.said
        assert "has real scans now, the run had synthetic ones" in html.said
        assert "It was trained on synthetic scans" in html.said
    shutil.rmtree(tmp_path / "raw")
    for folder in (runs.pretraining, runs.fold, runs.evaluation):
        assert "It was trained on synthetic scans" in page_of(folder, tmp_path).said


def test_patients_under_the_name_of_a_phantom_are_not_told_as_synthetic(runs: Runs, tmp_path: Path) -> None:
    """The run noted that its scans are real; a phantom of the same name lies under headctssl_raw now."""
    for folder in (runs.pretraining, runs.fold, runs.evaluation):
        copy = copy_of(folder, tmp_path / folder.name)
        contract = json.loads((copy / "contract.json").read_text())
        (copy / "contract.json").write_text(json.dumps({**contract, "synthetic": "no"}))
        if (copy / "metrics.json").is_file():
            metrics = json.loads((copy / "metrics.json").read_text())
            (copy / "metrics.json").write_text(json.dumps({**metrics, "synthetic": False}))
        html = page_of(copy, tmp_path)
        assert "These scans are synthetic." not in html.said
        assert "has synthetic scans now, the run had real ones" in html.said
        assert "It was trained on synthetic scans" not in html.said


def test_a_classifier_judged_elsewhere_is_described_by_what_it_learnt_from(runs: Runs, tmp_path: Path) -> None:
    """Learnt from a phantom, judged on patients: the card tells the training data, the section on data the others."""
    copy = copy_of(runs.evaluation, tmp_path)
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics.update(dataset_name="Dataset044_Hospital", synthetic=False)
    (copy / "metrics.json").write_text(json.dumps(metrics))
    html = page_of(copy, tmp_path)
    assert f"scans of dataset {NAME}" in html.said
    assert "scans of dataset Dataset044_Hospital" not in html.said
    assert "It was trained on synthetic scans" in html.said
    assert "These scans are synthetic." not in html.said


def test_the_confusion_is_that_of_the_predictions(runs: Runs, tmp_path: Path) -> None:
    html = page_of(runs.evaluation, tmp_path)
    with open(runs.evaluation / "predictions.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    with open(runs.root / "raw" / NAME / "cases.csv", newline="") as handle:
        truth = {row["case_id"]: row["bleed"] for row in csv.DictReader(handle)}
    known = [(truth[row["case_id"]] == "1", float(row["bleed"]) >= 0.5) for row in rows if truth[row["case_id"]]]
    counts = [
        sum(pair == wanted for pair in known) for wanted in ((True, True), (True, False), (False, True), (False, False))
    ]
    assert sum(counts) == 39
    assert "bleed 0.5 " + " ".join(map(str, counts)) in html.said
    assert html.sections[-2:] == ["Data", "Model card"]


@pytest.mark.parametrize("lost", ["metrics.json", "environment.json", "contract.json", "cases.csv", "metrics.jsonl",
                                  "predictions.csv"])  # fmt: skip
def test_what_is_missing_of_a_run_is_said(runs: Runs, tmp_path: Path, lost: str) -> None:
    for folder in (runs.fold, runs.pretraining):
        copy = copy_of(folder, tmp_path)
        if (copy / lost).is_file():
            (copy / lost).unlink()
            html = page_of(copy, tmp_path)
            assert 'class="warning"' in html.text
            expected = {
                "cases.csv": "no list of the cases",
                "metrics.jsonl": "no line yet",
                "predictions.csv": "There are no predictions",
            }.get(lost, f"no {lost}")
            assert expected in html.said or f"{lost} is missing" in html.said
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "contract.json"])
def test_a_damaged_file_without_which_there_is_no_page_is_named(runs: Runs, tmp_path: Path, name: str) -> None:
    copy = copy_of(runs.fold, tmp_path)
    (copy / name).write_text('{"format": 1, ')
    with pytest.raises(DataError, match=name):
        report(copy, output=tmp_path / "page.html", quiet=True)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["environment.json", "cases.csv", "predictions.csv"])
def test_a_damaged_file_takes_away_its_section_only(runs: Runs, tmp_path: Path, name: str) -> None:
    copy = copy_of(runs.fold, tmp_path)
    (copy / name).write_bytes(b"\xff\xfe{broken")
    html = page_of(copy, tmp_path)
    assert f"{name} " in html.said
    assert "damaged" in html.said
    assert "How good it is" in html.sections


def test_a_run_of_one_step_and_one_that_was_cut_short(runs: Runs, tmp_path: Path) -> None:
    copy = copy_of(runs.pretraining, tmp_path)
    (copy / "contract.json").unlink()
    logged = json.loads((copy / "metrics.jsonl").read_text().splitlines()[0])
    first = json.dumps({**logged, "step": 1})
    for text in (first + "\n", first + '\n{"step": 2, "lo', ""):
        (copy / "metrics.jsonl").write_text(text)
        html = page_of(copy, tmp_path)
        assert "run has not" in html.said
        assert ("cut short" in html.said) == ("lo" in text[-5:])
    (copy / "metrics.jsonl").write_text("{\n" + first)
    with pytest.raises(DataError, match="Line 1"):
        report(copy, output=tmp_path / "page.html", quiet=True)


def test_missing_and_damaged_scans_are_said_and_the_rest_is_shown(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("raw", "preprocessed"):
        shutil.copytree(runs.root / kind, tmp_path / kind)
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
    contract = json.loads((runs.fold / "contract.json").read_text())
    store = next(p.parent for p in (tmp_path / "preprocessed" / NAME).glob("*/cases.csv"))
    assert contract["storage"]["spacing_mm"] == list(CaseIndex.open(store).spacing_mm)
    index = CaseIndex.open(store)
    for position in range(0, len(index), 2):
        data = bytearray(index.path(position).read_bytes())
        data[len(data) // 2] ^= 1
        index.path(position).write_bytes(data)
    html = page_of(runs.fold, tmp_path)
    assert "is damaged" in html.said
    assert any("window, through the" in alt for alt in html.alts), "whole scans are still shown"

    (store / "cases.csv").unlink()
    html = page_of(runs.fold, tmp_path)
    assert "no slices can be shown" in html.said
    assert '<article class="case' in html.text
    table = tmp_path / "raw" / NAME / "cases.csv"
    table.write_text(table.read_text().replace(",1,", ",0,"))
    assert "no longer what it was" in page_of(runs.fold, tmp_path).said
    shutil.rmtree(tmp_path / "raw" / NAME)
    assert "cannot be looked up" in page_of(runs.fold, tmp_path).said
    monkeypatch.delenv("headctssl_raw")
    monkeypatch.delenv("headctssl_preprocessed")
    assert "headctssl_raw is not set" in page_of(runs.fold, tmp_path).said
    page_of(runs.pretraining, tmp_path)


def test_folds_beside_each_other(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "task__linear__mae"
    for k in (0, 1, 2, 10):
        shutil.copytree(runs.fold, run / f"fold_{k}")
    (run / "fold_1" / "metrics.json").unlink()
    shutil.copytree(runs.fold, run / "draw_1" / "fold_0")
    shutil.copytree(runs.fold, run / "ensemble")
    html = page_of(run, tmp_path)
    assert html.sections == ["Mean AUROC", "Each label", "What to know before reading the numbers"]
    assert "fold_1 is not in the tables" in html.said
    assert html.said.index("ensemble ") < html.said.index("fold_2 ") < html.said.index("fold_10 ")
    assert html.said.index("fold_10 ") < html.said.index("draw_1/fold_0 ")


def test_datasets(runs: Runs, tmp_path: Path) -> None:
    made = ["Scans and labels", "Test set and folds", "What was stored and what was left out", "Some stored scans",
            "What the plans decided, and why"]  # fmt: skip
    for kind in ("raw", "preprocessed"):
        html = page_of(runs.root / kind / NAME, tmp_path)
        assert html.sections == ["Origin", *made]
        assert "40 of 40 scans are stored" in html.said
        assert sum("window, through the" in alt for alt in html.alts) == 16
    raw = Path(shutil.copytree(runs.root / "raw" / NAME, tmp_path / "Dataset099_Alone"))
    html = page_of(raw, tmp_path)
    assert html.sections == ["Origin"]
    assert "was not planned and preprocessed yet" in html.said


def test_comparisons_of_every_size(tmp_path: Path) -> None:
    make_comparison(tmp_path / "drawn")
    html = page_of(tmp_path / "drawn", tmp_path)
    rankings = [title for title in html.sections if title.startswith("Ranking, ")]
    assert [title.partition(", ")[2] for title in rankings] == [
        "all labels", "32 patients per class", "8 patients per class",
    ]  # fmt: skip
    rest = ["Learning curves", "Radar", "Cost", "What it does not show", "Test cases", "How it was compared",
            "Runs that failed", "Every run"]  # fmt: skip
    assert html.sections == ["What it shows", *rankings, *rest]
    assert "2 of " in html.said
    assert "the disk is full: …/results" in html.said
    assert sum(alt.startswith("Dataset007_Drawn: ") for alt in html.alts) == 4
    for label in LABELS:
        assert label in html.said

    bare = make_comparison(
        tmp_path / "bare", methods=(), adapts=("linear",), budgets=(None,), labels=("IPH",), seeds=1, failing=99
    )
    emptied = bare.model_copy(update={"ranking": ()})
    (tmp_path / "bare" / "comparison.json").write_text(emptied.model_dump_json())
    html = page_of(tmp_path / "bare", tmp_path)
    assert "No run was carried out to its end" in html.said
    assert "no curve" in html.said
    assert "1 seed of pretraining" in html.said


@pytest.mark.parametrize("synthetic", [True, False])
def test_a_comparison_says_synthetic_by_what_it_noted(
    tmp_path: Path, synthetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset of its name that lies there now is of the other kind."""
    found = make_comparison(tmp_path / "c")
    tests = tuple(test.model_copy(update={"synthetic": synthetic}) for test in found.tests)
    write_json(tmp_path / "c" / "comparison.json", found.model_copy(update={"tests": tests}))
    raw = tmp_path / "raw" / found.tests[0].dataset_name
    info = DatasetInfo(name="Other", profile="real" if synthetic else "laptop")
    write_raw_dataset(raw, info, pd.DataFrame({"case_id": ["a"], "image": ["images/a.nii.gz"]}, dtype=str))
    monkeypatch.setenv("headctssl_raw", str(tmp_path / "raw"))
    html = checked(report(tmp_path / "c", output=tmp_path / "page.html", quiet=True))
    assert ("Scans are synthetic" in html.said) == synthetic


def test_labels_of_every_type_by_group_distance_and_sureness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ROOT_KINDS:
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
    metrics = make_typed(tmp_path / "raw", tmp_path / "typed")
    html = page_of(tmp_path / "typed", tmp_path)
    assert "Classes, grades and numbers" in html.sections
    kind = metrics.label("kind")
    for name, row in zip(kind.classes, kind.confusion, strict=True):
        assert f"{name} " + " ".join(map(str, row)) in html.said
    volume = metrics.label("volume_ml")
    assert volume.mae is not None
    assert f"volume_ml 40 {volume.mae:.3f} (" in html.said
    assert "volume_ml. 40 cases; truth " in " ".join(html.alts)
    shown = re.findall(r'class="tag">(\w+)', html.text)
    assert {"bleed", "kind", "grade", "volume_ml"} == set(shown), "every type of label has cases"

    make_evaluation(tmp_path / "away")
    plain = page_of(tmp_path / "away", tmp_path)
    assert "By group" not in plain.sections
    make_evidence(tmp_path / "away")
    html = page_of(tmp_path / "away", tmp_path)
    added = ["By group", "How far these scans are from the training scans", "Leaving out what it is not sure of"]
    assert [title for title in html.sections if title not in plain.sections] == added
    assert "20% (10% to 35%) of these scans lie beyond 1" in html.said
    assert "GE <MEDICAL>" in html.said
    assert "scored from 5 of each on" in html.said
    assert sum(alt.startswith("Abstention: ") for alt in html.alts) == len(LABELS)
    (tmp_path / "away" / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match=r"evaluation\.json"):
        report(tmp_path / "away", output=tmp_path / "page.html", quiet=True)


def test_learning_curves_and_draws(runs: Runs, tmp_path: Path) -> None:
    curve = make_curve(tmp_path / "task-curve__full__mae")
    html = page_of(tmp_path / "task-curve__full__mae", tmp_path)
    assert html.sections == ["Learning curve"]
    for point in curve.points:
        for one in point.auroc:
            assert f"{one.mean:.3f}" in html.said
    assert "All training cases" in html.said
    assert "1 patient per class" in html.said
    bars = re.findall(r'<path d="M [^"]*" [^>]*stroke-opacity: 0.75', html.text)
    assert len(bars) == 3 * 5, "a bar for every interval, none for a single draw"
    run = tmp_path / "task-4shots__linear__mae"
    shutil.copytree(runs.fold, run / "fold_0")
    (run / "draws.json").write_text(curve.points[1].model_dump_json())
    html = page_of(run, tmp_path)
    assert "Draws" in html.sections
    assert "4 patients per class, judged by test cases." in html.said


def test_lists_are_bounded(tmp_path: Path) -> None:
    many = tuple(f"finding_{k:03d}_{'x' * 30}" for k in range(60))
    make_comparison(tmp_path / "large", methods=tuple(f"m{k}" for k in range(9)), labels=many[:30], budgets=(8, None))
    assert len(page_of(tmp_path / "large", tmp_path).text) < 4_000_000
    make_evaluation(tmp_path / "wide", n=120, labels=many)
    html = page_of(tmp_path / "wide", tmp_path)
    assert "The first 40 of 60 labels" in html.said
    assert "cannot be looked up" in html.said
    assert "no contract.json" in html.said


def test_a_label_that_is_a_script_is_text(tmp_path: Path, runs: Runs) -> None:
    make_evaluation(tmp_path / "evil", labels=("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x^$"))
    html = page_of(tmp_path / "evil", tmp_path)
    assert "<script>alert(1)</script>" in html.said
    assert html.tags["script"] == 0
    assert html.tags["img"] == 0


def test_the_report_at_the_end_of_a_run_never_stops_it(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(runs.fold, tmp_path)
    (copy / "metrics.json").write_text("{")
    assert report_at_end(copy) is None
    assert re.search("report could not be written: .*metrics.json", capsys.readouterr().err)
    shutil.copy(runs.fold / "metrics.json", copy)
    assert report_at_end(copy, quiet=True) == copy / "report.html"

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("a picture cannot be drawn")

    monkeypatch.setattr("headctssl.reporting.curves.line_chart", refuse)
    few = ["--set", "training.num_steps=1", "--set", "training.batch_size=4", "--num_workers", "0", "--tag", "broken"]
    assert main(["pretrain", "-d", "2", "-m", "mae", "-c", "vit_test", *few, "--quiet"]) == 0
    assert "ValueError: a picture cannot be drawn" in capsys.readouterr().err
    folder = runs.pretraining.with_name(runs.pretraining.name + "__broken")
    assert (folder / "encoder.safetensors").is_file()
    assert not (folder / "report.html").exists()


def test_output_goes_where_it_is_asked(runs: Runs, tmp_path: Path) -> None:
    for output in (tmp_path, tmp_path / "new", tmp_path / "page.html"):
        assert report(runs.fold, output=output, quiet=True).is_file()
    for name in ("report.html", "new/report.html", "page.html"):
        assert (tmp_path / name).is_file()
    raw = runs.root / "raw" / NAME
    assert report(raw, output=tmp_path, quiet=True).name == "dataset_report.html"
    page = np.char.array([(tmp_path / "report.html").read_text(), (tmp_path / "page.html").read_text()])
    assert page[0] == page[1], "the same folder gives the same page"
