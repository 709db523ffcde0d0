"""Tests on a CUDA device: every method trains, numbers agree with the CPU's, a run repeats bit for bit."""

from __future__ import annotations

import json
import math

import pytest
import torch
from training_helpers import TINY

from headctssl.errors import TrainingError
from headctssl.methods import METHODS, method_class
from headctssl.presets import pair_refusal
from headctssl.training.pretrain import pretrain

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

UNLABELLED = sorted(name for name in METHODS if "segmentation" not in method_class(name).requires)


def settings_of(method: str, **changed: object) -> tuple[str, ...]:
    """TINY without the views it fixes, with some settings changed."""
    asked = dict(text.split("=", 1) for text in TINY if not text.startswith("views."))
    asked |= {"training.batch_size": "4", "training.log_every": "1"} | {k: str(v) for k, v in changed.items()}
    return tuple(f"{key}={value}" for key, value in asked.items())


def losses(folder):
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", UNLABELLED)
def test_every_method_trains_on_the_device(dataset, method, precision):
    config = "vit_test" if pair_refusal(method, "vit_test") is None else "resenc_test"
    steps = 6 if precision == "bf16" else 24  # the scaler of fp16 skips steps until it has found its scale
    asked = settings_of(method, **{"training.precision": precision, "training.num_steps": steps})
    folder = pretrain(1, method, config=config, device="cuda", overrides=asked, quiet=True)
    found = losses(folder)
    assert len(found) == steps
    taken = [value is not None and math.isfinite(value) for value in found]
    assert all(taken[-3:]), found
    assert precision == "fp16" or all(taken), found
    assert (folder / "encoder.safetensors").is_file()


@pytest.mark.parametrize("method", ["dino", "mae", "lejepa", "simclr"])
def test_losses_are_those_of_the_cpu(dataset, method, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    asked = settings_of(method)
    found = [
        losses(pretrain(1, method, config="vit_test", device=device, tag=device, overrides=asked, quiet=True))
        for device in ("cpu", "cuda")
    ]
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert found[1] == pytest.approx(found[0], rel=2e-2)


def test_a_deterministic_run_repeats_bit_for_bit(dataset):
    asked = settings_of("mae", **{"training.deterministic": "true", "training.precision": "bf16"})
    hashes = []
    for tag in ("one", "two"):
        folder = pretrain(1, "mae", config="vit_test", device="cuda", tag=tag, overrides=asked, quiet=True)
        hashes.append(json.loads((folder / "contract.json").read_text())["weights_hash"])
    assert hashes[0] == hashes[1]


def test_what_has_no_deterministic_form_is_said(dataset):
    # The shortcuts of ResEnc pool, and torch pools backwards in three dimensions with atomic additions.
    with pytest.raises(TrainingError, match="no deterministic form"):
        pretrain(
            1,
            "simclr",
            config="resenc_test",
            device="cuda",
            overrides=settings_of("simclr", **{"training.deterministic": "true"}),
            quiet=True,
        )
