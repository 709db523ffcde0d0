"""The layout of stored files is chosen by measured speed, and is no matter of the storage rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from planning_examples import fingerprint

from headctssl.planning.planner import make_plans
from headctssl.planning.plans import Plans
from headctssl.planning.store_layout import HEADS_PER_SECOND, MEASURED, choose_layout
from headctssl.volume.layout import StoreLayout

SIDES = st.tuples(*[st.floats(100, 900)] * 3)
SPACINGS = st.tuples(*[st.floats(1, 5)] * 3)


@given(SIDES, SPACINGS)
def test_the_smallest_layout_that_is_fast_enough(extent: tuple[float, ...], spacing: tuple[float, ...]) -> None:
    z, y, x = extent
    choice = choose_layout((z, y, x), spacing)  # type: ignore[arg-type]  # three of them
    sizes = [measured.stored_mb for measured in MEASURED]
    assert sizes == sorted(sizes)
    smaller = MEASURED[: MEASURED.index(choice.measured)]
    assert all(measured.read_mb_s / choice.head_mb < HEADS_PER_SECOND for measured in smaller)
    if not choice.enough:
        assert choice.measured.read_mb_s == max(measured.read_mb_s for measured in MEASURED)


def test_usual_heads_are_stored_small_and_huge_ones_fast() -> None:
    assert choose_layout((150, 200, 160), (1.0, 1.0, 1.0)).measured.layout == StoreLayout()
    assert choose_layout((320, 280, 260), (1.0, 1.0, 1.0)).measured.layout.codec == "lz4"
    assert choose_layout((320, 280, 260), (5.0, 1.0, 1.0)).measured.layout.codec == "zstd"
    assert not choose_layout((900, 900, 900), (1.0, 1.0, 1.0)).enough


def test_plans_say_what_was_chosen_and_why() -> None:
    plans = make_plans(fingerprint())
    assert plans.layout == StoreLayout()
    (decision,) = [d for d in plans.decisions if d.what == "store layout"]
    assert "zstd level 1" in decision.value
    assert "documentation/preprocessing.md" in decision.source
    assert "a second" in decision.because
    huge = make_plans(fingerprint(extent=(320.0, 280.0, 260.0)))
    assert huge.layout.codec == "lz4"
    assert huge.storage.digest() == plans.storage.digest()


def test_plans_of_earlier_versions_have_the_standard_layout() -> None:
    content = make_plans(fingerprint()).model_dump(exclude={"layout"})
    assert Plans.model_validate(content).layout == StoreLayout()
