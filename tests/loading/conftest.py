"""Fixtures: batches made by hand, and a small store of cases on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headctssl.contract import InputSpec, Window
from headctssl.preprocessing.index import CaseIndex, case_path, row_of_file, write_index
from headctssl.types import Box, PretrainBatch
from headctssl.volume.store import CaseMeta, write_case

WINDOWS = (Window(level=40, width=80), Window(level=600, width=2800))

SHAPES = ((20, 26, 22), (24, 24, 24), (18, 30, 21), (27, 23, 25), (16, 16, 16))
"""Shapes of the stored cases; the head box leaves 2 voxels on every side."""


def spec_of(
    shape: tuple[int, int, int] = (16, 16, 16),
    spacing: float | tuple[float, float, float] = 2.0,
    rule: str = "fixed_spacing",
) -> InputSpec:
    """An input of the given shape and spacing with two windows."""
    mm = (spacing,) * 3 if isinstance(spacing, float) else spacing
    return InputSpec.model_validate({"rule": rule, "shape": shape, "spacing_mm": mm, "windows": WINDOWS})


def batch_of(
    volumes: NDArray[np.int16],
    boxes: list[Box] | None = None,
    heads: list[Box] | None = None,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    epoch: int = 0,
    samples: list[int] | None = None,
) -> PretrainBatch:
    """A batch of volumes (B, d, h, w); everything outside `boxes` is turned into air and not inside."""
    count, *shape = volumes.shape
    whole = tuple((0, n) for n in shape)
    inside = torch.zeros((count, 1, *shape), dtype=torch.bool)
    for row, box in zip(inside, boxes or [whole] * count, strict=True):
        (z0, z1), (y0, y1), (x0, x1) = box
        row[0, z0:z1, y0:y1, x0:x1] = True
    volume = torch.from_numpy(volumes)[:, None].masked_fill(~inside, -1024)
    return PretrainBatch(
        volume=volume,
        inside_box=torch.tensor(boxes or [whole] * count),
        head_box=torch.tensor(heads or [whole] * count, dtype=torch.float32),
        case_index=torch.arange(count),
        sample_index=torch.tensor(samples or list(range(count))),
        spacing_mm=torch.tensor([spacing] * count),
        seed=seed,
        epoch=epoch,
    )


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., InputSpec]:
    return spec_of


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., PretrainBatch]:
    return batch_of


@pytest.fixture
def store(tmp_path: Path) -> CaseIndex:
    """Five stored cases of different shape with random voxels."""
    rows = []
    for number, shape in enumerate(SHAPES):
        case_id = f"case_{number:03d}"
        hu = np.random.default_rng(number).integers(-1000, 2000, (1, *shape), dtype=np.int16)
        meta = CaseMeta(
            spacing_mm=(1.0, 1.0, 1.0),
            affine=tuple(tuple(row) for row in np.eye(4).tolist()),
            original_affine=tuple(tuple(row) for row in np.eye(4).tolist()),
            original_shape=shape,
            original_spacing_mm=(1.0, 1.0, 1.0),
            crop_box=((0, shape[0]), (0, shape[1]), (0, shape[2])),
            head_box=((2, shape[0] - 2), (2, shape[1] - 2), (2, shape[2] - 2)),
            source_sha256=f"{number:064d}",
            source_size=1,
            source_mtime_ns=1,
            storage_digest="0123456789abcdef",
        )
        path = case_path(tmp_path, case_id)
        path.parent.mkdir(exist_ok=True)
        write_case(path, hu, meta)
        rows.append(row_of_file(case_id, path))
    write_index(tmp_path, rows)
    return CaseIndex.open(tmp_path)
