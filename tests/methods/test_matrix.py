"""Matrix: every pair of method and encoder that is not refused trains, stops and goes on, and becomes a classifier.

Methods and encoders come from their tables, so new ones enter by themselves; a family takes part with its `*_test`
preset. Scans go through the whole road: raw dataset, plans, stored cases, run folder, weights file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_heads import head, make_dataset
from torch import Tensor

from headctssl.contract import HeadSettings, LabelSpec
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import DatasetInfo, load_raw_dataset, write_raw_dataset
from headctssl.errors import UsageError
from headctssl.families import FAMILIES
from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.settings import TaskSettings
from headctssl.finetuning.start import resolve_start
from headctssl.finetuning.tasks import Classifier
from headctssl.methods import METHODS
from headctssl.networks import build_from_settings
from headctssl.networks.encoder import Encoder
from headctssl.networks.heads import build_head
from headctssl.planning.plans import Plans, plans_path
from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
from headctssl.presets import ENCODER_PRESETS, METHOD_FACTS, pair_refusal
from headctssl.settings import read_json, write_json
from headctssl.training.checkpoint import load_into, load_weights
from headctssl.training.pretrain import pretrain
from headctssl.training.run_log import RunLog
from headctssl.training.run_state import CHECKPOINT_FILE, load_checkpoint
from headctssl.training.trainer import Trainer

STEPS, STOP = 3, 2
TINY = (
    f"training.num_steps={STEPS}",
    f"training.checkpoint_every={STOP}",
    "training.batch_size=2",
    "training.precision=float32",
    "training.num_workers=0",
)
ONE_LOCAL = "views.local_count=1"  # methods with local views take up to six
SMALL_GRID = "views.base_grid=2"  # and those with a grid of views nine
PRESETS = [preset for preset in ENCODER_PRESETS.values() if preset.name.endswith("_test")]
PAIRS = [(method, preset.name) for method in METHODS for preset in PRESETS]
ALLOWED = [pair for pair in PAIRS if pair_refusal(*pair) is None]
REFUSED = [pair for pair in PAIRS if pair not in ALLOWED]


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Dataset 1, four small heads with a segmented ball in the brain, planned and stored."""
    base = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("raw", "preprocessed", "results"):
            (base / kind).mkdir()
            patch.setenv(f"headctssl_{kind}", str(base / kind))
        patch.setattr(RunLog, "picture", lambda self, final=False: None)
        folder = make_dataset(1, 4)
        cells = []
        for number, case_id in enumerate(load_raw_dataset(1).case_ids):
            volume = head(1000 + number, bleed=False)
            place = np.stack(np.mgrid[tuple(slice(n) for n in volume.hu.shape)]) - 22
            volume.hu[:] = (np.sqrt((place**2).sum(axis=0)) < 8).astype(np.int16)
            cells.append(f"images/{case_id}_segmentation.nii.gz")
            write_nifti(folder / cells[-1], volume)
        raw = load_raw_dataset(1)
        info = DatasetInfo.model_validate({**raw.info.model_dump(), "segmentation_classes": {"ball": 1}})
        write_raw_dataset(folder, info, raw.cases.assign(segmentation=pd.Series(cells, dtype=str)))
        plan_and_preprocess((1,), num_workers=1, quiet=True)
        _shorten(plans_path(1))
        yield base


def _shorten(path: Path) -> None:
    """Two places in the last stage of SwinUNETR, whose tokens have 32 voxels, where the planner takes eight."""
    plans = read_json(path, Plans)
    wanted = {"swin_unetr_test": (32, 32, 64)}
    configurations = tuple(
        c.model_copy(update={"input": c.input.model_copy(update={"shape": wanted.get(c.preset, c.input.shape)})})
        for c in plans.configurations
    )
    write_json(path, plans.model_copy(update={"configurations": configurations}))


