"""Plans: the file that fixes what the data decide, each decision with its reason."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headctssl.contract import InputSpec, StorageRule
from headctssl.errors import unknown_name
from headctssl.settings import Settings

__all__ = ["ConfigurationPlan", "Decision", "Plans", "SplitRule"]


class Decision(Settings):
    """One decision and why it was taken."""

    what: str = Field(description="What was decided, e.g. 'storage spacing'.")
    value: str = Field(description="The value as text.")
    rule: str = Field(description="The rule in words.")
    source: str = Field(description="Where the rule comes from: a paper, a measurement, a convention.")
    because: str = Field(description="What in this dataset led to the value.")


class SplitRule(Settings):
    """How splits.json is drawn."""

    test_share: float = Field(0.2, ge=0, lt=1, description="Share of subjects held out for the final test.")
    folds: int = Field(5, ge=1, description="Cross-validation folds over the remaining subjects.")
    seed: int = Field(12345, ge=0, description="Seed of the draw.")


class ConfigurationPlan(Settings):
    """One encoder preset fitted to the data."""

    preset: str = Field(description="Name in the table of encoder presets.")
    input: InputSpec
    token_size: tuple[int, int, int] = Field(description="Voxels (z, y, x) per token or total stride.")


class Plans(Settings):
    """plans.json."""

    format: Literal[1] = 1
    dataset_id: int = Field(ge=1)
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    plans_name: str = Field("plans", description="'plans', or the NAME of -p NAME.")
    num_cases: int = Field(ge=0)
    num_subjects: int = Field(ge=0)
    fingerprint_digest: str = Field(description="SHA-256 of the fingerprint, first 16 hex digits.")
    profile: Literal["clinical", "laptop", "template"] = Field(
        "clinical", description="laptop and template are synthetic datasets whose runs are kept under 10 minutes."
    )
    storage: StorageRule
    configurations: tuple[ConfigurationPlan, ...]
    split_rule: SplitRule
    decisions: tuple[Decision, ...]

    def configuration(self, preset: str) -> ConfigurationPlan:
        """The plan of one encoder preset.

        Raises:
            UsageError: the plans do not have it; the known ones are listed.
        """
        for plan in self.configurations:
            if plan.preset == preset:
                return plan
        raise unknown_name("configuration", preset, [p.preset for p in self.configurations])
