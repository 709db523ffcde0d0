"""Helpers: a small planned and preprocessed dataset, and settings for runs of under a second."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from headctssl.contract import InputSpec, StorageRule, Window
from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset
from headctssl.planning.plans import ConfigurationPlan, Plans, SplitRule
from headctssl.preprocessing.index import case_path, rebuild_index
from headctssl.settings import write_json
from headctssl.volume.store import CaseMeta, write_case

SPACING = (4.0, 4.0, 4.0)
WINDOWS = (Window(level=40, width=80), Window(level=80, width=200), Window(level=600, width=2800))

TINY = (
    "training.num_steps=6",
    "training.batch_size=2",
    "training.precision=float32",
    "training.num_workers=0",
    "views.local_count=0",
)
"""Overrides that keep a run under a second."""


def make_stored_dataset(
    preprocessed: Path,
    dataset_id: int = 1,
    num_cases: int = 6,
    test: tuple[int, ...] = (5,),
    rule: StorageRule | None = None,
    profile: str = "laptop",
) -> Path:
    """Write plans.json, splits.json and stored cases of spheres in air, as planning and preprocessing would.

    Args:
        preprocessed: the root.
        dataset_id: number of the dataset.
        num_cases: cases SECRET000, SECRET001 ...
        test: which of them are the test set.
        rule: storage rule.
        profile: of the plans.
    """
    name = f"Dataset{dataset_id:03d}_Tiny"
    folder = preprocessed / name
    rule = rule or StorageRule(spacing_mm=SPACING, masks=())
    spec = InputSpec(rule="fixed_spacing", shape=(24, 24, 24), spacing_mm=(6.0, 6.0, 6.0), windows=WINDOWS)
    plans = Plans(
        dataset_id=dataset_id,
        dataset_name=name,
        num_cases=num_cases,
        num_subjects=num_cases,
        fingerprint_digest="0" * 16,
        profile=profile,  # type: ignore[arg-type]  # a plain text in tests
        storage=rule,
        configurations=(
            ConfigurationPlan(preset="vit_test", input=spec, token_size=(6, 6, 6)),
            ConfigurationPlan(preset="resenc_test", input=spec, token_size=(4, 4, 4)),
        ),
        split_rule=SplitRule(),
        decisions=(),
    )
    write_json(folder / "plans.json", plans)
    ids = [f"SECRET{i:03d}" for i in range(num_cases)]
    held = [ids[i] for i in test]
    train = [i for i in ids if i not in held]
    write_json(folder / "splits.json", {"format": 1, "test": held, "folds": [{"train": train, "val": []}]})
    storage = folder / rule.storage_id
    for number, case_id in enumerate(ids):
        _write_sphere(storage, case_id, seed=100 * dataset_id + number, rule=rule)
    rebuild_index(storage)
    return folder


def make_labels(raw: Path, dataset_id: int = 1, num_cases: int = 6, label: str = "large") -> None:
    """Write the raw dataset of `make_stored_dataset`, without its images: two scans of a subject, a label by turns.

    Args:
        raw: the root.
        dataset_id: number of the dataset.
        num_cases: as many as are stored.
        label: its name.
    """
    rows = [
        {
            "case_id": f"SECRET{i:03d}",
            "image": f"images/SECRET{i:03d}.nii.gz",
            "subject_id": f"PATIENT{i // 2:03d}",
            label: str((i // 2) % 2),
        }
        for i in range(num_cases)
    ]
    info = DatasetInfo.model_validate({"name": "Tiny", "profile": "laptop", "labels": {label: {"type": "binary"}}})
    write_raw_dataset(raw / f"Dataset{dataset_id:03d}_Tiny", info, pd.DataFrame(rows, dtype=str))


def _write_sphere(storage: Path, case_id: str, seed: int, rule: StorageRule) -> None:
    rng = np.random.default_rng(seed)
    shape = (34, 38, 36)
    radius = rng.uniform(12, 16)
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    r = np.sqrt((z - 17) ** 2 + (y - 19) ** 2 + (x - 18) ** 2)
    hu = np.where(r < radius, np.where(r > radius - 2, 900, 35), -1000) + rng.normal(0, 5, shape)
    affine = np.diag([*rule.spacing_mm, 1.0]).tolist()
    meta = CaseMeta(
        spacing_mm=rule.spacing_mm,
        affine=affine,
        original_affine=affine,
        original_shape=shape,
        original_spacing_mm=rule.spacing_mm,
        crop_box=tuple((0, n) for n in shape),
        head_box=((2, 32), (4, 34), (3, 33)),
        source_sha256=hashlib.sha256(f"{case_id}{seed}".encode()).hexdigest(),
        source_size=1,
        source_mtime_ns=1,
        storage_digest=rule.digest(),
        masks=(),
    )
    path = case_path(storage, case_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_case(path, hu.round().astype(np.int16)[None], meta)
