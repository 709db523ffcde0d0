"""Supervised on the phantom: raw scans with segmentations to an encoder that has learned to find bleeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headctssl.cli.main import main


@pytest.mark.evidence
def test_bleeds_of_the_phantom_are_learned(roots: Path) -> None:
    assert main(["make_phantom", "-d", "1", "-n", "12", "--profile", "laptop", "--quiet"]) == 0
    assert main(["plan_and_preprocess", "-d", "1", "--quiet"]) == 0
    sets = ("training.num_steps=900", "training.batch_size=4", "training.lr=0.005", "training.precision=float32")
    call = ["pretrain", "-d", "1", "-m", "supervised", "-c", "resenc_test", "--num_workers", "0", "--quiet"]
    assert main([*call, *(word for text in sets for word in ("--set", text))]) == 0
    run = roots / "results" / "Dataset001_Phantom" / "pretrain" / "supervised__resenc_test__plans"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (sum(line["soft_dice"] for line in part) / 60 for part in (lines[:60], lines[-60:]))
    print(f"soft Dice on the training views: {first:.3f} in the first 60 steps, {last:.3f} in the last 60")
    assert first < 0.1
    assert last > 0.6
    classes = json.loads((run / "config.json").read_text())["segmentation_classes"]
    assert classes == ["IPH", "SDH", "IVH"]
