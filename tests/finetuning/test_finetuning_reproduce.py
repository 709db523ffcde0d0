"""Reproducing and tracking fine-tuning runs: the same weights again, refused on other labels; shareable settings."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_heads import make_dataset, make_encoder

from headctssl.errors import DataError, UsageError
from headctssl.finetuning.finetune import finetune
from headctssl.finetuning.reproduce import reproduce
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.paths import ROOT_KINDS, raw_dataset
from headctssl.settings import read_json
from headctssl.training.run_log import RunLog

OVERRIDES = ("training.num_epochs=1", "training.precision=float32", "training.seed=3")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "picture", lambda self, final=False: None)
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 24, unknown=2)
        make_encoder(root / "enc")
        yield root


@pytest.fixture(scope="module")
def first(small: Path) -> Path:
    return finetune(2, small / "enc", overrides=OVERRIDES, num_workers=0, quiet=True, device="cpu")


def test_a_run_is_repeated_bit_for_bit(small: Path, first: Path) -> None:
    with pytest.raises(UsageError, match="began from were not found"):
        reproduce(first, quiet=True)
    done = reproduce(first, init=small / "enc", check=True, num_workers=0, quiet=True)
    assert done.identical is True
    assert done.folder.parent.name == f"{first.parent.name}__reproduced"
    assert (done.folder / "predictions.csv").read_bytes() == (first / "predictions.csv").read_bytes()


def test_a_linear_head_with_few_shots_and_named_labels_is_repeated(small: Path) -> None:
    options = {"num_workers": 0, "quiet": True, "device": "cpu"}
    run = finetune(2, small / "enc", adapt="linear", few_shots=3, labels=["bleed"], tag="few", **options)  # type: ignore[arg-type]
    done = reproduce(run, init=small / "enc", check=True, quiet=True)
    assert done.identical is True
    assert done.folder.parent.name == f"{run.parent.name}-reproduced"


def test_other_labels_are_refused_by_name(small: Path, first: Path) -> None:
    table = raw_dataset(2) / "cases.csv"
    before = table.read_text()
    used = {row["case_id"] for row in csv.DictReader((first / "cases.csv").open()) if row["part"] == "train"}
    rows = list(csv.DictReader(before.splitlines()))
    row = next(row for row in rows if row["case_id"] in used and row["bleed"])
    row["bleed"] = "0" if row["bleed"] == "1" else "1"
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match="cannot be repeated: 'cases_digest'"):
        reproduce(first, init=small / "enc", tag="other", quiet=True)
    table.write_text(before)
    assert not (first.parent.parent / f"{first.parent.name}__other").exists()


def test_trackers_see_neither_dataset_nor_cases(first: Path) -> None:
    settings = read_json(first / "config.json", FinetuneSettings)
    assert settings.overrides == (OVERRIDES[0], 'training.precision="float32"', OVERRIDES[2])
    text = json.dumps(settings.shareable())
    assert "Small" not in text
    assert "case2_" not in text
    assert '"seed": 3' in text
