"""Situation: what the derivation of settings looks at, and the decisions that it collects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headctssl.families import FamilySettings
from headctssl.finetuning.settings import Adaptation
from headctssl.planning.plans import Decision

__all__ = ["Situation", "Steps"]


@dataclass(frozen=True)
class Situation:
    """What the derivation looks at."""

    num_train: int  # labelled training cases
    num_validation: int  # labelled validation cases
    adapt: Adaptation
    encoder: FamilySettings
    pretrained: bool
    small_profile: bool  # synthetic laptop or template dataset
    precision: Literal["bf16", "fp16", "float32"]
    num_workers: int
    num_studies: int | None = None  # labelled training studies, where studies are learnt from; None: scans are

    @property
    def num_samples(self) -> int:
        """Labelled training studies, where these are learnt from, else cases."""
        return self.num_train if self.num_studies is None else self.num_studies

    @property
    def samples(self) -> str:
        """What they are called."""
        return "cases" if self.num_studies is None else "studies"

    @property
    def frozen(self) -> bool:
        """Whether the encoder rests in every step."""
        return self.adapt in ("linear", "attentive")


class Steps:
    """Collects decisions."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def add(self, what: str, value: str, rule: str, source: str, because: str) -> None:
        """Add a decision: what, its value, the rule, where the rule is from, and what in the situation it looks at."""
        self.decisions.append(Decision(what=what, value=value, rule=rule, source=source, because=because))
