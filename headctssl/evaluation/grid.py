"""Grid: the arms and runs of a comparison, and the key under which a run is kept. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import headctssl
from headctssl.errors import UsageError, unknown_name
from headctssl.evaluation.comparison import REGRESSION, Arm, Grid
from headctssl.finetuning.settings import Adaptation
from headctssl.methods import list_methods
from headctssl.presets import encoder_preset, pair_refusal
from headctssl.settings import JsonValue, parse_overrides

__all__ = [
    "BASELINES",
    "FROZEN",
    "HISTOGRAM",
    "Cell",
    "arms_of",
    "cell_key",
    "cells_of",
    "check_grid",
    "reference_of",
    "split_overrides",
]

BASELINES = ("scratch", "random", "histogram")
"""Always in the table: trained from scratch, a frozen random encoder, logistic regression on HU histograms."""

FROZEN = tuple(name for name in get_args(Adaptation) if name in ("linear", "attentive"))
"""Ways of adaptation that leave the encoder as it is: what they find in random weights needs no learning."""

HISTOGRAM = "histogram"

_RECIPES = {"linear": 2}
"""Raised when an adaptation is planned anew, so that results kept from before are not taken for results of now."""


@dataclass(frozen=True)
class Cell:
    """One run: an arm on one dataset with one label budget, seed and draw."""

    dataset_id: int
    arm: Arm
    label_budget: int | None  # positive and negative patients per label; None: all
    seed: int
    draw: int

    @property
    def text(self) -> str:
        """For messages."""
        budget = "all labels" if self.label_budget is None else f"{self.label_budget} per class"
        draw = "" if self.label_budget is None else f", draw {self.draw}"
        return f"{self.arm.name} on dataset {self.dataset_id}, {budget}, seed {self.seed}{draw}"


def check_grid(grid: Grid) -> None:
    """Refuse what cannot be compared.

    Raises:
        UsageError: a name is unknown or given twice, there is nothing to compare, or a number does not fit.
    """
    known = [name for name, _ in list_methods()]
    for name in grid.methods:
        if name not in known:
            raise unknown_name("method", name, [*known, *BASELINES])
    for name in grid.encoders:
        encoder_preset(name)
    for name in grid.adapt:
        if name not in get_args(Adaptation):
            raise unknown_name("adaptation", name, get_args(Adaptation))
    _no_doubles(grid, known)
    for text in grid.finetune_overrides:
        if text.startswith("head.scans="):
            raise UsageError(
                "A comparison judges scan by scan: attention over the scans of a study cannot be compared.",
                got=f"--set finetune.{text}",
                expected="settings of classifiers of scans",
                do="Remove it; headct_finetune and headct_evaluate judge such a classifier by study.",
            )
    for flag, least, values in (
        ("--seeds", 1, (grid.seeds,)),
        ("--draws", 1, (grid.draws,)),
        ("--few_shots", 1, tuple(k for k in grid.label_budgets if k is not None)),
    ):
        if any(value < least for value in values):
            raise UsageError(
                f"{flag} does not accept this number.",
                got=min(values),
                expected=f"{least} or more",
                do=f"Correct {flag}.",
            )
    for flag, given in (
        ("-d", grid.dataset_ids),
        ("--adapt", grid.adapt),
        ("--few_shots", grid.label_budgets),
        ("--encoders", grid.encoders),
    ):
        if not given:
            raise UsageError(
                f"A comparison needs {flag}.", got="nothing", expected="one value or more", do=f"Add {flag}."
            )


def _no_doubles(grid: Grid, methods: Sequence[str]) -> None:
    for flag, given in (
        ("-d", grid.dataset_ids),
        ("--pretrain_on", grid.pretrain_ids),
        ("--encoders", grid.encoders),
        ("--methods", grid.methods),
        ("--adapt", grid.adapt),
        ("--few_shots", grid.label_budgets),
        ("--weights and --embeddings", (*grid.weights, *grid.embeddings)),
    ):
        if len(set(given)) < len(given):
            text = " ".join("all" if value is None else str(value) for value in given)
            raise UsageError(f"{flag} names something twice.", got=text, expected="each once", do="Remove one.")
    for name in (*grid.weights, *grid.embeddings):
        if name in (*methods, *BASELINES):
            raise UsageError(
                "The name of given weights or vectors is taken.",
                got=name,
                expected="a name that is neither an objective's nor a baseline's",
                do="Choose another NAME for NAME=PATH.",
            )


def arms_of(grid: Grid, presets: Mapping[str, str]) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Every arm: objectives by encoder and adaptation, given weights and vectors, and the baselines.

    Args:
        grid: what was asked for.
        presets: name of given weights -> preset of its encoder.

    Returns:
        The arms, and sentences on pairs of objective and encoder that do not go together.
    """
    arms: list[Arm] = []
    notes: list[str] = []

    def add(kind: str, method: str, encoder: str, adapt: str) -> None:
        name = "/".join(part for part in (method, encoder, "" if adapt == REGRESSION else adapt) if part)
        arms.append(
            Arm.model_validate({"name": name, "kind": kind, "method": method, "encoder": encoder, "adapt": adapt})
        )

    for method in grid.methods:
        for encoder in grid.encoders:
            refusal = pair_refusal(method, encoder)
            if refusal is not None:
                notes.append(f"left out: {refusal}")
                continue
            for adapt in _fitting(grid.adapt, encoder, notes):
                add("pretrained", method, encoder, adapt)
    for name in grid.weights:
        for adapt in _fitting(grid.adapt, presets[name], notes):
            add("given", name, presets[name], adapt)
    for name in grid.embeddings:
        add("embeddings", name, "", REGRESSION)
    for encoder in grid.encoders:
        add("scratch", "scratch", encoder, "full")
    frozen = [adapt for adapt in grid.adapt if adapt in FROZEN] or ["linear"]
    for encoder in grid.encoders:
        for adapt in frozen:
            add("random", "random", encoder, adapt)
    add("histogram", HISTOGRAM, "", REGRESSION)
    return tuple(arms), tuple(dict.fromkeys(notes))


