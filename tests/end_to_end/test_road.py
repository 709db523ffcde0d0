"""The road: raw scans to predictions, as commands, on the phantom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from small_heads import make_dataset

from headctssl.cli.main import main
from headctssl.paths import ROOT_KINDS

Command = Callable[..., tuple[int, str, str]]
TINY = ["--set", "training.num_steps=3", "--set", "training.batch_size=4", "--num_workers", "0"]
HEAD = ["--set", "training.num_epochs=1", "--num_workers", "0"]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A phantom dataset, planned, preprocessed and pretrained with both methods on a test-sized encoder."""
    folder = tmp_path_factory.mktemp("road")
    patch = pytest.MonkeyPatch()
    for kind in ROOT_KINDS:
        (folder / kind).mkdir()
        patch.setenv(f"headctssl_{kind}", str(folder / kind))
    assert main(["make_phantom", "-d", "1", "-n", "24", "--profile", "laptop", "--quiet"]) == 0
    assert main(["plan_and_preprocess", "-d", "1", "--quiet"]) == 0
    for method, config in (("dino", "vit_test"), ("mae", "resenc_test")):
        assert main(["pretrain", "-d", "1", "-m", method, "-c", config, *TINY, "--quiet"]) == 0
    yield folder
    patch.undo()


def run_of(road: Path, method: str, config: str) -> Path:
    return road / "results" / "Dataset001_Phantom" / "pretrain" / f"{method}__{config}__plans"


