"""Head plan: the head of a classifier, and in which coordinates it learns."""

from __future__ import annotations

from collections.abc import Mapping

from headctssl.contract import HeadSettings
from headctssl.finetuning.rates import HEADCT
from headctssl.finetuning.situation import Situation, Steps
from headctssl.settings import JsonValue

__all__ = ["choose_head", "choose_whitening"]

_SHRINKAGE = 0.01


def choose_head(steps: Steps, situation: Situation) -> HeadSettings:
    """Choose the head that stands on the encoder.

    Args:
        steps: the decision is added to them.
        situation: encoder and adaptation.
    """
    if situation.adapt != "attentive":
        steps.add("head", "linear on the features", "BatchNorm without affine parameters, then linear", HEADCT, "")
        return HeadSettings()
    width = situation.encoder.embed_dim
    heads = next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
    rule = "as many attention heads as have 64 channels or more each, one query per head, then linear"
    source = "attentive probe of AIM, arXiv 2401.08541"
    steps.add("head", f"attentive pooling of the tokens, {heads} heads", rule, source, f"{width} channels")
    return HeadSettings(kind="attentive", heads=heads)


def choose_whitening(steps: Steps, situation: Situation, overrides: Mapping[str, JsonValue]) -> float | None:
    """Choose whether a linear head learns on whitened features too; None: only on the features as they are.

    Args:
        steps: the decision is added to them.
        situation: encoder and adaptation.
        overrides: what is given.
    """
    if situation.adapt != "linear":
        return None
    hindrance = ""
    if overrides.get("head.batch_norm") is False:
        hindrance = "features are taken as they are with head.batch_norm=false"
    elif not situation.num_validation:
        hindrance = "no validation cases could choose"
    if hindrance:
        steps.add("whitening", "none", "the head learns on the features as they are", "convention", hindrance)
        return None
    rule = (
        f"the head learns once more on features whose directions vary alike, {_SHRINKAGE:g} of their mean variance"
        " added to each before; validation chooses; a plain head is saved"
    )
    source = "LeCun et al. 1998, Efficient BackProp, 4.3; the share is measured, see documentation/finetuning.md"
    because = "of directions with little variance nothing is learnt otherwise"
    steps.add("whitening", f"{_SHRINKAGE:g}", rule, source, because)
    return _SHRINKAGE
