"""The index of stored cases: what is written is read, whatever it is; what is wrong is told."""

from __future__ import annotations

import hashlib
import pickle
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import DataError
from headctssl.preprocessing.index import CaseIndex, IndexRow, read_index, sources_digest, write_index

NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=30)
SIDES = st.tuples(st.integers(0, 5000), st.integers(0, 5000))
ROWS = st.lists(
    st.builds(
        IndexRow,
        case_id=NAMES,
        shape=st.tuples(*[st.integers(1, 10**6)] * 3),
        head_box=st.tuples(SIDES, SIDES, SIDES),
        spacing_mm=st.tuples(*[st.floats(1e-3, 1e3)] * 3),
        masks=st.lists(st.sampled_from(["head", "anatomy_mask", "segmentation"]), unique=True).map(tuple),
        source_sha256=st.binary(max_size=9).map(lambda b: hashlib.sha256(b).hexdigest()),
        source_size=st.integers(0, 2**60),
        source_mtime_ns=st.integers(0, 2**62),
        storage_digest=st.text("0123456789abcdef", min_size=16, max_size=16),
    ),
    max_size=12,
    unique_by=lambda row: row.case_id,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[IndexRow], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("index")
    write_index(folder, rows)
    index, expected = CaseIndex.open(folder), sorted(rows, key=lambda row: row.case_id)
    assert list(index.rows) == expected
    assert index.rows == read_index(folder)
    assert index.case_ids == [row.case_id for row in expected]
    np.testing.assert_array_equal(index.shapes, np.array([row.shape for row in expected]).reshape(-1, 3))
    np.testing.assert_array_equal(index.head_boxes, np.array([row.head_box for row in expected]).reshape(-1, 3, 2))
    wanted = data.draw(st.sets(st.sampled_from([*index.case_ids, "of no case"])))
    part = index.subset(wanted)
    assert list(part.rows) == [row for row in expected if row.case_id in wanted]
    assert all(part.position(row.case_id) == i for i, row in enumerate(part.rows))
    text = "\n".join(sorted(row.source_sha256 for row in part.rows))
    assert part.digest() == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert sources_digest([part, index.subset(set(index.case_ids) - wanted)]) == index.digest()
    assert pickle.loads(pickle.dumps(index)).rows == index.rows


def row(case_id: str) -> IndexRow:
    box = ((1, 2), (3, 4), (5, 6))
    return IndexRow(case_id, (7, 8, 9), box, (1.0, 1.0, 1.0), ("head",), "a" * 64, 1, 2, "b" * 16)


def test_rows_are_a_sequence(tmp_path: Path) -> None:
    index = CaseIndex(tmp_path, [row(name) for name in "abcd"])
    assert index.rows[-1] == row("d")
    assert list(index.rows[1:3]) == [row("b"), row("c")]
    assert index.rows == [row(name) for name in "abcd"]
    assert index.rows != [row(name) for name in "abce"]
    assert index.rows != [row(name) for name in "abc"]
    with pytest.raises(IndexError):
        index.rows[4]


@pytest.mark.parametrize("damage", ["a cell less", "a cell more", "no number", "no digest", "cut", "empty", "not text"])
def test_a_damaged_index_is_told(tmp_path: Path, damage: str) -> None:
    text = write_index(tmp_path, [row("a"), row("b")]).read_text()
    (tmp_path / "cases.csv").write_bytes(
        {
            "a cell less": text.replace(",7,8,", ",8,").encode(),
            "a cell more": text.replace(",7,8,", ",7,7,8,").encode(),
            "no number": text.replace(",7,8,", ",7,eight,").encode(),
            "no digest": text.replace("b" * 16, "").encode(),
            "cut": text[: len(text) // 2].encode(),
            "empty": b"",
            "not text": b"\xff\xfe" + text.encode(),
        }[damage]
    )
    with pytest.raises(DataError, match=r"cases\.csv"):
        CaseIndex.open(tmp_path)
