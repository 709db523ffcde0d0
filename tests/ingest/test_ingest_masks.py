"""Masks of a source: copied as label maps on the grid of their image, refused by name when they lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from converter_sources import image, mask
from crude_heads import crude_head

import headctssl.ingest.convert as module
from headctssl.dataset.image_io import read, read_label_map
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.dataset.verify import verify_dataset
from headctssl.errors import DataError
from headctssl.ingest.convert import ConvertResult, convert
from headctssl.ingest.report import read_report
from headctssl.ingest.scan import Found, Scan

CLASSES = (("bleed", 1), ("edema", 2))


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """What the next conversion finds."""
    waiting: list[Found] = []
    monkeypatch.setattr(module, "load_converter", lambda _: lambda source: waiting[-1])
    return waiting


def run(folder: Path, **options: object) -> ConvertResult:
    return convert(folder, 900, source_format="folder", num_workers=1, quiet=True, **options)


def scan(path: Path, **options: object) -> Scan:
    return Scan(source=path.name, path=path, identity=path.name, **options)


def test_masks_are_copied_with_the_meaning_of_their_values(tmp_path: Path, roots: Path, found: list[Found]) -> None:
    picture = image(tmp_path / "a.nii.gz")
    lesions = mask(tmp_path / "lesions.nii.gz", picture, {1: slice(5, 7), 2: slice(9, 10)})
    face = mask(tmp_path / "face.nii.gz", picture, {255: slice(0, 3)})
    brain = mask(tmp_path / "brain.nii.gz", picture, {0: slice(4, 20)}, background=7)
    one = scan(
        picture,
        masks=(("segmentation", lesions), ("anonymization_mask", face), ("anatomy_mask", brain)),
        mask_rules=(("anonymization_mask", "nonzero"), ("anatomy_mask", "zero")),
    )
    found.append(Found(scans=(one,), segmentation_classes=CLASSES, licence="CC0", reference="a paper"))
    run(tmp_path)
    data = load_raw_dataset(900)
    assert (data.info.licence, data.info.reference) == ("CC0", "a paper")
    assert [(c.name, c.value) for c in data.info.segmentation_classes] == list(CLASSES)
    row = data.cases.iloc[0]
    values = {name: read_label_map(data.folder / row[name]).values for name, _ in one.masks}
    stored = np.asarray(nib.load(lesions).dataobj).transpose(2, 1, 0)
    assert values["segmentation"].shape == read(data.image_path(row["case_id"])).hu.shape
    np.testing.assert_array_equal(np.sort(values["segmentation"].ravel()), np.sort(stored.ravel()))
    np.testing.assert_array_equal(values["segmentation"][:, 0, 0], [0] * 5 + [1, 1, 0, 0, 2] + [0] * 14)
    np.testing.assert_array_equal(values["anonymization_mask"][:, 0, 0], [1] * 3 + [0] * 21)
    np.testing.assert_array_equal(values["anatomy_mask"][:, 0, 0], [0] * 4 + [1] * 16 + [0] * 4)
    assert verify_dataset(900, num_workers=1, quiet=True).faults == ()


@pytest.mark.parametrize("how", ["shifted", "coarser", "fewer", "missing", "unnamed", "negative"])
def test_a_mask_that_does_not_fit_rejects_its_scan_by_name(
    tmp_path: Path, roots: Path, found: list[Found], how: str
) -> None:
    picture, other = image(tmp_path / "a.nii.gz"), image(tmp_path / "b.nii.gz", 2)
    path = mask(tmp_path / "Doe.nii.gz", picture, {3 if how == "unnamed" else 1: slice(5, 7)})
    stored = nib.load(path)
    array, affine = np.asarray(stored.dataobj).astype(np.int16), stored.affine.copy()
    if how == "shifted":
        affine[0, 3] += 0.5
    elif how == "coarser":
        affine[:3, :3] *= 1.1
    elif how == "fewer":
        array = array[:, :, 1:]
    elif how == "negative":
        array -= 1
    nib.save(nib.Nifti1Image(array, affine), path)
    if how == "missing":
        path.unlink()
    found.append(Found((scan(picture, masks=(("segmentation", path),)), scan(other)), segmentation_classes=CLASSES))
    assert len(run(tmp_path, dry_run=True).rejected) == 1
    result = run(tmp_path)
    assert [v.source for v in result.accepted] == ["b.nii.gz"]
    (told,) = result.rejected
    expected = {"missing": "does not exist", "unnamed": "does not name", "negative": "values that a mask cannot"}
    assert expected.get(how, "does not lie on the voxels of its image") in told.reasons[0]
    assert len(list((result.folder / "images").iterdir())) == 1
    assert "Doe" not in (result.folder / "ingest_report.json").read_text()
    record = next(r for r in read_report(result.folder).scans if r.status == "reject")
    assert record.read_with != ""  # it is not read again until its files change


def test_a_mask_of_a_sheared_image_is_straightened_with_it(tmp_path: Path, roots: Path, found: list[Found]) -> None:
    volume = crude_head(1, shape=(40, 40, 40), spacing=(5.0, 6.0, 6.0))
    affine = np.diag([-6.0, -6.0, 5.0, 1.0])
    affine[1, 2] = 1.0  # each slice 1 mm further back
    nib.save(nib.Nifti1Image(volume.hu.transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
    path = mask(tmp_path / "m.nii.gz", tmp_path / "a.nii.gz", {1: slice(10, 20), 2: slice(20, 30)})
    found.append(Found((scan(tmp_path / "a.nii.gz", masks=(("segmentation", path),)),), segmentation_classes=CLASSES))
    result = run(tmp_path)
    assert len(result.accepted) == 1, result.rejected
    data = load_raw_dataset(900)
    values = read_label_map(data.folder / data.cases["segmentation"].iloc[0]).values
    assert values.shape == read(data.image_path(data.case_ids[0])).hu.shape
    assert set(np.unique(values)) == {0, 1, 2}  # no class between two


def test_an_inverted_mask_of_a_sheared_image_marks_nothing_outside(
    tmp_path: Path, roots: Path, found: list[Found]
) -> None:
    """Voxels that straightening adds are 0 as stored, and what lies outside is never inside."""
    volume = crude_head(1, shape=(40, 40, 40), spacing=(5.0, 6.0, 6.0))
    affine = np.diag([-6.0, -6.0, 5.0, 1.0])
    affine[1, 2] = 1.0
    nib.save(nib.Nifti1Image(volume.hu.transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
    brain = np.zeros((40, 40, 40), np.uint8)
    brain[5:35, 3:37, 10:30] = 1
    columns = {"plain": ("segmentation", 255 * brain), "inverted": ("anatomy_mask", 7 * (1 - brain))}
    for name, (_, stored) in columns.items():
        nib.save(nib.Nifti1Image(stored.astype(np.uint8), affine), tmp_path / f"{name}.nii.gz")
    one = scan(
        tmp_path / "a.nii.gz",
        masks=tuple((column, tmp_path / f"{name}.nii.gz") for name, (column, _) in columns.items()),
        mask_rules=(("segmentation", "nonzero"), ("anatomy_mask", "zero")),
    )
    found.append(Found((one,), segmentation_classes=(("brain", 1),)))
    assert len(run(tmp_path).accepted) == 1
    data = load_raw_dataset(900)
    plain, inverted = (
        read_label_map(data.folder / data.cases[column].iloc[0]).values for column, _ in columns.values()
    )
    assert plain.size > brain.size  # straightening added some
    np.testing.assert_array_equal(plain, inverted)
    assert plain.sum() == pytest.approx(brain.sum(), rel=0.05)
    assert not inverted[:, [0, -1]].any()


def test_classes_of_another_meaning_are_refused_before_the_work(
    tmp_path: Path, roots: Path, found: list[Found]
) -> None:
    picture = image(tmp_path / "a.nii.gz")
    path = mask(tmp_path / "m.nii.gz", picture, {1: slice(5, 7)})
    one = scan(picture, masks=(("segmentation", path),))
    found.append(Found((one,), segmentation_classes=CLASSES))
    run(tmp_path)
    for classes in ((("bleed", 3),), (("tumour", 2),)):
        found.append(Found((one,), segmentation_classes=classes))
        with pytest.raises(DataError, match="are not those of the dataset"):
            run(tmp_path)
    found.append(Found((one,), segmentation_classes=(("tumour", 3), *CLASSES)))
    assert len(run(tmp_path, overwrite=True).accepted) == 1
    assert [c.value for c in load_raw_dataset(900).info.segmentation_classes] == [1, 2, 3]


def test_what_overwriting_rejects_stays_as_it_was(tmp_path: Path, roots: Path, found: list[Found]) -> None:
    picture = image(tmp_path / "a.nii.gz")
    found.append(Found((scan(picture),)))
    folder = run(tmp_path).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    picture.write_bytes(b"damaged")
    (told,) = run(tmp_path, overwrite=True).rejected
    assert told.reasons[-1] == "What was converted before stays in the dataset."
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
