"""Tests of preprocessing as a job array: who has which case, and how parts become one index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_heads import STORAGE, head, make_dataset, make_encoder

from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import load_raw_dataset, write_raw_dataset
from headctssl.errors import DataError, UsageError
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.index import CaseIndex, case_path
from headctssl.preprocessing.parts import Part
from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.report import PreprocessingReport

Command = Callable[..., tuple[int, str, str]]
OF = 3
ARRAY = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}


def storage() -> Path:
    return preprocessed_dataset(7) / STORAGE.storage_id


def whole(**more: bool) -> PreprocessingReport:
    return preprocess(7, rule=STORAGE, num_workers=1, quiet=True, **more)


def run(part: int, **more: bool) -> PreprocessingReport:
    return preprocess(7, rule=STORAGE, num_workers=1, part=part, parts=OF, quiet=True, **more)


def arrays() -> dict[str, bytes]:
    return {str(p.relative_to(storage())): p.read_bytes() for p in storage().glob("??/*")}


def test_every_case_has_one_part_whatever_the_others_are() -> None:
    names = [f"case{n}" for n in range(3000)]
    for of in (1, 2, 7):
        shares = [[name for name in names if Part(number, of).has(name)] for number in range(1, of + 1)]
        assert sorted(name for share in shares for name in share) == sorted(names)
        assert all(abs(len(share) - 3000 / of) < 120 for share in shares)
    # For ever: a part that is run again has the same cases.
    assert [n for n in range(1, 8) if Part(n, 7).has("case0")] == [7]


def test_parts_in_any_order_give_what_one_run_gives(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(7, 8)
    (folder / "images" / "case7_03.nii.gz").write_bytes(b"no image")
    first = whole()
    index, files = (storage() / "cases.csv").read_bytes(), arrays()
    for path in sorted(storage().rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    reports = []
    for part in (2, 3, 1):
        assert not (storage() / "cases.csv").exists()
        reports.append(run(part))
    assert sum(report.num_cases for report in reports) == 8
    assert all(0 < report.num_cases < 8 for report in reports)
    assert (storage() / "cases.csv").read_bytes() == index
    assert arrays() == files
    report = PreprocessingReport.model_validate_json(
        (preprocessed_dataset(7) / "preprocessing_report.json").read_text()
    )
    unlike = {"seconds": 0.0}
    assert report.model_copy(update=unlike) == first.model_copy(update=unlike)
    # A run of the whole says everything, and the parts' lists go.
    assert whole().num_kept == 7
    assert not (storage() / "parts").exists()


def test_a_part_that_is_run_again_brings_the_index_up_to_date(roots: Path) -> None:
    folder = make_dataset(7, 6)
    for part in (1, 2, 3):
        run(part)
    before = CaseIndex.open(storage()).rows
    write_nifti(folder / "images" / "case7_04.nii.gz", head(99, bleed=True))
    part = next(p for p in (1, 2, 3) if Part(p, OF).has("case7_04"))
    report = run(part)
    assert report.num_written == 1
    after = {row.case_id: row for row in CaseIndex.open(storage()).rows}
    changed = [row.case_id for row in before if after[row.case_id] != row]
    assert changed == ["case7_04"]


def test_parts_of_another_list_of_cases_are_not_counted(roots: Path) -> None:
    folder = make_dataset(7, 8)
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.iloc[:6])
    run(1)
    run(2)
    write_raw_dataset(folder, raw.info, raw.cases)
    run(3)  # the last one to be run, but 1 and 2 have never seen the added cases
    assert not (storage() / "cases.csv").exists()
    run(1)
    assert not (storage() / "cases.csv").exists()
    run(2)
    assert len(CaseIndex.open(storage())) == 8


def test_a_part_that_was_stopped_half_way_does_not_count(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(7, 6)
    for part in (1, 2, 3):
        run(part)

    def killed(*_: object) -> None:
        raise SystemExit("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr("headctssl.preprocessing.preprocess.keep_part", killed)
        with pytest.raises(SystemExit):
            run(1, overwrite=True)
    assert not (storage() / "cases.csv").exists()  # it described arrays that were replaced
    run(2)
    assert not (storage() / "cases.csv").exists()
    run(1)
    assert len(CaseIndex.open(storage())) == 6


def test_a_damaged_list_of_a_part_is_named(roots: Path) -> None:
    make_dataset(7, 6)
    run(1)
    run(2)
    path = storage() / "parts" / "2_of_3" / "cases.csv"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="part 2 of 3"):
        run(3)
    assert not (storage() / "cases.csv").exists()
    run(2)
    assert len(CaseIndex.open(storage())) == 6


def test_a_part_whose_cases_all_fail_fails_and_the_others_count(roots: Path) -> None:
    folder = make_dataset(7, 6)
    bad = [f"case7_{n:02d}" for n in range(6) if Part(2, OF).has(f"case7_{n:02d}")]
    for case_id in bad:
        (folder / "images" / f"{case_id}.nii.gz").write_bytes(b"no image")
    run(1)
    run(3)
    with pytest.raises(DataError, match="No case"):
        run(2)
    assert len(CaseIndex.open(storage())) == 6 - len(bad)
    report = json.loads((preprocessed_dataset(7) / "preprocessing_report.json").read_text())
    assert [failure["case_id"] for failure in report["failures"]] == bad
    assert (report["part"], report["parts"], report["num_cases"]) == (1, 1, 6)


def test_more_parts_than_cases(roots: Path) -> None:
    make_dataset(7, 2)
    for part in range(1, 9):
        preprocess(7, rule=STORAGE, num_workers=1, part=part, parts=8, quiet=True)
    assert len(CaseIndex.open(storage())) == 2


def test_withdrawn_cases_go_when_the_parts_come_together(roots: Path) -> None:
    folder = make_dataset(7, 6)
    whole()
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.iloc[:5])
    for part in (1, 2, 3):
        assert case_path(storage(), "case7_05").is_file()
        run(part)
    assert not list(storage().rglob("case7_05*"))
    assert len(CaseIndex.open(storage())) == 5


def test_commands_plan_once_and_preprocess_in_parts(roots: Path, command: Command) -> None:
    make_dataset(7, 8)
    for part in (1, 2):
        code, out, _ = command("plan_and_preprocess", "-d", 7, "--part", part, "--parts", 2, "--num_workers", 1)
        assert code == 0
        assert f"(part {part} of 2)" in out
        assert ("dataset_fingerprint.json" in out) == (part == 1)
        assert ("the index follows" in out) == (part == 1)
        assert ("all 2 parts are done" in out) == (part == 2)
    code, out, _ = command("preprocess", "-d", 7, "--num_workers", 1)
    assert code == 0
    assert "0 written, 8 unchanged" in out


def test_parts_like_a_checkpoint(roots: Path, tmp_path: Path) -> None:
    make_dataset(7, 6)
    checkpoint = make_encoder(tmp_path / "run")
    splits = preprocessed_dataset(7) / "splits.json"
    for part in (1, 2):
        assert not splits.exists()
        plan_and_preprocess([7], like=checkpoint, part=part, parts=2, num_workers=1, quiet=True)
    assert splits.is_file()


@pytest.mark.parametrize("flags", [("--part", 1), ("--parts", 2), ("--part", 3, "--parts", 2)])
def test_half_a_part_is_refused(roots: Path, command: Command, flags: tuple[object, ...]) -> None:
    make_dataset(7, 2)
    code, _, err = command("plan_and_preprocess", "-d", 7, *flags, "--like", roots)
    assert code == 2
    code, _, err = command("plan_and_preprocess", "-d", 7, *flags)
    assert code == 2
    assert "SLURM_ARRAY_TASK_ID" in err
    with pytest.raises(UsageError, match="--replan"):
        plan_and_preprocess([7], replan=True, part=1, parts=2)
    with pytest.raises(UsageError, match="--gpu_memory has no effect with --part"):
        plan_and_preprocess([7], gpu_memory=8.0, part=1, parts=2)


def test_the_job_array_of_the_documentation_runs(roots: Path) -> None:
    page = (Path(__file__).parents[2] / "documentation" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    script = page.split("<!-- test: array -->\n```slurm\n")[1].split("```")[0]
    make_dataset(1, 6)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tasks = [
        subprocess.Popen(
            ["bash", "-e"],
            stdin=subprocess.PIPE,
            text=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": str(task), **ARRAY},
        )
        for task in (1, 2)
    ]
    told = [task.communicate(script)[0] for task in tasks]  # both at the same time
    assert [task.returncode for task in tasks] == [0, 0], told
    assert sum("dataset_fingerprint.json" in text for text in told) == 1
    assert sum("all 2 parts are done" in text for text in told) == 1
    (index,) = preprocessed_dataset(1).glob("*/cases.csv")
    assert len(CaseIndex.open(index.parent)) == 6
