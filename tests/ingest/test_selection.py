"""Tests of the selection of series: filters, the order of what is better, and that a study is never emptied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from headctssl.ingest.kernels import kernel_class, kernel_names
from headctssl.ingest.scan import Scan, SeriesFacts
from headctssl.ingest.selection import Selection, select


def scan(name: str, session: str = "study1", *, facts: bool = True, **values: object) -> Scan:
    given = {"num_positions": 30, "median_gap_mm": 5.0, "orientation": "axial", "convolution_kernel": "Hr40s", **values}
    return Scan(
        source=name,
        path=Path(name),
        identity=name,
        subject="patient",
        session=session,
        facts=SeriesFacts(**given) if facts else None,  # type: ignore[arg-type]  # fields by name
    )


SOFT = scan("soft 5 mm")
BONE = scan("bone 5 mm", convolution_kernel="['Hr64h', '2']")
THIN = scan("soft 1 mm", num_positions=150, median_gap_mm=1.0)
THIN_BONE = scan("bone 0.6 mm", num_positions=250, median_gap_mm=0.6, convolution_kernel="Hr64h")
CORONAL = scan("coronal", orientation="coronal", num_positions=60, median_gap_mm=3.0)
DERIVED = scan("derived", image_type=("DERIVED", "SECONDARY", "REFORMATTED"))
CONTRAST = scan("contrast 1 mm", contrast=True, num_positions=150, median_gap_mm=1.0)
PART = scan("ear 0.5 mm", num_positions=60, median_gap_mm=0.5)
UNKNOWN = scan("unknown kernel", convolution_kernel="")
STUDY = (BONE, THIN_BONE, CORONAL, DERIVED, CONTRAST, PART, SOFT, UNKNOWN, THIN)


def names(scans: Sequence[Scan]) -> list[str]:
    return [one.source for one in scans]


def kept(scans: Sequence[Scan] = STUDY, **rule: object) -> list[str]:
    return names(select(scans, Selection(**rule))[0])  # type: ignore[arg-type]  # checked by the model


def test_the_default_keeps_everything() -> None:
    found, left = select(STUDY, Selection())
    assert found == list(STUDY)
    assert left == []


def test_filters_leave_out_what_is_known_to_be_otherwise() -> None:
    assert kept(kernel="soft") == names([s for s in STUDY if s not in (BONE, THIN_BONE)])
    assert kept(kernel="bone") == names([BONE, THIN_BONE, UNKNOWN])
    assert kept(orientation="axial") == names([s for s in STUDY if s is not CORONAL])
    assert kept((scan("no facts", facts=False),), kernel="soft", orientation="axial", thickness="thinnest") == [
        "no facts"
    ]


def test_thickness_is_that_of_the_study_and_partial_series_do_not_decide_it() -> None:
    assert kept((SOFT, THIN, PART), thickness="thinnest") == names([THIN])
    assert kept((SOFT, THIN, PART), thickness="thickest") == names([SOFT])
    other = scan("other study", "study2", median_gap_mm=3.0, num_positions=50)
    assert kept((SOFT, THIN, other), thickness="thinnest") == names([THIN, other])


def test_the_best_of_each_study_by_the_stated_order() -> None:
    order = [THIN, SOFT, PART, CONTRAST, DERIVED, CORONAL, UNKNOWN, THIN_BONE, BONE]
    for count in range(1, len(order) + 1):
        assert set(kept(per_study=count)) == set(names(order[:count]))
    assert kept(per_study=1, thickness="thickest") == names([SOFT])
    assert kept(per_study=1, kernel="bone") == names([THIN_BONE])
    assert kept(tuple(reversed(STUDY)), per_study=1) == names([THIN])


@pytest.mark.parametrize(
    ("better", "worse", "why"),
    [
        (SOFT, BONE, "kernel"),
        (SOFT, UNKNOWN, "kernel"),
        (SOFT, CORONAL, "axial"),
        (SOFT, DERIVED, "original"),
        (SOFT, CONTRAST, "contrast"),
        (SOFT, PART, "covers more"),
        (THIN, SOFT, "thickness"),
        (scan("31", num_positions=31), SOFT, "more slices"),
        (scan("a"), scan("b"), "alike"),
    ],
)
def test_the_reason_says_what_decided(better: Scan, worse: Scan, why: str) -> None:
    for pair in ((better, worse), (worse, better)):
        found, ((left, reason),) = select(pair, Selection(per_study=1))
        assert found == [better]
        assert left is worse
        assert why in reason


def test_a_study_keeps_one_and_scans_without_a_study_are_all_kept() -> None:
    second = scan("second", "study2", convolution_kernel="Hr64h")
    alone = [scan(f"alone {k}", "") for k in range(3)]
    assert kept((SOFT, THIN, second, *alone), per_study=1) == names([THIN, second, *alone])


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(ValidationError):
        Selection(per_study=0)


@pytest.mark.parametrize(
    ("kernel", "description", "expected"),
    [
        ("Hr40s", "", "soft"), ("['Hr40s', '3']", "", "soft"), ("Hr40s\\3", "", "soft"), ("H60s", "", "bone"),
        ("J70h\\2", "", "bone"), ("Qr40d\\2", "", "soft"), ("STANDARD", "", "soft"), ("BONEPLUS", "", "bone"),
        ("SOFT", "", "soft"), ("LUNG", "", "bone"), ("FC21", "", "soft"), ("FC30", "", "bone"), ("FC81", "", "bone"),
        ("FC64", "", "soft"), ("FC08-H", "", "soft"), ("UB", "", "soft"), ("UC", "", "soft"), ("YB", "", "bone"),
        ("H_SOFT_C", "", "soft"), ("H_SHARP_C", "", "bone"), ("STD+", "", "soft"), ("X7", "", "unknown"),
        ("", "", "unknown"), ("", "HEAD BONE 0.6", "bone"), ("3", "BRAIN 5 mm", "soft"), ("", "HEART", "unknown"),
        ("STANDARD", "BONE", "soft"),
    ],
)  # fmt: skip
def test_kernels_by_the_names_of_the_vendors(kernel: str, description: str, expected: str) -> None:
    assert kernel_class(kernel, description) == expected


def test_the_values_of_a_kernel() -> None:
    assert kernel_names("['Hr40s', '3']") == ("Hr40s", "3")
    assert kernel_names("Hr40s\\3") == ("Hr40s", "3")
    assert kernel_names("[Hr40s, 3]") == ("Hr40s", "3")
    assert kernel_names(" ") == ()
