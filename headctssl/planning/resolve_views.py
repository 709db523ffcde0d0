"""Resolve views: steps 3 and 4, how many views of which size, and how much of a scan is read."""

from __future__ import annotations

from math import ceil

from headctssl.errors import UsageError
from headctssl.planning.decisions import Asked, Ledger
from headctssl.planning.plans import ConfigurationPlan, Plans
from headctssl.planning.run_settings import ViewSettings
from headctssl.presets import encoder_preset, method_facts
from headctssl.settings import with_overrides

__all__ = ["local_shape", "read_shape", "views"]

Shape = tuple[int, int, int]

_COUNTED_BY = {"global": "global_count", "local": "local_count", "base": "base_grid"}
"""Groups of views, as `MethodFacts` names them, and the field that says how many there are."""


def views(ledger: Ledger, asked: Asked, method_name: str, configuration: ConfigurationPlan) -> ViewSettings:
    """Step 3. Views.

    Rule: numbers of views as the method needs; a local view has about half the side of a global
    one, in whole tokens; scales as published, 112-224 of 224 voxels for global and 64-112 for local
    crops. A method with one view per scan sees .5-1 of the field of view too. The
    `headct_foundation` preset flips left and right as published. Source: arXiv 2502.02779.

    Raises:
        UsageError: the user set views that the method does not have.
    """
    facts = method_facts(method_name)
    shape = local_shape(configuration)
    settings = ViewSettings(
        global_count=facts.global_views,
        local_count=facts.local_views,
        local_shape=shape,
        base_grid=facts.base_grid,
        flip_lr=configuration.preset == "headct_foundation",
    )
    settings = with_overrides(settings, asked.section("views"), "views.")
    _require_used(method_name, asked, settings)
    ledger.note(
        "views per scan",
        _numbers(settings, configuration.input.shape),
        "as many as the method compares; a local view has half the side in whole tokens",
        f"HeadCT-Foundation (arXiv 2502.02779); {method_name}: {facts.reference}",
        f"token of {_text(configuration.token_size)} voxels"
        + ("; changed by --set views.*" if asked.section("views") else ""),
    )
    return settings


def _require_used(method_name: str, asked: Asked, settings: ViewSettings) -> None:
    """Refuse a number of views of a group that the method does not have; 0 says no more than what holds anyway."""
    facts = method_facts(method_name)
    groups = {group for group, _ in facts.student_views} | set(facts.teacher_views)
    fields = {group: field for group, field in _COUNTED_BY.items() if group in groups}
    for field in _COUNTED_BY.values():
        if field not in fields.values() and asked.has(f"views.{field}") and getattr(settings, field):
            raise UsageError(
                f"The setting 'views.{field}' has no effect with {method_name}, which does not use such views.",
                got=f"views.{field}={getattr(settings, field)}",
                expected=f"numbers of {method_name}: {', '.join(f'views.{used}' for used in fields.values())}",
                do="Remove the --set, or choose another method.",
            )


def _numbers(settings: ViewSettings, shape: Shape) -> str:
    """How many views of which size."""
    local = _text(settings.local_shape)
    found = [f"{settings.global_count} global of {_text(shape)} voxels"] if settings.global_count else []
    if settings.base_grid:
        found.append(f"a grid of {settings.base_grid} x {settings.base_grid} of {local}")
    return ", ".join([*found, f"{settings.local_count} local of {local}"])


def local_shape(configuration: ConfigurationPlan) -> Shape:
    """Half of the input's side in whole tokens, at least one token and never more than the input.

    An encoder with stages gets at least two per axis: the norm of its last one has no spread over a single place.
    """
    least = 1 if encoder_preset(configuration.preset).settings.drops_tokens else 2
    sides = []
    for side, token in zip(configuration.input.shape, configuration.token_size, strict=True):
        sides.append(min(side, max(least, round(side / token / 2)) * token))
    return (sides[0], sides[1], sides[2])


def read_shape(
    ledger: Ledger,
    plans: Plans,
    configuration: ConfigurationPlan,
    max_case_shape: Shape | None,
    max_head_shape: Shape | None = None,
) -> Shape:
    """Step 4. Read shape.

    Rule: per axis, what the field of view of the encoder covers at storage spacing, but no more
    than the largest stored case. For a head larger than the field of view `loading.draws.frame_of`
    grows the field by one factor for all axes, so the factor of the largest head is read here: else
    pretraining would cut heads that evaluation shows whole. stretch_to_shape looks at whole heads,
    so it reads whole cases.
    Source: no voxel outside the field of view can reach a view (geometry).
    Assumption: without an index, heads and cases are as large as the field of view; without the
    sizes of the heads they are as large as the cases.
    """
    spec = configuration.input
    field = [mm / spacing for mm, spacing in zip(spec.field_of_view_mm, plans.storage.spacing_mm, strict=True)]
    heads = max_head_shape or max_case_shape
    growth = 1.0 if heads is None else max(1.0, *(head / side for head, side in zip(heads, field, strict=True)))
    sides = []
    for axis in range(3):
        covered = ceil(field[axis] * growth - 1e-6)
        largest = covered if max_case_shape is None else max_case_shape[axis]
        sides.append(max(1, largest if spec.rule == "stretch_to_shape" else min(covered, largest)))
    chosen = (sides[0], sides[1], sides[2])
    grown = growth > 1 and spec.rule != "stretch_to_shape"
    ledger.note(
        "read shape",
        f"{_text(chosen)} voxels",
        "the field of view at storage spacing, grown where the largest head is larger, at most the largest stored case",
        "geometry",
        f"field of view {_text(tuple(round(v) for v in spec.field_of_view_mm))} mm, "
        + (f"{growth:.2f} times that for the largest head, " if grown else "")
        + f"stored at {_text(plans.storage.spacing_mm)} mm, largest case "
        + (_text(max_case_shape) if max_case_shape is not None else "not known yet"),
    )
    return chosen


def _text(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in values)
