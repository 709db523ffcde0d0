"""Real input: a tilted clinical DICOM series and a NIfTI template, from folder to predictions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.realdata
def test_real_scans_from_dicom_to_vectors(real_data: Path, roots: Path, command: Command) -> None:
    code, _out, err = command("convert", real_data / "head_ct_ge_tilt", "-d", 900, "--from", "dicom")
    assert code == 0, err
    template = real_data / "scct_template" / "scct_hu.nii.gz"
    code, _out, err = command("convert", template, "-d", 900, "--from", "folder")
    assert code == 0, err
    code, _out, err = command("plan_and_preprocess", "-d", 900)
    assert code == 0, err
    for method in ("mae", "dino"):
        small = ["-c", "vit_test", "--set", "training.num_steps=2", "--num_workers", 0]
        code, _out, err = command("pretrain", "-d", 900, "-m", method, *small)
        assert code == 0, err
    (dataset,) = (roots / "raw").glob("Dataset900_*")
    run = roots / "results" / dataset.name / "pretrain" / "dino__vit_test__plans"
    for source in (dataset / "images", real_data / "head_ct_ge_tilt"):
        vectors = roots / f"{source.name}.npz"
        code, _out, err = command("embed", "-i", source, "-w", run, "-o", vectors)
        assert code == 0, err
        with np.load(vectors) as content:
            (name,) = [k for k in content.files if k != "case_id"]
            assert np.isfinite(content[name]).all()
    shutil.rmtree(roots / "results")
