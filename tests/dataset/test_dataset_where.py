"""Where: what each form picks, what unknown cells do, and that nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headctssl.dataset.where import parse_where
from headctssl.errors import UsageError

ROW = {
    "modality": "CT",
    "slice_thickness_mm": "2.0",
    "quality": "",
    "kvp": "120",
    "study_description": "CT HEAD w/o",
    "sex": "F",
    "kernel": "bone",
    "any bleed": "1",
    "tilt": "-18.5",
}


@pytest.mark.parametrize(
    ("text", "picked"),
    [
        ("modality == 'CT' and slice_thickness_mm <= 2.5", True),
        ("modality == 'CT' and slice_thickness_mm <= 2.5 and quality >= 3", False),
        ("kvp == 120.0", True),
        ("kvp == '120.0'", False),
        ("kvp != 120", False),
        ("120 == kvp", True),
        ("100 < kvp <= 120", True),
        ("130 > kvp", True),
        ("100 > kvp", False),
        ("tilt < -10", True),
        ("sex == 'f'", False),
        ("sex in ('M', 'F')", True),
        ("kvp in (100, 120)", True),
        ("kvp in (120)", True),
        ("sex not in ('M', 'F')", False),
        ("sex not in ['M']", True),
        ("study_description contains 'head'", True),
        ("not study_description contains 'neck'", True),
        ("study_description contains 'contains @ ='", False),
        ("sex == 'M' or kvp == 120 and sex == 'F'", True),
        ("(sex == 'M' or kvp == 120) and sex == 'M'", False),
        ("column('any bleed') == 1", True),
        ("kernel > 1", False),
        ("not kernel > 1", False),
        ("  kvp == 120\n and sex == 'F' ", True),
    ],
)
def test_forms(text: str, picked: bool) -> None:
    assert parse_where(text).matches(ROW) is picked


@pytest.mark.parametrize("cell", [{}, {"x": ""}, {"x": "  "}])
def test_a_comparison_with_an_unknown_cell_is_never_true(cell: dict[str, str]) -> None:
    for text in (
        "x == 1",
        "x != 1",
        "x == 'a'",
        "x != 'a'",
        "x < 1",
        "x in (1, 2)",
        "x not in (1, 2)",
        "x contains 'a'",
    ):
        assert not parse_where(text).matches(cell), text
        assert not parse_where(f"not ({text})").matches(cell), text
        assert parse_where(f"{text} or y == 1").matches({**cell, "y": "1"}), text
        assert parse_where(f"not ({text} and y == 2)").matches({**cell, "y": "1"}), text
    assert parse_where("x is unknown").matches(cell)
    assert parse_where("x is not known").matches(cell)
    assert not parse_where("x is known").matches(cell)
    assert parse_where("x is known").matches({"x": "0"})


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 1),
        ("kvp", 1),
        ("kvp = 120", 5),
        ("kvp ==", 7),
        ("kvp == 1 && sex == 'F'", 11),
        ("kvp == 1 and __import__('os').system('x')", 14),
        ("a == b", 6),
        ("kvp < '3'", 7),
        ("é == 'ü' and kvp < 'x'", 20),
        ("  kvp < 'x'", 9),
        ("x is None", 6),
        ("x == True", 6),
        ("x == 1e999", 6),
        ("x == -'a'", 6),
        ("a.b == 1", 1),
        ("a[0] == 1", 1),
        ("'x' in y", 1),
        ("x @ 'a'", 3),
        ("x contains 3", 12),
        ("x in ()", 6),
        ("f'{x}' == 1", 1),
        ("[k for k in x] == 1", 1),
        ("column(x) == 1", 1),
        ("1 == 1", 6),
        ("a + 1 == 2", 1),
    ],
)
def test_what_is_no_expression_is_refused_where_it_goes_wrong(text: str, position: int) -> None:
    with pytest.raises(UsageError, match=f"at character {position}\\."):
        parse_where(text)


@pytest.mark.parametrize("text", ["not " * 900 + "a == 1", "(" * 900 + "a == 1" + ")" * 900, "a == 1 or " * 900 + "a"])
def test_what_is_too_deep_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        parse_where(text)


def test_columns_are_checked_by_name() -> None:
    where = parse_where("kvp == 120 and slice_thickness <= 2.5 or kvp == 80")
    assert where.columns == ("kvp", "slice_thickness")
    where.check(["kvp", "slice_thickness"])
    with pytest.raises(UsageError, match="Unknown column in --where 'slice_thickness'") as error:
        where.check(["kvp", "slice_thickness_mm"])
    assert "'slice_thickness_mm'" in str(error.value.do)
    assert error.value.expected == "one of kvp, slice_thickness_mm"


@given(st.text(max_size=40) | st.text(alphabet="ab=<>!()'1. @,\n\\notanris", max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        where = parse_where(text)
    except UsageError:
        return
    assert where.matches({"a": "1", "b": "x"}) in (True, False)
