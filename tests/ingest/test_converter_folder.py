"""Folder: masks that the CSV of labels names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from converter_sources import by_source, convert_as_documented, image, mask, stub, told

from headctssl.dataset.image_io import read_label_map
from headctssl.errors import DataError
from headctssl.ingest.converters.folder import find_scans


def test_folder_masks_are_no_scans_and_go_with_theirs(tmp_path: Path) -> None:
    for k, name in enumerate(("a", "b")):
        path = stub(tmp_path / f"in/{name}.nii.gz", k)
    for name in ("a_seg", "masks/anatomy"):
        mask(tmp_path / f"in/{name}.nii.gz", path, {1: slice(0, 1)})
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "image,bleed,segmentation,anatomy_mask,site\na,1,a_seg.nii.gz,masks/anatomy.nii.gz,x\nb,0,,masks/anatomy.nii.gz,\n"
    )
    found = find_scans(tmp_path / "in", labels)
    scans = by_source(found)
    assert sorted(scans) == ["a.nii.gz", "b.nii.gz"]
    root = tmp_path / "in"
    assert dict(scans["a.nii.gz"].masks) == {
        "segmentation": root / "a_seg.nii.gz",
        "anatomy_mask": root / "masks/anatomy.nii.gz",
    }
    assert dict(scans["b.nii.gz"].masks) == {"anatomy_mask": root / "masks/anatomy.nii.gz"}
    assert "segmentation" not in dict(scans["a.nii.gz"].columns)
    assert "no images" not in told(found)
    assert "copied as they are: site." in told(found)
    assert [spec.name for spec in found.labels] == ["bleed"]
    assert len(find_scans(root).scans) == 4  # without the CSV nothing says that they are masks


@pytest.mark.parametrize("cell", ["gone.nii.gz", "notes.txt"])
def test_folder_a_mask_that_cannot_be_read_is_told_before_the_work(tmp_path: Path, cell: str) -> None:
    stub(tmp_path / "in/a.nii.gz")
    (tmp_path / "in/notes.txt").write_text("x")
    labels = tmp_path / "labels.csv"
    labels.write_text(f"image,segmentation\na,{cell}\n")
    with pytest.raises(DataError, match=rf"segmentation '{cell}' cannot be read"):
        find_scans(tmp_path / "in", labels)


def test_folder_a_mask_cannot_be_an_image_too(tmp_path: Path) -> None:
    for k, name in enumerate("ab"):
        stub(tmp_path / f"in/{name}.nii.gz", k)
    labels = tmp_path / "labels.csv"
    labels.write_text("image,segmentation\na,b.nii.gz\nb.nii.gz,\n")
    with pytest.raises(DataError, match=r"'b\.nii\.gz' is an image and a mask"):
        find_scans(tmp_path / "in", labels)


def test_folder_masks_are_written_beside_their_image(tmp_path: Path, roots: Path) -> None:
    path = image(tmp_path / "in/a.nii.gz", 1)
    mask(tmp_path / "in/m.nii.gz", path, {2: slice(4, 7)})
    (tmp_path / "labels.csv").write_text("image,segmentation\na,m.nii.gz\n")
    _, data = convert_as_documented("folder", tmp_path / "in", labels=tmp_path / "labels.csv")
    values = read_label_map(data.folder / data.cases.iloc[0]["segmentation"]).values
    assert np.unique(values).tolist() == [0, 2]
    assert data.cases.shape[0] == 1


def test_many_files_are_identified_in_processes_with_the_same_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(70):
        stub(tmp_path / f"{number:02d}.nii", number)
    (tmp_path / "33.nii").write_bytes(b"")
    alone, together = find_scans(tmp_path), find_scans(tmp_path, num_workers=2, quiet=False)
    assert alone == together
    assert len(alone.scans) == 69
    assert [verdict.source for verdict in alone.rejected] == ["33.nii"]
    assert capsys.readouterr().out.splitlines()[-1] == "files identified: 70/70"
