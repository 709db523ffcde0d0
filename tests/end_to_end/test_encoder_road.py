"""The road of every family of encoders: planned, estimated, pretrained and fine-tuned on a small phantom."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from headctssl.cli.main import main
from headctssl.paths import ROOT_KINDS
from headctssl.training.checkpoint import load_encoder

Command = Callable[..., tuple[int, str, str]]
FAMILIES = ["primus_test", "unet3d_test", "swin_unetr_test", "segresnet_test"]  # vit and resenc: test_road
SMALL = ["--set", "training.num_steps=2", "--set", "training.batch_size=2", "--num_workers", "0"]

pytestmark = pytest.mark.evidence


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs on a preprocessed phantom go."""
    folder = tmp_path_factory.mktemp("encoders")
    patch = pytest.MonkeyPatch()
    for kind in ROOT_KINDS:
        (folder / kind).mkdir()
        patch.setenv(f"headctssl_{kind}", str(folder / kind))
    assert main(["make_phantom", "-d", "1", "-n", "16", "--profile", "laptop", "--quiet"]) == 0
    assert main(["plan_and_preprocess", "-d", "1", "--quiet"]) == 0
    yield folder / "results" / "Dataset001_Phantom"
    patch.undo()


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("method", ["dino", "mae"])
def test_pretrain_and_fine_tune(results: Path, command: Command, method: str, config: str) -> None:
    code, out, err = command("estimate", "-d", 1, "-m", method, "-c", config)
    assert code == 0, err
    assert "s per step" in out
    code, _out, err = command("pretrain", "-d", 1, "-m", method, "-c", config, *SMALL)
    assert code == 0, err
    run = results / "pretrain" / f"{method}__{config}__plans"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines)
    encoder = load_encoder(run)
    assert set(load_file(run / "encoder.safetensors")) == set(encoder.state_dict()), "buffers travel too"
    adapt = "full" if method == "mae" else "linear"
    epochs = ["--set", "training.num_epochs=1", "--num_workers", "0"]
    code, _out, err = command("finetune", "-d", 1, "-w", run, "--adapt", adapt, *epochs)
    assert code == 0, err
    fold = next((results / "finetune").glob(f"*__{adapt}__{method}-{config}-*/fold_0"))
    assert (fold / "classifier.safetensors").is_file()


@pytest.mark.parametrize("config", FAMILIES)
def test_from_scratch(results: Path, command: Command, config: str) -> None:
    call = ["-d", 1, "-w", "scratch", "-c", config, "--set", "training.num_epochs=1", "--num_workers", "0"]
    code, _out, err = command("finetune", *call)
    assert code == 0, err
    assert list((results / "finetune").glob(f"*__scratch-{config}/fold_0/metrics.json"))


def test_changes_that_break_the_plan_are_refused(results: Path, command: Command) -> None:
    change = ["--set", "encoder.blocks=[1,1]"]
    for call in (
        ["pretrain", "-d", 1, "-m", "mae", "-c", "segresnet_test", *SMALL],
        ["finetune", "-d", 1, "-w", "scratch", "-c", "segresnet_test"],
    ):
        code, _out, err = command(*call, *change)
        assert code == 2
        assert "other tokens" in err