@pytest.mark.parametrize(
    ("method", "config", "adapt"), [("dino", "vit_test", "full"), ("mae", "resenc_test", "linear")]
)
def test_fine_tune_evaluate_and_predict(road: Path, command: Command, method: str, config: str, adapt: str) -> None:
    run = run_of(road, method, config)
    code, _out, err = command("finetune", "-d", 1, "-w", run, "--adapt", adapt, *HEAD)
    assert code == 0, err
    fold = next((road / "results" / "Dataset001_Phantom" / "finetune").glob(f"*__{adapt}__{method}*/fold_0"))
    metrics = json.loads((fold / "metrics.json").read_text())
    names = list(metrics["labels"])
    promised = {"type", "auroc", "auroc_ci", "auprc", "auprc_ci", "n_positive", "n_negative"}
    assert all(promised <= set(label) for label in metrics["labels"].values())
    predictions = pd.read_csv(fold / "predictions.csv")
    assert list(predictions.columns) == ["case_id", "subject_id", *names]
    assert np.isfinite(predictions[names].to_numpy()).all()

    code, _out, err = command("evaluate", "-d", 1, "-w", fold, "--num_workers", 0)
    assert code == 0, err

    images = road / "raw" / "Dataset001_Phantom" / "images"
    target = road / f"predictions_{method}.csv"
    code, _out, err = command("predict", "-i", images, "-w", fold, "-o", target)
    assert code == 0, err
    anew = pd.read_csv(target)
    assert len(anew) == 24
    both = predictions.merge(anew, on="case_id", suffixes=("", "_file"))
    assert len(both) == len(predictions)
    for name in names:
        np.testing.assert_allclose(both[name], both[f"{name}_file"], atol=1e-4)

    code, _out, err = command("report", fold)
    assert code == 0, err
    page = (fold / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_a_grade_and_a_number_of_the_phantom_are_labels_once_they_are_declared(road: Path, command: Command) -> None:
    description = road / "raw" / "Dataset001_Phantom" / "dataset.json"
    before = description.read_text()
    content = json.loads(before)
    content["labels"]["midline_shift_mm"] = {"type": "continuous"}
    content["labels"]["midline_shift_grade"] = {"type": "ordinal", "classes": ["none", "below_5mm", "from_5mm"]}
    description.write_text(json.dumps(content))
    try:
        wanted = ["midline_shift_grade", "midline_shift_mm"]
        run = run_of(road, "dino", "vit_test")
        labels = [*wanted, next(iter(json.loads(before)["labels"]))]
        code, _out, err = command("finetune", "-d", 1, "-w", run, "--adapt", "linear", "--labels", *labels, *HEAD)
        assert code == 0, err
    finally:
        description.write_text(before)
    fold = next((road / "results" / "Dataset001_Phantom" / "finetune").glob("midline_shift_grade*/fold_0"))
    metrics = json.loads((fold / "metrics.json").read_text())["labels"]
    assert [metrics[name]["type"] for name in wanted] == ["ordinal", "continuous"]
    predictions = pd.read_csv(fold / "predictions.csv")
    classes = [f"midline_shift_grade={name}" for name in ("none", "below_5mm", "from_5mm")]
    np.testing.assert_allclose(predictions[classes].sum(axis=1), 1, atol=1e-4)
    assert [metrics[name]["n_known"] for name in wanted] == [len(predictions)] * 2
    assert np.isfinite(predictions["midline_shift_mm"]).all()


def test_embed_a_dataset_and_files(road: Path, command: Command) -> None:
    run = run_of(road, "dino", "vit_test")
    for source in (["-d", 1], ["-i", road / "raw" / "Dataset001_Phantom" / "images"]):
        target = road / f"vectors{source[0]}.npz"
        code, _out, err = command("embed", *source, "-w", run, "-o", target)
        assert code == 0, err
        with np.load(target) as content:
            (name,) = [k for k in content.files if k != "case_id"]
            assert content[name].shape[0] == len(content["case_id"]) == 24
            assert np.isfinite(content[name]).all()
            assert content[name].std(axis=0).max() > 0


def test_fine_tune_on_a_dataset_that_was_never_planned(road: Path, command: Command) -> None:
    import nibabel as nib

    raw = road / "raw"
    shutil.copytree(raw / "Dataset001_Phantom", raw / "Dataset002_Elsewhere", dirs_exist_ok=True)
    info = raw / "Dataset002_Elsewhere" / "dataset.json"
    info.write_text(info.read_text().replace('"Phantom"', '"Elsewhere"'))
    cases = pd.read_csv(raw / "Dataset002_Elsewhere" / "cases.csv", dtype=str, keep_default_na=False)
    cases.drop(columns=["segmentation"]).to_csv(raw / "Dataset002_Elsewhere" / "cases.csv", index=False)
    for path in sorted((raw / "Dataset002_Elsewhere" / "images").glob("*.nii.gz")):
        image = nib.load(path)
        thick = np.asarray(image.dataobj)[:, :, ::2].astype(np.int16)
        affine = image.affine @ np.diag([1, 1, 2, 1.0])
        nib.save(nib.Nifti1Image(thick, affine), path)
    code, out, err = command("finetune", "-d", 2, "-w", run_of(road, "dino", "vit_test"), *HEAD)
    assert code == 0, err
    assert "preprocess" in out.lower()
    assert not (road / "preprocessed" / "Dataset002_Elsewhere" / "plans.json").exists()
    assert list((road / "results" / "Dataset002_Elsewhere" / "finetune").glob("*/fold_0/metrics.json"))


def test_from_scratch_needs_a_configuration(road: Path, command: Command) -> None:
    code, _out, err = command("finetune", "-d", 1, "-w", "scratch", *HEAD)
    assert code == 2
    assert "-c" in err
    assert "Traceback" not in err


def test_an_existing_run_is_refused_and_the_report_of_a_pretraining_run(road: Path, command: Command) -> None:
    code, _out, err = command("pretrain", "-d", 1, "-m", "dino", "-c", "vit_test", *TINY)
    assert code == 2
    assert "--overwrite" in err
    run = run_of(road, "dino", "vit_test")
    code, _out, err = command("report", run, "-o", road / "page.html")
    assert code == 0, err
    assert (road / "page.html").stat().st_size < 5_000_000


def test_the_page_of_the_demo_compares_two_runs_on_the_same_cases(road: Path, command: Command) -> None:
    from headctssl.reporting.demo_page import DemoRuns, demo_page, paired_difference
    from headctssl.reporting.page import write_page

    results = road / "results" / "Dataset001_Phantom" / "finetune"
    for weights, tag in ((run_of(road, "dino", "vit_test"), "page"), ("scratch", "page")):
        config = ["-c", "vit_test"] if weights == "scratch" else []
        code, _out, err = command("finetune", "-d", 1, "-w", weights, *config, "--tag", tag, "--few_shots", 2, *HEAD)
        assert code == 0, err
    (pretrained,) = results.glob("*__dino*__page/fold_0")
    (scratch,) = results.glob("*__scratch*__page/fold_0")
    difference = paired_difference(pretrained, scratch, 1)
    cases = pd.read_csv(road / "raw" / "Dataset001_Phantom" / "cases.csv").set_index("case_id")
    tables = [pd.read_csv(fold / "predictions.csv").set_index("case_id") for fold in (pretrained, scratch)]
    truth = cases.loc[tables[0].index]
    names = [name for name in ("IPH", "IVH", "SDH") if truth[name].nunique() == 2]
    assert (difference is None) == (not names)
    if difference is not None:
        means = [np.mean([roc_auc_score(truth[name], table[name]) for name in names]) for table in tables]
        assert difference.value == pytest.approx(means[0] - means[1], abs=1e-9)
        assert difference.low <= difference.value <= difference.high
    runs = DemoRuns(1, 24, 2, run_of(road, "dino", "vit_test"), pretrained, scratch, 1.0)
    text = write_page(road / "demo.html", demo_page(runs, difference)).read_text()
    assert "What this shows" in text
    assert "https://" not in text


def test_two_datasets_of_different_spacing_are_pretrained_on_together(road: Path, command: Command) -> None:
    name = make_dataset(3, 6).name
    code, _out, err = command("plan_and_preprocess", "-d", 3, "--quiet")
    assert code == 0, err
    code, out, err = command("pretrain", "-d", 1, 3, "-m", "mae", "-c", "vit_test", *TINY)
    assert code == 0, err
    assert "dataset 3 is not preprocessed as" in out
    folders = [p.name for p in (road / "preprocessed" / name).iterdir() if p.is_dir()]
    assert len(folders) == 2