class Watch:
    """Looks into the trainer: gradients that reach an encoder, and a copy of the checkpoint of step `STOP`."""

    def __init__(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copy, self.reached = copy, []  # type: ignore[var-annotated]  # list[bool]
        clip, save = Trainer._clip, Trainer.save

        def look(trainer: Trainer) -> Tensor:
            encoders = [m for m in trainer.module.modules() if isinstance(m, Encoder)]
            trained = [e for e in encoders if any(p.requires_grad for p in e.parameters())]
            assert len(trained) == 1, "one encoder learns; teachers have no gradients"
            gradients = [p.grad for p in trained[0].parameters() if p.requires_grad]
            assert all(g is not None and torch.isfinite(g).all() for g in gradients)
            first = next(p.grad for p in trained[0].parameters() if p.requires_grad and p.ndim == 5)
            self.reached.append(first is not None and bool(first.abs().sum() > 0))
            return clip(trainer)

        def keep(trainer: Trainer) -> None:
            save(trainer)
            if trainer.step == STOP:
                shutil.copy(trainer.folder / CHECKPOINT_FILE, copy)

        monkeypatch.setattr(Trainer, "_clip", look)
        monkeypatch.setattr(Trainer, "save", keep)


def go(method: str, preset: str, *, resume: bool = False) -> Path:
    facts = METHOD_FACTS[method]
    sets = (*TINY, *((ONE_LOCAL,) if facts.local_views else ()), *((SMALL_GRID,) if facts.base_grid else ()))
    return pretrain(1, method, config=preset, device="cpu", overrides=sets, quiet=True, resume=resume)


def flat(value: object, name: str = "") -> dict[str, object]:
    """A nested checkpoint as dotted name -> leaf."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{name}.{i}").items()}
    return {name: value}


def same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


@pytest.mark.parametrize(("method", "preset"), ALLOWED)
def test_pair(method: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(tmp_path / "at_stop.pt", monkeypatch)
    folder = go(method, preset)

    # Three steps with a finite loss that reaches the first layer of the encoder.
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert np.isfinite([line["loss"] for line in lines]).all()
    assert watch.reached == [True] * STEPS

    # Gone on with from the checkpoint of step 2, the run ends in the same bits.
    whole = flat(load_checkpoint(folder / CHECKPOINT_FILE))
    exported = load_weights(folder, "encoder")
    shutil.move(watch.copy, folder / CHECKPOINT_FILE)
    (folder / "encoder.safetensors").unlink()
    go(method, preset, resume=True)
    assert len(watch.reached) == STEPS + 1, "only the last step was taken again"
    again = flat(load_checkpoint(folder / CHECKPOINT_FILE))
    differing = [k for k in whole.keys() | again.keys() if k != ".elapsed" and not same(whole.get(k), again.get(k))]
    assert differing == []
    assert load_weights(folder, "encoder").contract.weights_hash == exported.contract.weights_hash

    # The weights are those of a classifier's encoder, whole, and learn with it.
    start = resolve_start(1, folder, None, {})
    assert (start.method, start.config) == (method, preset)
    encoder = build_from_settings(start.encoder)
    assert start.tensors is not None
    assert load_into(encoder, start.tensors, source=start.encoder).share == 1.0
    classifier = Classifier(encoder, build_head(HeadSettings(), encoder.embed_dim, 1)).train()
    logits = classifier(torch.rand(2, len(start.input.windows), *start.input.shape))
    truth = np.array([[0.0], [1.0]])
    LabelLoss((LabelSpec(name="bleed"),), truth, TaskSettings())(logits, torch.from_numpy(truth)).backward()
    assert torch.isfinite(logits).all()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in encoder.parameters())


@pytest.mark.parametrize(("method", "preset"), REFUSED)
def test_a_pair_that_cannot_work_is_refused_before_anything_is_made(method: str, preset: str, dataset: Path) -> None:
    with pytest.raises(UsageError) as caught:
        go(method, preset)
    assert f"-m {method} -c {preset}" in str(caught.value)
    assert str(pair_refusal(method, preset)) in str(caught.value)
    assert not list(dataset.glob(f"results/*/pretrain/{method}__{preset}__*"))


def test_every_family_and_every_method_takes_part() -> None:
    assert {preset.settings.family for preset in PRESETS} == set(FAMILIES)
    assert {method for method, _ in ALLOWED} == set(METHODS)
