"""Tests of the planner: what the data decide, for invented fingerprints."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_examples import fingerprint

from headctssl.errors import DataError, UsageError
from headctssl.networks import build_from_settings
from headctssl.planning.fit import PHANTOM_VOXELS
from headctssl.planning.planner import load_plans, make_plans
from headctssl.planning.plans import fitted_encoder, plans_path
from headctssl.presets import ENCODER_PRESETS, ResEncSettings, ViTSettings
from headctssl.settings import write_json


def test_thin_and_mixed_scans_are_stored_at_one_mm() -> None:
    assert make_plans(fingerprint(slices=(0.6, 1.0, 5.0))).storage.spacing_mm == (1.0, 1.0, 1.0)


def test_thick_scans_are_stored_thick() -> None:
    plans = make_plans(fingerprint(slices=(5.0,) * 20))
    assert plans.storage.spacing_mm == (5.0, 1.0, 1.0)


def test_coarse_scans_are_stored_at_their_own_spacing() -> None:
    plans = make_plans(fingerprint(slices=(2.75, 3.0, 3.25), pixels=(2.75, 3.0, 3.0), profile="laptop"))
    assert plans.storage.spacing_mm == pytest.approx((2.8, 3.0, 3.0))


def test_every_preset_is_planned_and_every_decision_has_its_reason() -> None:
    plans = make_plans(fingerprint())
    assert [c.preset for c in plans.configurations] == list(ENCODER_PRESETS)
    for decision in plans.decisions:
        assert all((decision.what, decision.value, decision.rule, decision.source, decision.because))


@settings(max_examples=60, deadline=None)
@given(
    extent=st.tuples(*[st.floats(60, 300)] * 3),
    slices=st.floats(0.5, 8.0),
    pixels=st.floats(0.3, 4.0),
    profile=st.sampled_from(["real", "laptop"]),
)
def test_inputs_hold_the_head_within_the_budget(
    extent: tuple[float, float, float], slices: float, pixels: float, profile: str
) -> None:
    plans = make_plans(
        fingerprint(extent=extent, slices=(slices,), pixels=(pixels,), profile=profile)  # type: ignore[arg-type]
    )
    head = [0.8 * e + 0.95 * 0.2 * e for e in extent]  # 95th percentile of (0.8 e, e)
    for plan in plans.configurations:
        preset, spec = ENCODER_PRESETS[plan.preset], plan.input
        reference = prod(preset.settings.input_shape)
        assert all(side % token == 0 for side, token in zip(spec.shape, plan.token_size, strict=True))
        assert prod(spec.shape) <= reference
        if spec.rule == "stretch_to_shape":
            assert spec.shape == (96, 96, 96)
            continue
        if profile == "laptop" and preset.settings.drops_tokens:
            assert prod(spec.shape) <= PHANTOM_VOXELS
        assert all(s >= stored - 1e-9 for s, stored in zip(spec.spacing_mm, plans.storage.spacing_mm, strict=True))
        assert all(f >= h - 0.01 for f, h in zip(spec.field_of_view_mm, head, strict=True))
        if preset.settings.drops_tokens:
            tokens = prod(spec.shape) // prod(plan.token_size)
            assert tokens <= reference // prod(preset.token_size)
        else:
            assert all(side // token >= 2 for side, token in zip(spec.shape, plan.token_size, strict=True))


def test_the_spacing_is_the_finest_that_fits() -> None:
    plans = make_plans(fingerprint())
    spec = plans.configuration("vit_b").input
    finer = [s - 0.05 for s in spec.spacing_mm]
    head = [0.99 * e for e in (185.0, 215.0, 165.0)]
    sides = [-(-h // (s * 12)) * 12 for h, s in zip(head, finer, strict=True)]
    assert prod(sides) > 96**3


def test_thick_slices_get_thin_tokens() -> None:
    plans = make_plans(fingerprint(slices=(5.0,)))
    vit, cnn = plans.configuration("vit_b"), plans.configuration("resenc_s")
    assert vit.input.spacing_mm[0] == 5.0
    assert vit.token_size[0] < vit.token_size[1] == 12
    assert cnn.token_size[0] < cnn.token_size[1] == 8
    # About cubic in mm.
    mm = [t * s for t, s in zip(vit.token_size, vit.input.spacing_mm, strict=True)]
    assert max(mm) / min(mm) < 1.5
    encoder = fitted_encoder(cnn)
    assert isinstance(encoder, ResEncSettings)
    assert prod(stride[0] for stride in encoder.strides) == cnn.token_size[0]
    assert encoder.strides[1] == (1, 2, 2)
    assert encoder.kernels[0] == (1, 3, 3)


@pytest.mark.parametrize("slices", [1.0, 5.0])
@pytest.mark.parametrize("preset", [name for name in ENCODER_PRESETS if name.endswith("_test")])
def test_a_fitted_encoder_takes_the_planned_input(slices: float, preset: str) -> None:
    import torch

    plan = make_plans(fingerprint(slices=(slices,))).configuration(preset)
    encoder = build_from_settings(fitted_encoder(plan)).eval()
    assert encoder.token_size == plan.token_size
    with torch.inference_mode():
        out = encoder(torch.zeros(1, 3, *plan.input.shape))
    assert out.grid == tuple(n // t for n, t in zip(plan.input.shape, plan.token_size, strict=True))


def test_headct_foundation_keeps_its_published_input() -> None:
    plan = make_plans(fingerprint(profile="laptop")).configuration("headct_foundation")
    encoder = fitted_encoder(plan)
    assert plan.input.rule == "stretch_to_shape"
    assert isinstance(encoder, ViTSettings)
    assert encoder == ENCODER_PRESETS["headct_foundation"].settings


def test_memory_shrinks_the_inputs() -> None:
    free, tight = make_plans(fingerprint()), make_plans(fingerprint(), gpu_memory=6.0)
    assert prod(tight.configuration("vit_l").input.shape) < prod(free.configuration("vit_l").input.shape)


def test_values_that_do_not_look_like_hu_are_said_to() -> None:
    plans = make_plans(fingerprint(head_hu=(0.0, 500.0, 900.0, 1030.0, 1100.0, 2800.0, 3900.0)))
    windows = next(d for d in plans.decisions if d.what == "windows")
    assert "OUTSIDE brain" in windows.because


def test_plans_are_pure() -> None:
    assert make_plans(fingerprint()) == make_plans(fingerprint())


def test_plans_round_trip_and_have_names(roots: Path) -> None:
    (roots / "raw" / "Dataset001_Example").mkdir()
    write_json(plans_path(1), make_plans(fingerprint()))
    write_json(plans_path(1, "fine"), make_plans(fingerprint(), plans_name="fine"))
    assert load_plans(1) == make_plans(fingerprint())
    assert plans_path(1).name == "plans.json"
    assert plans_path(1, "fine").name == "plans_fine.json"
    assert load_plans(1, "fine").plans_name == "fine"


def test_missing_and_broken_plans(roots: Path) -> None:
    (roots / "raw" / "Dataset001_Example").mkdir()
    with pytest.raises(DataError, match="headct_plan_and_preprocess -d 1 -p fine"):
        load_plans(1, "fine")
    with pytest.raises(UsageError, match="file name"):
        load_plans(1, "../fine")
    plans_path(1).parent.mkdir()
    content = json.loads(make_plans(fingerprint()).model_dump_json())
    del content["storage"]
    plans_path(1).write_text(json.dumps(content))
    with pytest.raises(DataError, match="storage"):
        load_plans(1)
