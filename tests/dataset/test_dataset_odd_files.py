"""Odd files: headers and tables that are a little wrong are told or read, and never stop the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK
from crude_heads import crude_head

from headctssl.dataset.image_io import data_files, read, read_header, source_digest
from headctssl.errors import ImageReadError
from headctssl.types import Volume


@pytest.fixture(scope="module")
def head() -> Volume:
    return crude_head(1, shape=(24, 40, 40), spacing=(8.0, 6.0, 6.0))


def test_data_files_of_detached_headers_are_listed(tmp_path: Path, head: Volume) -> None:
    image = SimpleITK.GetImageFromArray(head.hu)
    for name in ("a.mhd", "a.nhdr", "b.mha", "b.nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    assert len(data_files(tmp_path / "a.nhdr")) == 1
    assert [p.name for p in data_files(tmp_path / "a.mhd")] == ["a.raw"]
    assert data_files(tmp_path / "b.mha") == data_files(tmp_path / "b.nrrd") == []
    (tmp_path / "c.mha").write_bytes((tmp_path / "a.mhd").read_bytes())
    assert [p.name for p in data_files(tmp_path / "c.mha")] == ["a.raw"]


@pytest.mark.parametrize("value", ["LIST", "LIST 2", "slice%03d.raw 1 24 1"])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_in_many_files_are_refused(tmp_path: Path, head: Volume, value: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(head.hu), str(path))
    data = data_files(path)[0].name
    path.write_text(path.read_text().replace(data, value))
    for call in (read, read_header, source_digest):
        with pytest.raises(ImageReadError) as error:
            call(path)
        assert "several files" in str(error.value.got)
