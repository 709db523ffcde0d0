"""Plans: the file that fixes what the data decide, each decision with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from headctssl.contract import InputSpec, StorageRule
from headctssl.errors import DataError, UsageError, unknown_name
from headctssl.families import FamilySettings
from headctssl.paths import preprocessed_dataset
from headctssl.presets import encoder_preset, encoder_presets
from headctssl.settings import JsonValue, Settings, read_json, with_overrides
from headctssl.volume.layout import StoreLayout

__all__ = [
    "ConfigurationPlan",
    "Decision",
    "Plans",
    "SplitRule",
    "changed_encoder",
    "fitted_encoder",
    "load_plans",
    "plans_path",
]

Shape = tuple[int, int, int]
_PLANNED = ("family", "in_channels", "input_shape", "patch", "strides")  # of an encoder's settings
_PLANS_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


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
    profile: Literal["real", "clinical", "laptop", "template"] = Field(
        "real", description="All but 'real' are phantoms and templates, whose runs are kept under 10 minutes."
    )
    storage: StorageRule
    configurations: tuple[ConfigurationPlan, ...]
    split_rule: SplitRule
    layout: StoreLayout = Field(default_factory=StoreLayout, description="How stored cases are cut up and compressed.")
    decisions: tuple[Decision, ...]

    def configuration(self, preset: str) -> ConfigurationPlan:
        """The plan of one encoder preset.

        Raises:
            UsageError: the plans do not have it; the known ones are listed.
        """
        for plan in self.configurations:
            if plan.preset == preset:
                return plan
        if preset in encoder_presets():
            call = f"headct_plan_and_preprocess -d {self.dataset_id}"
            raise UsageError(
                f"The plans of {self.dataset_name} have no configuration for '{preset}'.",
                got=f"plans '{self.plans_name}', made before this encoder was there",
                expected="one of " + ", ".join(p.preset for p in self.configurations),
                do=f"Plan beside them with {call} -p NAME, or anew with {call} --replan.",
            )
        raise unknown_name("configuration", preset, [p.preset for p in self.configurations])


def plans_path(dataset_id: int, plans_name: str = "plans") -> Path:
    """Where the plans of a dataset lie: ``plans.json``, or ``plans_NAME.json`` for ``-p NAME``.

    Raises:
        UsageError: the name could not be a file name, or no root knows the dataset.
    """
    if not _PLANS_NAME.match(plans_name):
        raise UsageError(
            "The name of the plans cannot be a file name.",
            got=f"-p {plans_name}",
            expected="letters, digits, '_', '.' or '-'",
            do="Choose another name.",
        )
    name = "plans.json" if plans_name == "plans" else f"plans_{plans_name}.json"
    return preprocessed_dataset(dataset_id) / name


def load_plans(dataset_id: int, plans_name: str = "plans") -> Plans:
    """Read the plans of a dataset.

    Args:
        dataset_id: the number in ``DatasetNNN_Name``.
        plans_name: ``plans``, or the NAME of ``-p NAME``.

    Raises:
        DataError: there are no such plans, or the file does not fit its schema.
    """
    path = plans_path(dataset_id, plans_name)
    if not path.is_file():
        flag = "" if plans_name == "plans" else f" -p {plans_name}"
        raise DataError(
            f"Dataset {dataset_id} has no plans named '{plans_name}'.",
            got=f"no {path.name} in {path.parent.name}",
            expected="the plans that planning writes",
            do=f"Run headct_plan_and_preprocess -d {dataset_id}{flag}.",
        )
    return read_json(path, Plans, do="Plan again with headct_plan_and_preprocess --replan.")


def fitted_encoder(configuration: ConfigurationPlan) -> FamilySettings:
    """The encoder settings of a preset with the planned input shape, channels and token size.

    Args:
        configuration: one configuration of the plans.

    Raises:
        UsageError: the preset is unknown.
    """
    return encoder_preset(configuration.preset).settings.fitted(
        in_channels=len(configuration.input.windows),
        input_shape=configuration.input.shape,
        token_size=configuration.token_size,
    )


def changed_encoder(configuration: ConfigurationPlan, changes: Mapping[str, JsonValue]) -> FamilySettings:
    """The fitted encoder with the user's changes.

    Args:
        configuration: one configuration of the plans.
        changes: field of the encoder's settings -> value.

    Raises:
        UsageError: a field is unknown, its value does not fit, or it is the plans that decide it.
    """
    for fixed in _PLANNED:
        if fixed in changes:
            raise UsageError(
                f"The setting 'encoder.{fixed}' is decided by the plans.",
                got=f"--set encoder.{fixed}",
                expected="the value in plans.json",
                do="Choose another preset with -c.",
            )
    encoder = with_overrides(fitted_encoder(configuration), changes, "encoder.")
    if encoder.token_size != configuration.token_size:
        raise UsageError(
            "The changed encoder does not fit the input of the plans: it has other tokens.",
            got=f"tokens of {encoder.token_size} voxels with " + ", ".join(f"encoder.{name}" for name in changes),
            expected=f"tokens of {configuration.token_size} voxels",
            do="Keep the number of stages, or choose another preset with -c.",
        )
    return encoder
