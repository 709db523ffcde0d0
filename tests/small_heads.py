"""Small heads: tiny labelled datasets and encoders for tests of fine-tuning, inference and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from headctssl.contract import Contract, InputSpec, StorageRule, Window
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset
from headctssl.networks import build_encoder
from headctssl.paths import data_root
from headctssl.training.checkpoint import save_encoder
from headctssl.types import Volume, VolumeInfo

STORAGE = StorageRule(spacing_mm=(8.0, 8.0, 8.0))
INPUT = InputSpec(
    rule="fixed_spacing",
    shape=(24, 24, 24),
    spacing_mm=(8.0, 8.0, 8.0),
    windows=(Window(level=40, width=80), Window(level=80, width=200), Window(level=600, width=2800)),
)


def head(seed: int, bleed: bool, spacing: float = 5.0) -> Volume:
    """An egg of bone and brain in air; a bleed is a bright ball that even a tiny network can see."""
    rng = np.random.default_rng(seed)
    size = round(220 / spacing)
    z, y, x = (np.mgrid[:size, :size, :size] - (size - 1) / 2) * spacing
    centre = rng.uniform(-8, 8, 3)
    radius = np.sqrt(((z - centre[0]) / 72) ** 2 + ((y - centre[1]) / 88) ** 2 + ((x - centre[2]) / 72) ** 2)
    hu = np.full(z.shape, -1000.0)
    hu[radius < 1.1] = 30
    hu[radius < 1.04] = 900
    hu[radius < 0.94] = 30
    if bleed:
        where = centre + rng.uniform(-15, 15, 3)
        ball = (z - where[0]) ** 2 + (y - where[1]) ** 2 + (x - where[2]) ** 2
        hu[ball < 35**2] = 300
    hu += rng.normal(0, 3, hu.shape)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    info = VolumeInfo(source_format="nifti", original_shape=hu.shape, original_spacing_mm=(spacing,) * 3)
    return Volume(np.rint(hu).astype(np.int16), affine, info)


def make_dataset(dataset_id: int, n: int = 12, *, unknown: int = 1, spacing: float = 5.0, name: str = "Small") -> Path:
    """A raw dataset: `bleed` alternates, the last `unknown` empty; `noise` means nothing; two scans each."""
    folder = data_root("raw") / f"Dataset{dataset_id:03d}_{name}"
    (folder / "images").mkdir(parents=True)
    rows = []
    for k in range(n):
        bleed = (k // 2) % 2 == 0
        case = f"case{dataset_id}_{k:02d}"
        write_nifti(folder / "images" / f"{case}.nii.gz", head(1000 * dataset_id + k, bleed, spacing))
        rows.append(
            {
                "case_id": case,
                "image": f"images/{case}.nii.gz",
                "subject_id": f"patient{dataset_id}_{k // 2}",
                "bleed": "" if k >= n - unknown else str(int(bleed)),
                "noise": str((k // 4) % 2),
            }
        )
    labels = {"bleed": {"type": "binary"}, "noise": {"type": "binary"}}
    info = DatasetInfo.model_validate({"name": name, "labels": labels, "profile": "laptop"})
    write_raw_dataset(folder, info, pd.DataFrame(rows, dtype=str))
    return folder


def make_encoder(folder: Path, preset: str = "vit_test", method: str = "dino", seed: int = 0) -> Path:
    """An encoder with random weights, saved with a contract as a pretraining run does."""
    torch.manual_seed(seed)
    encoder = build_encoder(preset)
    contract = Contract(
        package_version="0",
        kind="encoder",
        storage=STORAGE,
        input=INPUT,
        preset=preset,
        encoder=encoder.settings,
        method=method,
        settings="{}",
        num_scans=3,
        cases_digest="0" * 16,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(folder / "encoder.safetensors", encoder, contract)
    return folder