def _fitting(adapt: Sequence[str], encoder: str, notes: list[str]) -> list[str]:
    """The ways of adaptation that an encoder has; a sentence on those that it has not."""
    lacking = [name for name in adapt if name == "lora" and encoder_preset(encoder).settings.kind == "cnn"]
    notes.extend(f"left out: {encoder} is a CNN, and lora adapts the linear layers of transformers" for _ in lacking)
    return [name for name in adapt if name not in lacking]


def cells_of(grid: Grid, arms: Iterable[Arm], dataset_ids: Sequence[int]) -> tuple[Cell, ...]:
    """Every run. Draws are numbered through all seeds, so that a seed has its own and all arms have the same.

    Args:
        grid: what was asked for.
        arms: from `arms_of`.
        dataset_ids: the datasets that classifiers are trained and tested on.
    """
    cells: list[Cell] = []
    for arm in arms:
        for dataset_id in dataset_ids:
            for budget in grid.label_budgets:
                for seed in range(grid.seeds):
                    draws = (0,) if budget is None else range(seed * grid.draws, (seed + 1) * grid.draws)
                    cells.extend(Cell(dataset_id, arm, budget, seed, draw) for draw in draws)
    return tuple(cells)


def reference_of(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The arm trained from scratch that an arm is compared with: of its encoder, else of the first encoder.

    Args:
        arm: the arm; one from scratch has none.
        arms: all of the comparison.
    """
    scratch = [other for other in arms if other.kind == "scratch"]
    if arm.kind == "scratch" or not scratch:
        return None
    return next((other for other in scratch if other.encoder == arm.encoder), scratch[0])


def cell_key(cell: Cell, *, grid: Grid, labels: Sequence[str], start: Mapping[str, JsonValue], cases: str) -> str:
    """The digest of everything that decides what a run gives, first 16 hex digits.

    Args:
        cell: the run.
        grid: fold and settings of adaptation count; which other runs there are does not.
        labels: names of the labels that are learnt, in order.
        start: what the arm begins with: hash of the weights or vectors, encoder, storage and input.
        cases: digest over ids, subjects, sessions, sources, labels and parts of the cases learnt from and judged by.
    """
    content = {
        "format": 1,
        "package_version": headctssl.__version__,
        "dataset_id": cell.dataset_id,
        "kind": cell.arm.kind,
        "adapt": cell.arm.adapt,
        **({"recipe": _RECIPES[cell.arm.adapt]} if cell.arm.adapt in _RECIPES else {}),
        "label_budget": cell.label_budget,
        "seed": cell.seed,
        "draw": cell.draw,
        "fold": grid.fold,
        "labels": labels,
        "overrides": sorted(grid.finetune_overrides),
        "start": dict(start),
        "cases": cases,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def split_overrides(overrides: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings of pretraining and of fine-tuning, without the prefix.

    Args:
        overrides: ``pretrain.KEY=VALUE`` and ``finetune.KEY=VALUE``.

    Raises:
        UsageError: another prefix, no value, one key twice, or the seed, which a comparison sets.
    """
    parse_overrides(overrides)
    parts: dict[str, list[str]] = {"pretrain": [], "finetune": []}
    for text in overrides:
        stage, _, rest = text.strip().partition(".")
        if stage not in parts or rest.startswith("training.seed="):
            raise UsageError(
                "This setting cannot be set for a comparison.",
                got=f"--set {text}",
                expected="pretrain.KEY=VALUE or finetune.KEY=VALUE, and seeds by --seeds",
                do="For example: --set pretrain.training.num_steps=1000",
            )
        parts[stage].append(rest)
    return tuple(sorted(parts["pretrain"])), tuple(sorted(parts["finetune"]))
