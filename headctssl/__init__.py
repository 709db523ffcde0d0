"""headctssl: self-configuring self-supervised pretraining on 3D head CT, and classifiers from it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headctssl.evaluation.compare import compare
    from headctssl.evaluation.evaluate import evaluate
    from headctssl.finetuning.finetune import finetune
    from headctssl.inference.embed import embed
    from headctssl.inference.predict import predict
    from headctssl.ingest.convert import convert
    from headctssl.ingest.phantom.make import make_phantom
    from headctssl.methods import list_methods
    from headctssl.networks import list_encoders
    from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
    from headctssl.reporting.report import report
    from headctssl.training.checkpoint import load_encoder
    from headctssl.training.pretrain import pretrain

__version__ = "0.1.0"

__all__ = [
    "compare",
    "convert",
    "embed",
    "evaluate",
    "finetune",
    "list_encoders",
    "list_methods",
    "load_encoder",
    "make_phantom",
    "plan_and_preprocess",
    "predict",
    "pretrain",
    "report",
]

_HOME = {
    "compare": "headctssl.evaluation.compare",
    "convert": "headctssl.ingest.convert",
    "embed": "headctssl.inference.embed",
    "evaluate": "headctssl.evaluation.evaluate",
    "finetune": "headctssl.finetuning.finetune",
    "list_encoders": "headctssl.networks",
    "list_methods": "headctssl.methods",
    "load_encoder": "headctssl.training.checkpoint",
    "make_phantom": "headctssl.ingest.phantom.make",
    "plan_and_preprocess": "headctssl.preprocessing.plan_and_preprocess",
    "predict": "headctssl.inference.predict",
    "pretrain": "headctssl.training.pretrain",
    "report": "headctssl.reporting.report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing headctssl stays light."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'headctssl' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
