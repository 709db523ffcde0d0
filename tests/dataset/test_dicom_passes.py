"""DICOM passes: acquisitions that follow each other are one pass, those that go back begin another."""

from __future__ import annotations

import numpy as np
import pytest

from headctssl.dataset.dicom_passes import pass_notes, passes_of

HEIGHTS = np.arange(20) * 5.0
EVERY_OTHER = [k // 2 + 1 + 10 * (k % 2) for k in range(20)]  # 1 to 10 on even slices, 11 to 20 on odd ones


@pytest.mark.parametrize(
    ("numbers", "passes"),
    [
        ([None, *range(1, 20)], []),
        ([7] * 20, ["7"]),
        ([*range(1, 21)], ["1 to 20"]),
        ([*range(20, 0, -1)], ["1 to 20"]),
        ([k // 4 + 1 for k in range(20)], ["1 to 5"]),  # four slices for each turn
        ([2] * 8 + [1] * 12, ["1 to 2"]),  # the vertex first
        ([1 + k % 2 for k in range(20)], ["1", "2"]),
        (EVERY_OTHER, ["1 to 10", "11 to 20"]),
        ([*range(1, 11), 30, *range(11, 20)], ["1 to 19", "30"]),  # one slice again
    ],
)
def test_passes(numbers: list[int | None], passes: list[str]) -> None:
    found = passes_of(numbers, HEIGHTS)
    assert [one.name for one in found] == passes
    if found:
        assert sorted(k for one in found for k in one.slices) == list(range(20))
    assert bool(pass_notes(numbers, HEIGHTS)) == (len(passes) > 1)


def test_the_note_tells_which_acquisitions_and_how_far() -> None:
    assert pass_notes(EVERY_OTHER, HEIGHTS) == [
        "Acquisitions 1 to 10 and 11 to 20 show the same part of the body over 85 mm:"
        " the head may have moved in between."
    ]
    three = [1 + k % 3 for k in range(20)]
    assert pass_notes(three, HEIGHTS)[0].startswith("Acquisitions 1 and 2 (and 2 more pairs) show")


def test_passes_that_reach_into_each_other_by_less_than_a_slice_follow_each_other() -> None:
    heights = np.array([0.0, 5.0, 10.0, 9.0, 14.0, 19.0, 24.0])
    assert pass_notes([1, 1, 1, 2, 2, 2, 2], heights) == []
    assert pass_notes([1, 2, 3, 4, 5, 6, 7], heights) == []
    assert pass_notes([1, 1, 1, 2, 2, 2, 2], heights - 7.0 * (np.arange(7) > 2)) != []
