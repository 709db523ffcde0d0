"""The table of learning: rows are measured once, differences follow them, and the page says what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch, roots: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import learning, learning_examine, learning_page, learning_task

    page = roots / "learning.md"
    marks = (learning_page.BEGIN, learning_page.END, learning_page.EXAMINED, learning_page.EXAMINED_END)
    page.write_text("\n".join(("before", *marks, "after\n")))
    write = learning_page.write_page
    files = (roots / "learning.json", roots / "learning_examine.json")
    monkeypatch.setattr(learning_page, "write_page", lambda: write(page, *files))
    monkeypatch.setattr(learning, "RESULT", files[0])
    monkeypatch.setattr(learning, "TASK", replace(learning.TASK, cases=60))
    monkeypatch.setattr(learning, "SCANS", 32)
    monkeypatch.setattr(learning, "ENCODERS", ("vit_test",))
    monkeypatch.setattr(learning, "THRICE", ("mae",))
    monkeypatch.setattr(learning, "RANDOM_SEEDS", (0, 1))
    settings = ("training.precision=float32", "training.num_workers=0", "monitor.every=2", "monitor.probe_cases=40")
    monkeypatch.setattr(learning_task, "SETTINGS", (*settings, "monitor.probe_every=2"))
    monkeypatch.setattr(learning_examine, "RESULT", files[1])
    monkeypatch.setattr(learning_examine, "TASK", replace(learning_examine.TASK, cases=60))
    trial = learning_examine.Trial
    found = (trial("histogram"), trial("random", "vit_test"), trial("mae", "vit_test", 32, 16, "1e-3", "12"))
    monkeypatch.setattr(learning_examine, "trials", lambda: list(found))
    return learning


@pytest.mark.evidence
def test_rows_are_measured_once_and_the_page_says_what_is_missing(learning: ModuleType, roots: Path) -> None:
    job = learning.Job
    for one in (job("histogram"), job("random", "vit_test", 0), job("mae", "vit_test"), job("spark", "vit_test")):
        assert learning.find(learning.read_rows(), one) is None
        assert learning._one(one) == 0
        assert learning.find(learning.read_rows(), one) is not None
    told = json.loads((roots / "learning.json").read_text())
    rows = {row["method"]: row for row in told["rows"]}
    assert [point[0] for point in rows["mae"]["curve"]] == [0, 16, 32]
    assert 0 <= rows["mae"]["linear"]["auroc"] <= 1
    assert rows["mae"]["test_cases"] + rows["mae"]["train_cases"] == 60
    assert "refused" in rows["spark"]
    assert {(d["readout"], d["beside"], d["beside_seeds"]) for d in told["differences"]} == {
        (readout, beside, 1) for readout in ("linear", "attentive") for beside in ("random", "histogram")
    }
    linear = next(d for d in told["differences"] if (d["readout"], d["beside"]) == ("linear", "random"))
    gap = rows["mae"]["linear"]["auroc"] - rows["random"]["linear"]["auroc"]
    assert linear["difference"] == pytest.approx(gap, abs=2e-3)
    learning._one(job("random", "vit_test", 1))
    told = json.loads((roots / "learning.json").read_text())
    assert {d["beside_seeds"] for d in told["differences"] if d["beside"] == "random"} == {2}
    text = (roots / "learning.md").read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "**The table is partial.** Missing: " in text
    assert "mae vit_test seed 1" in text
    assert "spark with vit_test: " in text
    assert (roots / "learning.png").read_bytes()[:4] == b"\x89PNG"
    content = (roots / "learning.json").read_text()
    assert "case_" not in content, "aggregates only"


@pytest.mark.evidence
def test_what_is_examined_stands_beside_random_encoders_of_its_own_seed(learning: ModuleType, roots: Path) -> None:
    from benchmarks import learning_examine

    (roots / "learning.json").write_text(json.dumps({"rows": [], "differences": []}))
    for trial in learning_examine.trials():
        assert learning_examine._is_open(trial)
        assert learning_examine._one(trial) == 0
        assert not learning_examine._is_open(trial)
    rows = json.loads((roots / "learning_examine.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["histogram", "random", "mae"]
    run = rows[2]
    assert (run["lr"], run["scans"], run["batch"], run["planned_lr"]) == (1e-3, 32, 16, False)
    assert [point[0] for point in run["curve"]] == [0, 32]
    gap = {(d["readout"], d["beside"]): d["difference"] for d in run["beside"]}
    assert gap["linear", "random"] == pytest.approx(run["linear"]["auroc"] - rows[1]["linear"]["auroc"], abs=2e-3)
    text = (roots / "learning.md").read_text()
    assert "3 of 3 rows are measured" in text
    assert "| vit_test | mae | 32 | 16 | 0.001, gradients clipped at 12 |" in text


def test_the_page_judges_by_the_interval_and_names_what_is_missing(learning: ModuleType) -> None:
    from benchmarks.learning_page import tables

    def gap(method: str, low: float, high: float) -> dict[str, object]:
        found = {"method": method, "config": "vit_test", "readout": "linear", "beside": "random", "seeds": [0]}
        return {**found, "beside_seeds": 5, "auroc": 0.7, "difference": (low + high) / 2, "ci": [low, high]}

    gaps = [gap("dino", 0.01, 0.09), gap("mae", -0.02, 0.05), gap("voco", -0.2, -0.1)]
    row = {"method": "spark", "config": "vit_test", "seed": 0, "task": "another", "refused": "it needs a CNN"}
    text = tables({"rows": [row], "differences": gaps})
    assert "| vit_test | dino | 0 | 0.700 | +0.050 [+0.010, +0.090] | - | better |" in text
    assert "- linear readout, better: dino (vit_test)." in text
    assert "- linear readout, not told apart: mae (vit_test)." in text
    assert "- linear readout, worse: voco (vit_test)." in text
    assert "- spark with vit_test: it needs a CNN" in text
    assert "**The table is partial.**" in text
    assert "spark vit_test seed 0" in text.split("###")[0], "a row of another task counts as missing"


def test_a_row_of_another_task_is_measured_again(learning: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"method": "mae", "config": "vit_test", "seed": 0, "task": learning.task_digest()}
    assert learning.find([row], learning.Job("mae", "vit_test")) is row
    monkeypatch.setattr(learning, "TASK", replace(learning.TASK, cases=61))
    assert learning.find([row], learning.Job("mae", "vit_test")) is None


def test_another_dataset_of_that_number_is_left_alone(learning: ModuleType, roots: Path) -> None:
    from headctssl.errors import UsageError

    image = roots / "raw" / f"Dataset{learning.TASK.dataset:03d}_Mine" / "images" / "phantom_0000.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        learning.TASK.ensure_data()
    assert image.read_bytes() == b"mine"
