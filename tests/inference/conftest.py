"""Fixtures: a classifier of tiny heads."""

from __future__ import annotations

import pytest
from small_heads import make_dataset, make_encoder

from headctssl.finetuning.finetune import finetune
from headctssl.paths import ROOT_KINDS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Root folder with dataset 2, an encoder under `enc`, and the fold folder of a linear classifier."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 24, unknown=2)
        make_encoder(root / "enc")
        yield root, finetune(2, root / "enc", adapt="linear", labels=["bleed"], num_workers=0, quiet=True)
