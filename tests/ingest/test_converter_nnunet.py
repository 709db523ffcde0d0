"""nnU-Net: versions 1 and 2, Decathlon names, channels, regions, a test folder, lists of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from converter_sources import by_source, convert_as_documented, image, mask, stub, told

from headctssl.dataset.image_io import read_label_map
from headctssl.errors import DataError
from headctssl.ingest.converters.nnunet import find_scans


def describe(root: Path, **changes: object) -> Path:
    info = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "IPH": 1, "SDH": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **changes,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    return root


def case(root: Path, name: str, number: int, *, channels: int = 1, folder: str = "Tr", label: bool = True) -> None:
    for channel in range(channels):
        path = stub(root / f"images{folder}" / f"{name}_{channel:04d}.nii.gz", 10 * number + channel)
    if label:
        mask(root / f"labels{folder}" / f"{name}.nii.gz", path, {1: slice(0, 1)})


def test_nnunet_images_have_their_label_map_and_its_classes(tmp_path: Path) -> None:
    root = describe(tmp_path / "Dataset012_Bleed", licence="CC BY 4.0", reference="doi:10.1/x")
    case(root, "bleed_001", 1)
    case(root, "bleed_002", 2, label=False)
    found = find_scans(root)
    scans = by_source(found)
    first, second = scans["imagesTr/bleed_001_0000.nii.gz"], scans["imagesTr/bleed_002_0000.nii.gz"]
    assert first.masks == (("segmentation", root / "labelsTr/bleed_001.nii.gz"),)
    assert second.masks == ()
    assert found.segmentation_classes == (("IPH", 1), ("SDH", 2))
    assert (found.licence, found.reference) == ("CC BY 4.0", "doi:10.1/x")
    assert first.columns == ()  # without imagesTs no split is fixed
    assert first.subject != second.subject


def test_nnunet_subjects_are_the_same_where_the_source_is_the_folder_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = describe(tmp_path / "Dataset012_Bleed", channel_names={"0": "NCCT", "1": "CTA"})
    case(root, "a", 1, channels=2)
    named = find_scans(root).scans
    monkeypatch.chdir(root)
    here = find_scans(Path()).scans
    assert [(scan.subject, scan.session) for scan in here] == [(scan.subject, scan.session) for scan in named]
    assert {scan.subject for scan in named} == {"Dataset012_Bleed/a"}


def test_nnunet_its_test_images_stay_the_test_set(tmp_path: Path) -> None:
    root = describe(tmp_path / "Dataset012_Bleed")
    case(root, "a", 1)
    case(root, "b", 2, folder="Ts", label=False)
    splits = {name: dict(scan.columns).get("split") for name, scan in by_source(find_scans(root)).items()}
    assert splits == {"imagesTr/a_0000.nii.gz": "train", "imagesTs/b_0000.nii.gz": "test"}


def test_nnunet_only_channels_that_are_ct_are_taken(tmp_path: Path) -> None:
    names = {"0": "T1", "1": "NCCT", "2": "CTA", "3": "CBF"}
    root = describe(tmp_path / "Dataset013_Stroke", channel_names=names)
    case(root, "a", 1, channels=4)
    found = find_scans(root)
    assert sorted(by_source(found)) == ["imagesTr/a_0001.nii.gz", "imagesTr/a_0002.nii.gz"]
    assert len({scan.subject for scan in found.scans}) == len({scan.session for scan in found.scans}) == 1
    assert "1 images of the channel T1" in told(found)
    assert "1 images of the channel CBF" in told(found)
    assert find_scans(describe(root, channel_names={"0": "noNorm"})).scans == ()


def test_nnunet_version_1_and_decathlon_names(tmp_path: Path) -> None:
    old = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "epidural", "2": "SDH"}, "channel_names": None}
    root = describe(tmp_path / "Task501_Bleed", **old)
    case(root, "a", 1)
    assert find_scans(root).segmentation_classes == (("epidural", 1), ("SDH", 2))
    assert len(find_scans(root).scans[0].masks) == 1
    decathlon = describe(tmp_path / "BHSD", **old)
    for name in ("ID_0001", "ID_0237f3c9"):
        path = stub(decathlon / "imagesTr" / f"{name}.nii.gz", len(name))
        mask(decathlon / "labelsTr" / f"{name}.nii.gz", path, {1: slice(0, 1)})
    found = find_scans(decathlon)
    assert [len(scan.masks) for scan in found.scans] == [1, 1]


def test_nnunet_files_may_be_listed(tmp_path: Path) -> None:
    listed = {"a": {"images": ["../elsewhere/x.nii.gz"], "label": "../elsewhere/y.nii.gz"}}
    root = describe(tmp_path / "Dataset014_Listed", dataset=listed)
    path = stub(tmp_path / "elsewhere/x.nii.gz", 1)
    mask(tmp_path / "elsewhere/y.nii.gz", path, {1: slice(0, 1)})
    (scan,) = find_scans(root).scans
    assert scan.path.resolve() == path
    assert scan.masks[0][1].resolve() == tmp_path / "elsewhere/y.nii.gz"


def test_nnunet_regions_and_unmarked_voxels(tmp_path: Path) -> None:
    regions = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "edema": 3}
    root = describe(tmp_path / "Dataset015_Regions", labels=regions)
    case(root, "a", 1)
    found = find_scans(root)
    assert found.segmentation_classes == (("label_1", 1), ("label_2", 2), ("edema", 3))
    assert "The region 'all' is no class by itself" in told(found)
    for labels in ({"background": 0, "IPH": 1, "ignore": 2}, {"background": 0, "far": 300}):
        found = find_scans(describe(root, labels=labels))
        assert found.scans[0].masks == ()
        assert found.segmentation_classes == ()
        assert "cannot be stored" in told(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"channel_names": None}, "names no channels"), ({"labels": {"IPH": "one"}}, "label 'IPH' does not fit")],
)
def test_nnunet_faults_of_dataset_json(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    root = describe(tmp_path / "Dataset016_Faulty", **changes)
    case(root, "a", 1)
    with pytest.raises(DataError, match=message):
        find_scans(root)


def test_nnunet_becomes_a_dataset(tmp_path: Path, roots: Path) -> None:
    root = describe(tmp_path / "Dataset017_Real")
    path = image(root / "imagesTr/a_0000.nii.gz", 1)
    mask(root / "labelsTr/a.nii.gz", path, {1: slice(3, 6), 2: slice(8, 12)})
    wrong = image(root / "imagesTr/b_0000.nii.gz", 2)
    mask(root / "labelsTr/b.nii.gz", stub(tmp_path / "other.nii.gz"), {1: slice(0, 1)})
    assert wrong.exists()
    code, data = convert_as_documented("nnunet", root)
    assert (code, len(data.cases)) == (1, 1)  # a mask on another grid is no mask: b is rejected
    values = read_label_map(data.folder / data.cases.iloc[0]["segmentation"]).values
    assert [int((values == value).any(axis=(1, 2)).sum()) for value in (1, 2)] == [3, 4]
