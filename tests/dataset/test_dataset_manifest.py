"""Manifest and table: what is read from dataset.json and cases.csv, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest
from crude_heads import TEMPLATE_CASES, template_volume
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.cli.main import run_command
from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import read, write_nifti
from headctssl.dataset.manifest import DatasetInfo, load_raw_dataset, open_raw_dataset, write_raw_dataset
from headctssl.dataset.table import STANDARD_COLUMNS, is_safe_case_id, read_table
from headctssl.dataset.table_faults import table_faults
from headctssl.dataset.verify import verify_dataset
from headctssl.errors import DataError, UsageError

TEMPLATE = Path(__file__).parents[2] / "headctssl_raw_template"
LABELS = {
    "bleed": {"type": "binary", "laterality": "self"},
    "grade": {"type": "ordinal", "classes": ["none", "mild", "severe"]},
    "volume_ml": {"type": "continuous"},
}


def make(folder: Path, rows: str, labels: dict[str, object] | None = None, **info: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "name": "x", "labels": labels or {}, **info}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "cases.csv").write_bytes(rows.encode())
    return folder


def test_labels_are_numbers_by_name_and_empty_is_the_only_unknown(tmp_path: Path) -> None:
    rows = (
        "volume_ml,case_id,grade,image,bleed\n1.5,a,severe,images/a.nii,1\n,b,none,images/b.nii,\n0,c,,images/c.nii,0\n"
    )
    data = open_raw_dataset(make(tmp_path / "d", rows, LABELS), 1)
    labels = data.labels()
    assert list(labels.columns) == ["bleed", "grade", "volume_ml"]
    expected = np.array([[1, 2, 1.5], [np.nan, 0, np.nan], [0, np.nan, 0]])
    np.testing.assert_array_equal(labels.to_numpy(), expected)
    assert data.image_path("b") == tmp_path / "d" / "images/b.nii"
    assert list(data.cases["subject_id"]) == ["a", "b", "c"]
    with pytest.raises(UsageError, match="Unknown case 'z'"):
        data.image_path("z")


def test_spaces_around_cells_make_no_other_subject(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("case_id,image,subject_id\na,a.nii,P1 \n b,b.nii, P1\n   \n")
    table = read_table(tmp_path / "a.csv")
    assert table.to_numpy().tolist() == [["a", "a.nii", "P1"], ["b", "b.nii", "P1"]]


def test_na_is_a_value(tmp_path: Path) -> None:
    rows = "case_id,image,subject_id,bleed\nNA,images/a.nii,NaN,\nnull,images/b.nii,None,NA\n"
    data = open_raw_dataset(make(tmp_path / "d", rows, {"bleed": {}}), 1)
    assert list(data.cases["case_id"]) == ["NA", "null"]
    assert list(data.cases["subject_id"]) == ["NaN", "None"]
    with pytest.raises(DataError, match=r"'null'.*'bleed'"):
        data.labels()


def test_a_missing_label_column_is_told_with_the_columns_there_are(tmp_path: Path) -> None:
    data = open_raw_dataset(make(tmp_path / "d", "case_id,image\na,images/a.nii\n", {"bleed": {}}), 1)
    with pytest.raises(DataError, match=r"label 'bleed'.*no column") as error:
        data.labels()
    assert error.value.got == "case_id, image, subject_id"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("case_id;image\na;images/a.nii\n", "semicolons"),
        ("case_id\timage\na\timages/a.nii\n", "tabs"),
        ("case_id,image,image\na,b,c\n", "repeated column"),
        ("case_id, image\na,b\n", "unusable column"),
        ("case_id,image\na,b,c\n", "line 2"),
        ("", "is empty"),
        ("case_id,image\n", "no cases"),
        ("image\na.nii\n", "no column 'case_id'"),
        ("case_id,image\na,images/a.nii\na,images/b.nii\n", "2 lines"),
        ("case_id,image\na/b,images/a.nii\n", "cannot be a file name"),
        ("case_id,image\na,../a.nii\n", "not a path inside"),
        ("case_id,image\na,/etc/a.nii\n", "not a path inside"),
        ("case_id,image\na,\n", "not a path inside"),
        ("case_id,image\na,x.nii\nb,x.nii\n", "another case"),
        ("case_id,image\na,images/x.nii\nb,./images/x.nii\n", "another case"),
        ("case_id,image\na,images//x.nii\nb,images/x.nii\n", "another case"),
        ("case_id,image,split\na,x.nii,dev\n", "known split"),
        ("case_id,image,subject_id,split\na,x.nii,s,train\nb,y.nii,s,test\n", "two splits"),
    ],
)
def test_a_faulty_table_is_refused_with_one_message(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_raw_dataset(make(tmp_path / "d", rows), 1)


def test_a_byte_order_mark_is_read_over_and_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(b"\xef\xbb\xbfcase_id,image\na,b\n")
    assert list(read_table(path).columns) == ["case_id", "image"]
    path.write_bytes("case_id,image\nä,b\n".encode("utf-16"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": {"type": "ordinal"}}, "classes"),
        ({"a": {"laterality": {"mirror": "b"}}}, "not a label"),
        ({"a": {"laterality": "left"}}, "laterality"),
        ({"a": {"kind": "binary"}}, "unknown keys"),
        ({"age": {}}, "standard column"),
        ({"a": {"type": "yes/no"}}, "binary"),
    ],
)
def test_a_faulty_label_is_refused(tmp_path: Path, labels: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_raw_dataset(make(tmp_path / "d", "case_id,image\na,b.nii\n", labels), 1)


def test_another_modality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a CT"):
        open_raw_dataset(make(tmp_path / "d", "case_id,image\na,b.nii\n", modality="MR"), 1)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    specs = (
        LabelSpec(name="l", mirror="r"),
        LabelSpec(name="r", mirror="l"),
        LabelSpec(name="g", type="multiclass", classes=("x", "y")),
    )
    info = DatasetInfo(name="n", labels=specs, profile="laptop")
    cases = pd.DataFrame(
        {"l": ["1", ""], "image": ["i/a.nii", "i/b.nii"], "case_id": ["a", "b"], "r": ["", "0"], "g": ["x", "y"]}
    )
    write_raw_dataset(tmp_path / "d", info, cases)
    data = open_raw_dataset(tmp_path / "d", 3)
    assert data.info == info
    assert (tmp_path / "d/cases.csv").read_text().splitlines()[0] == "case_id,image,l,r,g"
    np.testing.assert_array_equal(data.labels().to_numpy(), [[1, np.nan, 0], [np.nan, 0, 1]])


def test_without_a_table_every_image_is_a_case_and_its_own_subject(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for name in ("one.nii.gz", "sub/two.nii.gz"):
        write_nifti(folder / "images" / name, template_volume(0))
    (folder / "dataset.json").write_text('{"name": "x"}')
    data = open_raw_dataset(folder, 1)
    assert data.case_ids == ["one", "sub__two"]
    assert list(data.cases["subject_id"]) == data.case_ids
    assert read(data.image_path("sub__two")).hu.shape == (48, 64, 56)


@pytest.fixture
def template_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("headctssl_raw", str(TEMPLATE))


@pytest.mark.usefixtures("template_root")
def test_the_template_is_complete_small_and_made_by_its_generator() -> None:
    report = verify_dataset(999, num_workers=1, quiet=True)
    assert report.faults == ()
    assert report.num_cases == len(TEMPLATE_CASES)
    data = load_raw_dataset(999)
    assert data.info.profile == "template"
    assert int(data.labels().isna().to_numpy().sum()) == 1
    assert data.cases["subject_id"].nunique() == 5
    for position, case_id in enumerate(data.case_ids):
        np.testing.assert_array_equal(read(data.image_path(case_id)).hu, template_volume(position).hu)
    assert sum(file.stat().st_size for file in TEMPLATE.rglob("*") if file.is_file()) < 300_000


def test_the_templates_readme_explains_every_column_and_key() -> None:
    told = set(re.findall(r"`([a-z_]+)`", (TEMPLATE / "README.md").read_text()))
    assert set(STANDARD_COLUMNS) <= told
    assert set(DatasetInfo.model_fields) - {"format"} <= told


def test_verify_lists_every_fault_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("headctssl_raw", str(tmp_path))
    rows = (
        "case_id,image,subject_id,split,bleed,age,site\n"
        "good,images/good.nii.gz,s1,train,1,50,x\n"
        "gone,images/gone.nii.gz,s2,,0,,x\n"
        "broken,images/broken.nii.gz,s3,,2,,x\n"
        "cormack,images/cormack.nii.gz,s1,test,0,fifty,x\n"
        "good,images/good2.nii.gz,s5,,0,,x\n"
    )
    folder = make(tmp_path / "Dataset007_Bad", rows, {"bleed": {}, "fracture": {}})
    head = template_volume(0)
    for name in ("good", "good2", "unlisted"):
        write_nifti(folder / "images" / f"{name}.nii.gz", head)
    content = (folder / "images/good.nii.gz").read_bytes()
    (folder / "images/broken.nii.gz").write_bytes(content[: len(content) // 2])
    shifted = type(head)((head.hu + 1000).astype(np.int16), head.affine, head.info)
    write_nifti(folder / "images/cormack.nii.gz", shifted)
    report = verify_dataset(7, num_workers=1, quiet=True)
    found = [(fault.case_id, fault.what) for fault in report.faults]
    for case_id, what in [
        ("", "label 'fracture'"),
        ("good", "in 2 lines"),
        ("gone", "does not exist"),
        ("broken", "cannot be read"),
        ("broken", "value of label 'bleed'"),
        ("cormack", "Hounsfield"),
        ("cormack", "'age' is not a number"),
        ("cormack", "two splits"),
    ]:
        assert any(c == case_id and what in w for c, w in found), (case_id, what, found)
    assert len(found) == 8
    assert all(fault.do for fault in report.faults)
    assert any("free metadata" in remark and "site" in remark for remark in report.remarks)
    assert any("unlisted.nii.gz" in remark for remark in report.remarks)
    assert report.exit_code == 2  # a label without a column is a fault of the dataset
    assert run_command("verify_dataset", ["-d", "7", "--num_workers", "1"]) == 2
    assert "8 faults in 4 cases" in capsys.readouterr().out
    table = (folder / "cases.csv").read_text().replace("age,site", "fracture,site").replace("fifty", "")
    (folder / "cases.csv").write_text(table.replace(",50,", ",1,"))
    assert verify_dataset(7, num_workers=1, quiet=True).exit_code == 1  # only cases are faulty


def test_verify_of_a_dataset_that_cannot_be_opened_is_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("headctssl_raw", str(tmp_path))
    folder = make(tmp_path / "Dataset007_Bad", "case_id;image\n", modality="MR")
    assert verify_dataset(7, quiet=True).exit_code == 2
    (folder / "dataset.json").write_text("{")
    assert len(verify_dataset(7, quiet=True).faults) == 2
    assert run_command("verify_dataset", ["-d", "8"]) == 2


CELLS = st.lists(st.text("aB1/\\: \n-_.~é", max_size=6), max_size=4)


@settings(max_examples=300, deadline=None)
@given(CELLS)
def test_cells_judged_at_once_hide_no_wrong_one(cells: list[str]) -> None:
    table = pd.DataFrame({"case_id": [f"c{i}" for i in range(len(cells))], "image": cells}, dtype=str)
    wrong = {fault.case_id for fault in table_faults(table, ()) if "path inside" in fault.what}
    for i, cell in enumerate(cells):
        path = PurePosixPath(cell.replace("\\", "/"))
        leads_out = not cell or path.is_absolute() or ".." in path.parts or any(":" in part for part in path.parts[:1])
        assert (f"c{i}" in wrong) == leads_out
    ids = pd.DataFrame({"case_id": cells, "image": [f"images/{i}.nii" for i in range(len(cells))]}, dtype=str)
    told = {fault.case_id for fault in table_faults(ids, ()) if "file name" in fault.what}
    assert told == {cell for cell in cells if not is_safe_case_id(cell)}
