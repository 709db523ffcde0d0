"""Supervised end to end: classes by name over datasets, masks of every dataset, resume, export, refusals."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_helpers import SPACING, TINY, make_stored_dataset

from headctssl.contract import SegmentationClass, StorageRule
from headctssl.errors import DataError, StoppedError
from headctssl.loading.views import make_views
from headctssl.planning.plans import load_plans
from headctssl.preprocessing.index import CaseIndex, mask_path, write_index
from headctssl.training import trainer as trainer_module
from headctssl.training.checkpoint import load_encoder
from headctssl.training.pretrain import pretrain
from headctssl.training.pretrain_data import open_pretrain_data
from headctssl.training.run_log import RunLog
from headctssl.training.segmented import only_segmented
from headctssl.training.trainer import Trainer
from headctssl.types import Views
from headctssl.volume.mask_store import MaskMeta, write_labels, write_mask

CLASSES = {1: {"IPH": 1, "SDH": 2}, 2: {"tumour": 4, "SDH": 9}}


def segmented(roots: Path, dataset_id: int, classes: dict[str, int], missing: tuple[int, ...] = ()) -> Path:
    """A stored dataset whose cases have a segmentation of slabs, and in dataset 2 an anonymisation mask."""
    masks = ("anonymization_mask", "segmentation") if dataset_id == 2 else ("segmentation",)
    rule = StorageRule(spacing_mm=SPACING, masks=("head", *masks))
    folder = make_stored_dataset(roots / "preprocessed", dataset_id, num_cases=4, test=(3,), rule=rule)
    storage = folder / rule.storage_id
    index = CaseIndex.open(storage)
    specs = tuple(SegmentationClass(name=name, value=value) for name, value in classes.items())
    rows = []
    for position, row in enumerate(index.rows):
        own = tuple(name for name in masks if not (name == "segmentation" and position in missing))
        for name in own:
            meta = MaskMeta(name=name, source_sha256="0" * 64, source_size=1, source_mtime_ns=1)
            if name == "segmentation":
                labels = np.zeros(row.shape, np.uint8)
                for slab, value in enumerate(classes.values() or (1, 2)):
                    labels[8 + 10 * slab : 16 + 10 * slab, 10:28, 10:28] = value
                write_labels(mask_path(storage, row.case_id, name), labels, meta.model_copy(update={"classes": specs}))
            else:
                face = np.zeros(row.shape, bool)
                face[:, :12] = True
                write_mask(mask_path(storage, row.case_id, name), face, meta)
        rows.append(replace(row, masks=("head", *own)))
    write_index(storage, rows)
    return folder


@pytest.fixture
def two(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets 1 and 2; one case of the first has no segmentation."""
    monkeypatch.setattr(RunLog, "picture", lambda self, final=False: None)
    segmented(roots, 1, CLASSES[1], missing=(1,))
    segmented(roots, 2, CLASSES[2])


def go(method: str = "supervised", *more: str, datasets: tuple[int, ...] = (1, 2), **options: object) -> Path:
    sets = (*(t for t in TINY if not any(t.startswith(m.partition("=")[0]) for m in more)), *more)
    return pretrain(datasets, method, config="vit_test", device="cpu", quiet=True, overrides=sets, **options)  # type: ignore[arg-type]


def test_classes_are_the_same_where_their_names_are(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Views] = []

    def spy(*args: object) -> Views:
        seen.append(make_views(*args))  # type: ignore[arg-type]  # the trainer's own arguments
        return seen[-1]

    monkeypatch.setattr(trainer_module, "make_views", spy)
    folder = go()
    config = json.loads((folder / "config.json").read_text())
    assert config["segmentation_classes"] == ["IPH", "SDH", "tumour"]
    assert "SECRET001" not in "".join(line for line in (folder / "cases.csv").open() if line.startswith("1,"))
    assert any("have no stored segmentation" in d["value"] for d in config["decisions"])
    marks = {tuple(row) for views in seen for row in views.known_classes.tolist()}
    assert marks == {(True, True, False), (False, True, True)}
    for views in seen:
        for labels, known, hidden in zip(
            views.segmentation["global"][0], views.known_classes, views.anonymised["global"][0], strict=True
        ):
            found = set(labels.unique().tolist()) - {-1, 0}
            assert found <= {number for number in (1, 2, 3) if known[number - 1]}
            # Only dataset 2, the one with a tumour class, has anonymised voxels: they are not lost beside dataset 1.
            assert bool(hidden.any()) == bool(known[2])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["soft_dice"] < 1 for line in lines)
    assert sum(line["class_share"] for line in lines) > 0


def test_a_stopped_run_goes_on_bit_for_bit_and_exports_the_encoder_alone(
    two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(tag="whole")
    real = Trainer._clip

    def stop(self: Trainer) -> torch.Tensor:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_clip", stop)
        with pytest.raises(StoppedError):
            go(tag="parts")
    parts = go(tag="parts", resume=True)
    one, other = (load_file(run / "encoder.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    encoder = load_encoder(whole)
    assert set(one) == set(encoder.state_dict())
    assert encoder(torch.rand(1, 3, 24, 24, 24)).features.shape == (1, 48)


def test_reconstruction_knows_what_was_anonymised(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[float] = []
    real = Views.valid

    def spy(self: Views, group: str, index: int) -> torch.Tensor:
        valid = real(self, group, index)
        counted.append(float((valid != (self.inside[group][index] >= 0.5)).float().mean()))
        return valid

    monkeypatch.setattr(Views, "valid", spy)
    go("mae", "method.decoder_width=48", "method.decoder_heads=3", datasets=(2,))
    assert counted
    assert min(counted) > 0.02


def test_nothing_to_learn_from_is_refused_by_name(roots: Path) -> None:
    make_stored_dataset(roots / "preprocessed", 3, num_cases=3, test=(2,))
    with pytest.raises(DataError, match="No case has a segmentation"):
        go(datasets=(3,))
    segmented(roots, 4, {})
    with pytest.raises(DataError, match=r"Dataset004_Tiny does not say what the values"):
        only_segmented(open_pretrain_data((4,), "plans", "train"))


def test_masks_of_the_second_dataset_need_no_second_storage(two: None) -> None:
    data = open_pretrain_data((1, 2), "plans", "train")
    stored = [index.folder.name for index in data.indexes]
    assert stored == [load_plans(dataset_id).storage.storage_id for dataset_id in (1, 2)]
    assert stored[0] != stored[1]
