"""The case store: partial reads equal slices, and no damage goes unnoticed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import CorruptCaseError, DataError
from headctssl.volume.layout import StoreLayout
from headctssl.volume.mask_store import StoredMask, write_mask
from headctssl.volume.store import CaseMeta, StoredArray, StoredCase, write_case

EYE = tuple(tuple(float(v) for v in row) for row in np.eye(4))
META = CaseMeta(
    spacing_mm=(1.0, 1.0, 1.0),
    affine=EYE,
    original_affine=EYE,
    original_shape=(34, 512, 512),
    original_spacing_mm=(5.0, 0.45, 0.45),
    crop_box=((0, 34), (10, 500), (20, 490)),
    head_box=((10, 60), (10, 100), (8, 70)),
    source_sha256="0" * 64,
    source_size=123,
    source_mtime_ns=1_700_000_000_123_456_789,
    storage_digest="abc",
    masks=("head",),
)


def head_like(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Noise in air, with chunks of one value as stored heads have."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1024, np.int16)
    inner = tuple(slice(n // 8, n - n // 8) for n in shape[1:])
    hu[(slice(None), *inner)] = rng.normal(30, 12, hu[(slice(None), *inner)].shape)
    hu[:, -2:] = rng.integers(-32768, 32767, hu[:, -2:].shape)
    return hu


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("store") / "ab" / "case.b2nd"
    hu = head_like((1, 70, 130, 80))
    write_case(path, hu, META)
    return path, hu


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_box_reads_back_exactly(case: tuple[Path, np.ndarray], data: st.DataObject) -> None:
    path, hu = case
    box = []
    for size in hu.shape[1:]:
        start = data.draw(st.integers(0, size - 1))
        box.append((start, data.draw(st.integers(start, size))))
    stored = StoredCase(path)
    got = stored.read((box[0], box[1], box[2]))
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, hu[(slice(None), *(slice(*b) for b in box))])


def test_what_was_written_is_what_is_read(case: tuple[Path, np.ndarray]) -> None:
    path, hu = case
    stored = StoredCase(path)
    assert stored.meta == META
    assert stored.shape == hu.shape
    assert stored.array.dtype == np.int16
    np.testing.assert_array_equal(stored.read_all(), hu)
    stored.verify()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert str(path.parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 200, 5), (2, 64, 64, 64), (1, 65, 2, 129)])
@pytest.mark.parametrize("constant", [False, True])
def test_odd_shapes_and_constant_cases(tmp_path: Path, shape: tuple[int, ...], constant: bool) -> None:
    hu = np.full(shape, -1024, np.int16) if constant else head_like(shape)
    write_case(tmp_path / "c.b2nd", hu, META, num_threads=2)
    np.testing.assert_array_equal(StoredCase(tmp_path / "c.b2nd").read_all(), hu)


def test_strided_arrays_are_stored_right(tmp_path: Path) -> None:
    hu = head_like((1, 30, 40, 50)).transpose(0, 3, 1, 2)[:, ::-1]
    write_case(tmp_path / "c.b2nd", hu, META)
    np.testing.assert_array_equal(StoredCase(tmp_path / "c.b2nd").read_all(), hu)


def test_masks(tmp_path: Path) -> None:
    mask = head_like((1, 70, 80, 90))[0] > 0
    write_mask(tmp_path / "c.head.b2nd", mask)
    stored = StoredMask(tmp_path / "c.head.b2nd")
    got = stored.read(((5, 66), (0, 80), (60, 70)))
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, mask[5:66, :, 60:70])
    with pytest.raises(CorruptCaseError, match="stored mask"):
        StoredCase(tmp_path / "c.head.b2nd")


LAYOUTS = st.builds(
    StoreLayout,
    codec=st.sampled_from(["zstd", "lz4"]),
    level=st.integers(1, 5),
    chunk=st.integers(8, 70),
    block=st.integers(8, 70),
)


@settings(max_examples=30, deadline=None)
@given(st.data(), LAYOUTS, st.tuples(*[st.integers(1, 90)] * 3))
def test_any_layout_of_any_shape_reads_back_any_box(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layout: StoreLayout, shape: tuple[int, ...]
) -> None:
    hu = head_like((1, *shape), seed=sum(shape))
    path = tmp_path_factory.mktemp("layout") / "c.b2nd"
    write_case(path, hu, META, layout=layout)
    stored = StoredCase(path)
    assert stored.array.chunks == (1, *(min(layout.chunk, n) for n in shape))
    box = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        box.append((start, data.draw(st.integers(start + 1, size))))
    got = stored.read((box[0], box[1], box[2]))
    np.testing.assert_array_equal(got, hu[(slice(None), *(slice(*side) for side in box))])
    bit = data.draw(st.integers(0, path.stat().st_size * 8 - 1))
    damaged = bytearray(path.read_bytes())
    damaged[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(damaged)
    assert outcome(path, hu) == "noticed"


def outcome(path: Path, hu: np.ndarray) -> str:
    try:
        stored = StoredCase(path)
        right = np.array_equal(stored.read_all(), hu) and stored.meta == META
    except CorruptCaseError as error:
        return "noticed" if str(path) in error.what else "noticed without a name"
    return "harmless" if right else "wrong"


def test_300_flipped_bits_are_all_noticed(case: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, hu = case
    whole, copy, rng = path.read_bytes(), tmp_path / "copy.b2nd", np.random.default_rng(11)
    edges = np.r_[0 : 400 * 8, (len(whole) - 900) * 8 : len(whole) * 8]  # header; index, vlmeta, trailer, footer
    bits = np.r_[rng.integers(0, len(whole) * 8, 150), rng.choice(edges, 150, replace=False)]
    outcomes = []
    for bit in bits.tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        copy.write_bytes(damaged)
        outcomes.append(outcome(copy, hu))
    assert outcomes == ["noticed"] * 300


@pytest.mark.parametrize("keep", [0, 1, 39, 41, 1000, -1, -40, -5000])
def test_a_truncated_file_is_noticed(case: tuple[Path, np.ndarray], tmp_path: Path, keep: int) -> None:
    path, hu = case
    copy = tmp_path / "copy.b2nd"
    copy.write_bytes(path.read_bytes()[:keep])
    assert outcome(copy, hu) == "noticed"


def test_other_damage_is_noticed(case: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, hu = case
    copy, whole, rng = tmp_path / "copy.b2nd", path.read_bytes(), np.random.default_rng(2)
    zeroed = bytearray(whole)
    zeroed[4096:8192] = bytes(4096)
    for content in (whole + b"\0", whole + whole, bytes(zeroed), rng.bytes(5000), b"<html>not a case</html>" * 9):
        copy.write_bytes(content)
        assert outcome(copy, hu) == "noticed"


def test_a_read_checks_the_chunks_it_touches_and_no_others(case: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, hu = case
    stored = StoredCase(path)
    counts = [-(-n // c) for n, c in zip(stored.shape, stored.array.chunks, strict=True)]
    assert counts == [1, 2, 3, 2]
    for number, place in enumerate(itertools.product(*(range(c) for c in counts))):
        chunk = stored.array.schunk.get_chunk(number)
        at = path.read_bytes().find(chunk)
        assert at > 0
        damaged = bytearray(path.read_bytes())
        damaged[at + len(chunk) // 2] ^= 4
        copy = tmp_path / f"{number}.b2nd"
        copy.write_bytes(damaged)
        opened = StoredCase(copy)
        for other in itertools.product(*(range(c) for c in counts)):
            corner = [p * 64 for p in other[1:]]
            z, y, x = ((a, min(a + 64, n)) for a, n in zip(corner, hu.shape[1:], strict=True))
            if other == place:
                with pytest.raises(CorruptCaseError, match="damaged"):
                    opened.read((z, y, x))
            else:
                np.testing.assert_array_equal(opened.read((z, y, x)), hu[:, slice(*z), slice(*y), slice(*x)])


def test_a_missing_case_and_a_failed_write(case: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as error:
        StoredCase(tmp_path / "none.b2nd")
    assert not isinstance(error.value, CorruptCaseError)
    path = tmp_path / "c.b2nd"
    write_case(path, head_like((1, 9, 9, 9)), META)
    old = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredArray, "read_all", lambda self: np.zeros((1, 9, 9, 9), np.int16))
        with pytest.raises(CorruptCaseError, match="does not read back"):
            write_case(path, head_like((1, 9, 9, 9), seed=1), META)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["c.b2nd"]
