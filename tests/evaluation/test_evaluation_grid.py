"""Tests of evaluation/grid.py: what is in a comparison, which draws, and what changes the key of a run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import UsageError
from headctssl.evaluation.comparison import Arm, Grid
from headctssl.evaluation.grid import Cell, arms_of, cell_key, cells_of, check_grid, reference_of, split_overrides

GRID = Grid(
    dataset_ids=(1, 2),
    pretrain_ids=(1,),
    encoders=("vit_s", "resenc_m"),
    methods=("dino", "mae"),
    adapt=("linear", "full"),
    label_budgets=(8, None),
    seeds=3,
    draws=2,
)


def test_the_baselines_are_always_there():
    arms, notes = arms_of(GRID, {})
    names = {arm.name for arm in arms}
    assert {"scratch/vit_s/full", "scratch/resenc_m/full", "random/vit_s/linear", "random/resenc_m/linear"} < names
    assert "histogram" in names
    assert {f"{m}/{e}/{a}" for m in GRID.methods for e in GRID.encoders for a in GRID.adapt} < names
    assert len(names) == len(arms) == 8 + 2 + 2 + 1
    assert notes == ()
    only_full, _ = arms_of(GRID.model_copy(update={"adapt": ("full",), "methods": ()}), {})
    assert [arm.name for arm in only_full] == [
        "scratch/vit_s/full", "scratch/resenc_m/full", "random/vit_s/linear", "random/resenc_m/linear", "histogram",
    ]  # fmt: skip


def test_a_pair_that_does_not_go_together_is_left_out_and_told():
    arms, notes = arms_of(GRID.model_copy(update={"methods": ("jepa",)}), {})
    assert {arm.encoder for arm in arms if arm.method == "jepa"} == {"vit_s"}
    (note,) = notes
    assert "jepa does not work with encoders of the family" in note


def test_lora_is_for_transformers():
    arms, notes = arms_of(GRID.model_copy(update={"adapt": ("lora",), "methods": ("mae",)}), {})
    assert {arm.encoder for arm in arms if arm.adapt == "lora"} == {"vit_s"}
    assert notes == ("left out: resenc_m is a CNN, and lora adapts the linear layers of transformers",)


def test_all_arms_have_the_same_draws_and_every_seed_its_own():
    arms, _ = arms_of(GRID, {})
    cells = cells_of(GRID, arms, (1, 2))
    of_arm = {arm.name: [(c.dataset_id, c.label_budget, c.seed, c.draw) for c in cells if c.arm == arm] for arm in arms}
    first = next(iter(of_arm.values()))
    assert all(units == first for units in of_arm.values())
    few = [(seed, draw) for dataset, budget, seed, draw in first if dataset == 1 and budget == 8]
    assert few == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    assert [(seed, draw) for d, budget, seed, draw in first if d == 1 and budget is None] == [(0, 0), (1, 0), (2, 0)]
    assert len(set(cells)) == len(cells)


def test_the_reference_is_the_same_encoder_from_scratch_else_the_first():
    arms, _ = arms_of(GRID.model_copy(update={"embeddings": ("merlin",)}), {})
    by_name = {arm.name: arm for arm in arms}
    assert reference_of(by_name["dino/resenc_m/full"], arms) == by_name["scratch/resenc_m/full"]
    assert reference_of(by_name["merlin"], arms) == by_name["scratch/vit_s/full"]
    assert reference_of(by_name["scratch/vit_s/full"], arms) is None
    assert reference_of(by_name["merlin"], [by_name["merlin"]]) is None


TEXT = st.text("abcdef0123456789", min_size=1, max_size=8)
ARM = st.builds(
    lambda kind, method, adapt: Arm(name=f"{method}/{adapt}", kind=kind, method=method, encoder="vit_s", adapt=adapt),
    st.sampled_from(("pretrained", "scratch", "random", "histogram")),
    TEXT,
    st.sampled_from(("full", "linear", "attentive")),
)
PARTS = {
    "dataset_id": st.integers(1, 9),
    "arm": ARM,
    "label_budget": st.none() | st.integers(1, 64),
    "seed": st.integers(0, 9),
    "draw": st.integers(0, 9),
    "fold": st.sampled_from(("0", "1", "none")),
    "labels": st.lists(TEXT, min_size=1, max_size=3, unique=True).map(tuple),
    "overrides": st.lists(st.sampled_from(("training.num_epochs=3", "training.lr=1e-3", "task.balance=none"))).map(
        lambda given: tuple(sorted(set(given)))
    ),
    "init": TEXT,
    "storage": TEXT,
    "cases": TEXT,
}


def key_of(parts: dict) -> str:
    cell = Cell(**{name: parts[name] for name in ("dataset_id", "arm", "label_budget", "seed", "draw")})
    grid = GRID.model_copy(update={"fold": parts["fold"], "finetune_overrides": parts["overrides"]})
    start = {"init": parts["init"], "storage": parts["storage"]}
    return cell_key(cell, grid=grid, labels=parts["labels"], start=start, cases=parts["cases"])


def decides(value: object) -> object:
    """What of a part decides the run: the names of an arm and of its method do not, the weights do."""
    return (value.kind, value.adapt) if isinstance(value, Arm) else value


@pytest.mark.parametrize("name", sorted(PARTS))
@settings(max_examples=20, deadline=None)
@given(st.fixed_dictionaries(PARTS), st.data())
def test_a_change_of_anything_that_matters_changes_the_key(name, parts, data):
    """Part by part: chosen at random, one that is left out of the key was missed."""
    value = data.draw(PARTS[name].filter(lambda value: decides(value) != decides(parts[name])))
    assert key_of(parts) != key_of({**parts, name: value})
    assert key_of(parts) == key_of(dict(parts))


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(PARTS), st.integers(1, 9), st.permutations(("dino", "mae", "simclr")))
def test_what_else_is_compared_does_not_change_the_key(parts, seeds, methods):
    cell = Cell(**{name: parts[name] for name in ("dataset_id", "arm", "label_budget", "seed", "draw")})
    more = GRID.model_copy(update={"seeds": seeds, "methods": tuple(methods), "label_budgets": (1, 2, 4)})
    one, other = (cell_key(cell, grid=grid, labels=("a",), start={}, cases="") for grid in (GRID, more))
    assert one == other


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"methods": ("dyno",)}, "Unknown method 'dyno'"),
        ({"encoders": ("vit_z",)}, "Unknown encoder 'vit_z'"),
        ({"adapt": ("halfway",)}, "Unknown adaptation 'halfway'"),
        ({"methods": ("dino", "dino")}, "--methods names something twice"),
        ({"label_budgets": (8, 8)}, "--few_shots names something twice"),
        ({"label_budgets": (0,)}, "--few_shots does not accept"),
        ({"encoders": ()}, "A comparison needs --encoders"),
        ({"label_budgets": ()}, "A comparison needs --few_shots"),
        ({"weights": ("dino",)}, "is taken"),
        ({"weights": ("a",), "embeddings": ("a",)}, "names something twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(update, text):
    with pytest.raises(UsageError, match=text):
        check_grid(GRID.model_copy(update=update))
    check_grid(GRID)


def test_settings_go_to_the_stage_they_name():
    given_set = ("pretrain.training.num_steps=5", "finetune.training.num_epochs=2", "pretrain.method.mask_ratio=0.5")
    assert split_overrides(given_set) == (
        ("method.mask_ratio=0.5", "training.num_steps=5"),
        ("training.num_epochs=2",),
    )
    for wrong in ("training.num_steps=5", "pretrain.training.seed=1", "finetune.training.seed=2"):
        with pytest.raises(UsageError, match="cannot be set for a comparison"):
            split_overrides([wrong])
    with pytest.raises(UsageError, match="could not be parsed"):
        split_overrides(["pretrain.training.num_steps"])
