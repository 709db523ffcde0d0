"""Wrong input: each gives one clear message, the promised exit code and no traceback; good cases still go through."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

Command = Callable[..., tuple[int, str, str]]
TEMPLATE = Path(__file__).parents[2] / "headctssl_raw_template"


def clear(err: str, *words: str) -> None:
    """A message a user can act on: what, got, expected, what to do; never a traceback."""
    assert "Traceback" not in err
    for word in ("expected:", "do:", *words):
        assert word in err, err


@pytest.fixture
def template(roots: Path) -> Path:
    """A copy of the template as dataset 7."""
    source = next(TEMPLATE.glob("Dataset*"), TEMPLATE)
    target = roots / "raw" / "Dataset007_Template"
    shutil.copytree(source, target)
    return target


@pytest.fixture
def planned(template: Path, command: Command) -> Path:
    code, _out, err = command("plan_and_preprocess", "-d", 7, "--quiet")
    assert code == 0, err
    return template


def first_image(dataset: Path) -> Path:
    return sorted((dataset / "images").rglob("*.nii.gz"))[0]


def test_an_unset_root(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"headctssl_{kind}", raising=False)
    code, _out, err = command("plan_and_preprocess", "-d", 1)
    assert code == 2
    clear(err, "export headctssl_raw=")


def test_an_unknown_dataset_method_encoder_and_setting(planned: Path, command: Command) -> None:
    code, _out, err = command("plan_and_preprocess", "-d", 99)
    assert code == 2
    clear(err, "99")
    code, _out, err = command("pretrain", "-d", 7, "-m", "dinoo")
    assert code == 2
    clear(err, "Did you mean 'dino'?")
    code, _out, err = command("pretrain", "-d", 7, "-m", "mae", "-c", "vit_huge")
    assert code == 2
    clear(err, "vit_huge")
    code, _out, err = command("pretrain", "-d", 7, "-m", "mae", "--set", "training.num_step=3")
    assert code == 2
    clear(err, "training.num_steps")
    code, _out, err = command("pretrain", "-d", 7, "-m", "mae", "-c", "vit_test", "--set", "method.mask_ratioo=3")
    assert code == 2
    clear(err, "mask_ratio")


def test_both_lengths_are_an_error(planned: Path, command: Command) -> None:
    both = ["--set", "training.num_steps=3", "--set", "training.num_epochs=1"]
    code, _out, err = command("pretrain", "-d", 7, "-m", "mae", "-c", "vit_test", *both)
    assert code == 2
    clear(err, "num_epochs")


def faulty_volume(kind: str, path: Path) -> None:
    """Damage one image of the dataset."""
    image = nib.load(path)
    hu = np.asarray(image.dataobj).astype(np.int16)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "png":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "nan":
        values = hu.astype(np.float32)
        values[3, 3, 3] = np.nan
        nib.save(nib.Nifti1Image(values, image.affine), path)
    elif kind == "4d":
        nib.save(nib.Nifti1Image(np.stack([hu, hu], axis=-1), image.affine), path)


@pytest.mark.parametrize("kind", ["truncated", "png", "empty", "nan", "4d"])
def test_one_bad_scan_among_good_ones(template: Path, roots: Path, command: Command, kind: str) -> None:
    cases = pd.read_csv(template / "cases.csv", dtype=str)
    bad = first_image(template)
    name = cases.case_id[[Path(i).name == bad.name for i in cases.image]].item()
    faulty_volume(kind, bad)
    code, out, err = command("plan_and_preprocess", "-d", 7)
    assert code == 1, err
    assert name in out + err
    assert "Traceback" not in out + err
    (folder,) = [p for p in (roots / "preprocessed" / "Dataset007_Template").iterdir() if p.is_dir()]
    stored = pd.read_csv(folder / "cases.csv", dtype=str, comment="#")
    assert sorted(stored.case_id) == sorted(set(cases.case_id) - {name})
    report = (roots / "preprocessed" / "Dataset007_Template" / "preprocessing_report.json").read_text()
    assert name in report

    code, out, err = command("verify_dataset", "-d", 7)
    assert code == 1
    assert name in out + err


def test_every_scan_bad(template: Path, command: Command) -> None:
    for path in (template / "images").rglob("*.nii.gz"):
        faulty_volume("png", path)
    code, _out, err = command("plan_and_preprocess", "-d", 7)
    assert code == 2
    assert "Traceback" not in err


def test_an_empty_folder(roots: Path, command: Command) -> None:
    (roots / "nothing").mkdir()
    for source_format in ("folder", "dicom"):
        code, _out, err = command("convert", roots / "nothing", "-d", 5, "--from", source_format)
        assert code == 2
        clear(err)
    assert not list((roots / "raw").iterdir())


def test_a_missing_label_column(template: Path, command: Command) -> None:
    cases = pd.read_csv(template / "cases.csv", dtype=str, keep_default_na=False)
    known = [c for c in cases.columns if c in (template / "dataset.json").read_text() and c != "image"]
    label = next(c for c in known if set(cases[c]) <= {"0", "1", ""})
    cases.drop(columns=[label]).to_csv(template / "cases.csv", index=False)
    code, out, err = command("verify_dataset", "-d", 7)
    assert code in (1, 2)
    assert label in out + err
    code, _out, err = command("plan_and_preprocess", "-d", 7)
    assert code == 2
    clear(err, label)


def test_an_unknown_label_and_a_checkpoint_of_another_kind(planned: Path, roots: Path, command: Command) -> None:
    small = ["-c", "vit_test", "--set", "training.num_steps=2", "--set", "training.batch_size=2", "--num_workers", 0]
    code, _out, err = command("pretrain", "-d", 7, "-m", "mae", *small, "--quiet")
    assert code == 0, err
    run = roots / "results" / "Dataset007_Template" / "pretrain" / "mae__vit_test__plans"
    code, _out, err = command("finetune", "-d", 7, "-w", run, "--labels", "NoSuchLabel")
    assert code == 2
    clear(err, "NoSuchLabel")
    code, _out, err = command("predict", "-i", first_image(planned), "-w", run, "-o", roots / "p.csv")
    assert code == 2
    clear(err, "classifier")
    code, _out, err = command("embed", "-i", first_image(planned), "-w", planned / "cases.csv", "-o", roots / "v.csv")
    assert code == 2
    clear(err)


def test_a_flipped_bit_in_a_stored_case(planned: Path, roots: Path, command: Command) -> None:
    stored = sorted((roots / "preprocessed" / "Dataset007_Template").rglob("*.b2nd"))
    victim = next(p for p in stored if p.name.count(".") == 1)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(content)
    small = ["-c", "vit_test", "--set", "training.num_steps=20", "--set", "training.batch_size=2", "--num_workers", 0]
    code, _out, err = command("pretrain", "-d", 7, "-m", "mae", *small)
    assert code == 2
    clear(err, victim.stem)


def test_prediction_goes_on_past_a_bad_file(planned: Path, roots: Path, command: Command) -> None:
    small = ["-c", "vit_test", "--set", "training.num_epochs=1", "--num_workers", 0, "--quiet"]
    code, _out, err = command("finetune", "-d", 7, "-w", "scratch", *small)
    assert code == 0, err
    fold = next((roots / "results" / "Dataset007_Template" / "finetune").glob("*/fold_0"))
    faulty_volume("truncated", first_image(planned))
    code, out, err = command("predict", "-i", planned / "images", "-w", fold, "-o", roots / "p.csv")
    assert code == 1
    assert "Traceback" not in out + err
    assert first_image(planned).name.split(".")[0] in out + err
    assert len(pd.read_csv(roots / "p.csv")) == len(list((planned / "images").rglob("*.nii.gz"))) - 1
