"""Convert: scans as they come become cases of a raw dataset, with a verdict on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from headctssl.console import name_files, progress, say, table
from headctssl.dataset.image_io import read, read_series, write_nifti
from headctssl.dataset.manifest import DatasetInfo, cases_from_images, write_raw_dataset
from headctssl.dataset.parallel import map_items
from headctssl.dataset.table import read_table
from headctssl.errors import DataError, HeadCTSSLError, UsageError
from headctssl.ingest.converters import load_converter
from headctssl.ingest.scan import Found, Ignored, Scan, keyed_hash, subject_key
from headctssl.ingest.verdict import IngestReport, ScanVerdict, judge
from headctssl.paths import data_root, dataset_folder_name, find_dataset
from headctssl.settings import read_json, write_json

__all__ = ["ConvertResult", "convert"]

DEFAULT_NAME = "HeadCT"
"""Not the source's name: folder names of exports can identify patients."""


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` did."""

    folder: Path  # the dataset; not made when nothing was accepted or in a dry run
    accepted: tuple[ScanVerdict, ...]  # status accept or review
    rejected: tuple[ScanVerdict, ...]
    skipped: tuple[Ignored, ...]  # scans that are in the dataset already
    ignored: tuple[Ignored, ...]  # what is no scan by its nature
    files: tuple[Path, ...]  # what was written

    @property
    def exit_code(self) -> int:
        """0 done, 1 some scans rejected, 2 all rejected."""
        if not self.rejected:
            return 0
        return 1 if self.accepted or self.skipped else 2


@dataclass(frozen=True)
class _Job:
    """One scan to read, judge and write; crosses to a worker process."""

    scan: Scan
    case_id: str
    target: Path | None  # None in a dry run
    keep_detail: bool = False


@dataclass(frozen=True)
class _Outcome:
    verdict: ScanVerdict
    cells: dict[str, str]  # of cases.csv


def convert(
    source: str | Path,
    dataset_id: int,
    *,
    source_format: str,
    name: str | None = None,
    labels: str | Path | None = None,
    keep_detail: bool = False,
    dry_run: bool = False,
    num_workers: int | None = None,
    quiet: bool = False,
    overwrite: bool = False,
) -> ConvertResult:
    """Make a raw dataset of scans, or add them to an existing one.

    Every scan is read in full, straightened, judged, and written as one NIfTI file in Hounsfield
    units; case, subject and session ids are keyed hashes (see `ingest.scan.subject_key`). Scans that
    fail are named with their reasons and do not stop the others; a scan that is in the dataset
    already is skipped.

    Args:
        source: what to convert: a folder or an image file.
        dataset_id: number of the dataset, new or existing.
        source_format: a name of `ingest.converters.CONVERTERS`.
        name: name of a new dataset; "HeadCT" when None.
        labels: CSV with labels and metadata by image, for the format `folder`.
        keep_detail: where a stack is resampled, space slices by its smallest gap (not under 0.5 mm).
        dry_run: read and judge, write nothing.
        num_workers: processes; None = one per core.
        quiet: print nothing.
        overwrite: convert scans that are in the dataset already again.

    Raises:
        UsageError: unknown format, missing source, or a name that is not the existing dataset's.
        DataError: the source holds no scan, or the existing dataset or the labels cannot be used.
    """
    find_scans = load_converter(source_format)
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError("The source does not exist.", got=path, expected="a folder or file", do="Check the path.")
    found = _find(find_scans, path, source_format, labels)
    folder, info, cases = _open_or_new(dataset_id, name, found)
    key = subject_key(data_root("raw"), create=not dry_run)
    jobs, skipped = _jobs(found.scans, folder, cases, key, overwrite=overwrite)
    jobs = [replace(job, keep_detail=keep_detail, target=None if dry_run else job.target) for job in jobs]
    outcomes, rejected = _work(jobs, num_workers, quiet=quiet)
    rejected = [*found.rejected, *rejected]
    files: list[Path] = []
    if outcomes and not dry_run:
        files = [folder / outcome.cells["image"] for outcome in outcomes]
        rows = [_identified(outcome, job.scan, key) for outcome, job in _pairs(outcomes, jobs)]
        files += write_raw_dataset(folder, info, _add_rows(cases, rows))
    if not dry_run and (outcomes or folder.exists()):
        files.append(_report(folder, [*(o.verdict for o in outcomes), *rejected]))
    result = ConvertResult(
        folder, tuple(o.verdict for o in outcomes), tuple(rejected), tuple(skipped), found.ignored, tuple(files)
    )
    _print(result, found.remarks, dry_run=dry_run, quiet=quiet)
    return result


def _find(find_scans: Callable[..., Found], path: Path, source_format: str, labels: str | Path | None) -> Found:
    if source_format == "dicom" and not path.is_dir():
        raise UsageError("The source is a file.", got=path, expected="a folder", do="Name the folder of the slices.")
    if labels is None:
        found = find_scans(path)
    elif source_format == "folder":
        found = find_scans(path, Path(labels).expanduser())
    else:
        raise UsageError(
            f"--labels does not go with --from {source_format}.",
            got=labels,
            expected="--from folder",
            do="Convert without it, then fill the label columns of cases.csv by case id.",
        )
    if not found.scans and not found.rejected:
        there = "; ".join(entry.reason for entry in found.ignored)
        raise DataError(
            f"No scan was found in {path}.",
            got=there or "nothing",
            expected=f"what --from {source_format} reads",
            do="Check the path and the value of --from.",
        )
    return found


def _open_or_new(dataset_id: int, name: str | None, found: Found) -> tuple[Path, DatasetInfo, pd.DataFrame]:
    """The folder, description and table to add to. Labels of the source are added to the description."""
    existing = find_dataset(dataset_id)
    folder_name = existing or dataset_folder_name(dataset_id, name or DEFAULT_NAME)
    if existing and name is not None and existing != dataset_folder_name(dataset_id, name):
        raise UsageError(
            f"Dataset {dataset_id} exists under another name.",
            got=f"--name {name}",
            expected=existing,
            do="Leave --name out to add to it, or choose another number.",
        )
    folder = data_root("raw") / folder_name
    if not (folder / "dataset.json").exists():
        title = folder_name.partition("_")[2]
        empty = pd.DataFrame({"case_id": [], "image": []}, dtype=str)
        return folder, DatasetInfo(name=title, description="Made by headct_convert.", labels=found.labels), empty
    info = read_json(folder / "dataset.json", DatasetInfo, do="Repair it: headct_verify_dataset tells more.")
    csv = folder / "cases.csv"
    cases = read_table(csv) if csv.exists() else cases_from_images(folder)
    known = {spec.name for spec in info.labels}
    added = tuple(spec for spec in found.labels if spec.name not in known)
    info = info.model_copy(update={"labels": (*info.labels, *added)})
    for spec in added:
        cases[spec.name] = ""
    return folder, info, cases


def _jobs(
    scans: Sequence[Scan], folder: Path, cases: pd.DataFrame, key: bytes, *, overwrite: bool
) -> tuple[list[_Job], list[Ignored]]:
    """What is to do, and what is in the dataset (or in the source) already."""
    present = {str(c) for c, image in zip(cases["case_id"], cases["image"], strict=True) if (folder / image).exists()}
    jobs: list[_Job] = []
    skipped: list[Ignored] = []
    taken: dict[str, str] = {}
    for scan in scans:
        case_id = f"case_{keyed_hash(key, scan.identity)}"
        if case_id in taken:
            skipped.append(Ignored(scan.source, f"the same scan as {taken[case_id]}"))
        elif case_id in present and not overwrite:
            skipped.append(Ignored(scan.source, f"in the dataset already as {case_id}"))
        else:
            jobs.append(_Job(scan, case_id, folder / "images" / f"{case_id}.nii.gz"))
        taken.setdefault(case_id, scan.source)
    return jobs, skipped


def _work(jobs: Sequence[_Job], num_workers: int | None, *, quiet: bool) -> tuple[list[_Outcome], list[ScanVerdict]]:
    """Convert every scan; outcomes of the good ones in the order of the source, verdicts on the others."""
    done: dict[int, _Outcome] = {}
    rejected: dict[int, ScanVerdict] = {}
    for position, result in progress(map_items(_convert_one, jobs, num_workers), "converted", len(jobs), quiet=quiet):
        job = jobs[position]
        if isinstance(result, HeadCTSSLError):
            rejected[position] = ScanVerdict(
                source=job.scan.source, case_id=job.case_id, status="reject", reasons=(_reason(result, job.scan),)
            )
        elif result.verdict.status == "reject":
            rejected[position] = result.verdict
        else:
            done[position] = result
    return [done[k] for k in sorted(done)], [rejected[k] for k in sorted(rejected)]


def _convert_one(job: _Job) -> _Outcome:
    """Read, judge and write one scan (in a worker process)."""
    scan = job.scan
    keep = job.keep_detail
    volume = read_series(scan.files, keep_detail=keep) if scan.files else read(scan.path, keep_detail=keep)
    status, reasons = judge(volume)
    verdict = ScanVerdict(
        source=scan.source,
        case_id=job.case_id,
        status=status,
        reasons=reasons,
        notes=tuple(note for note in volume.info.notes if note not in reasons),
    )
    if job.target is not None and status != "reject":
        write_nifti(job.target, volume)
    cells = {
        "case_id": job.case_id,
        "image": f"images/{job.case_id}.nii.gz",
        "quality": "review" if status == "review" else "",
        "gantry_tilt_deg": f"{volume.info.tilt_deg:g}",
        **dict(volume.info.metadata),
        **dict(scan.columns),
    }
    return _Outcome(verdict, cells)


def _reason(error: HeadCTSSLError, scan: Scan) -> str:
    """An error in one line, without the path above the source, which may name people."""
    parts = [error.what, f"Got: {error.got}." if error.got else "", f"Expected: {error.expected}."]
    text = " ".join(part for part in [*parts, error.do or ""] if part)
    return text.replace(str(scan.path), scan.source)


def _pairs(outcomes: Sequence[_Outcome], jobs: Sequence[_Job]) -> list[tuple[_Outcome, _Job]]:
    by_id = {job.case_id: job for job in jobs}
    return [(outcome, by_id[outcome.verdict.case_id]) for outcome in outcomes]


def _identified(outcome: _Outcome, scan: Scan, key: bytes) -> dict[str, str]:
    """The cells with subject and session ids, which are keyed hashes too."""
    subject = f"subject_{keyed_hash(key, 'subject:' + scan.subject)}" if scan.subject else ""
    session = f"session_{keyed_hash(key, 'session:' + scan.session)}" if scan.session else ""
    return {**outcome.cells, "subject_id": subject, "session_id": session}


def _add_rows(cases: pd.DataFrame, rows: Sequence[dict[str, str]]) -> pd.DataFrame:
    """The table with rows added. A row of a known case id changes the cells it brings and keeps the others."""
    records: dict[str, dict[str, str]] = {}
    for record in cases.to_dict("records"):
        records[str(record["case_id"])] = {str(name): str(value) for name, value in record.items()}
    for row in rows:
        old = records.get(row["case_id"], {})
        # An id that the source does not know does not erase one that was entered by hand.
        unknown = [name for name in ("subject_id", "session_id") if not row[name]]
        kept: dict[str, str] = {name: old[name] for name in unknown if name in old}
        records[row["case_id"]] = {**old, **row, **kept}
    columns = list(dict.fromkeys([*cases.columns, *(name for row in rows for name in row)]))
    body = [[record.get(name, "") for name in columns] for record in records.values()]
    return pd.DataFrame(body, columns=columns, dtype=str)


def _report(folder: Path, verdicts: Sequence[ScanVerdict]) -> Path:
    """Write ingest_report.json: the new verdicts take the place of older ones on the same scan."""
    path = folder / "ingest_report.json"
    old = read_json(path, IngestReport, do="Move the file away.").scans if path.exists() else ()
    seen = {(v.source, v.case_id) for v in verdicts} | {("", v.case_id) for v in verdicts if v.case_id}
    kept = [v for v in old if (v.source, v.case_id) not in seen and ("", v.case_id) not in seen]
    write_json(path, IngestReport(scans=(*kept, *verdicts)))
    return path


def _print(result: ConvertResult, remarks: Sequence[str], *, dry_run: bool, quiet: bool) -> None:
    for entry in (*result.ignored, *result.skipped):
        say(f"{entry.source}: {entry.reason}" if entry.source else f"ignored: {entry.reason}", quiet=quiet)
    for remark in remarks:
        say(remark, quiet=quiet)
    told = [v for v in (*result.rejected, *result.accepted) if v.status != "accept"]
    if told:
        rows = [(v.status, v.source, " ".join(v.reasons)) for v in told]
        table("Scans that were not simply accepted", ("verdict", "scan", "reasons"), rows, quiet=quiet)
    counts = Counter(v.status for v in (*result.accepted, *result.rejected))
    told_counts = ", ".join(f"{counts.get(status, 0)} {status}" for status in ("accept", "review", "reject"))
    say(f"{result.folder.name}: {told_counts}, {len(result.skipped)} there already.", quiet=quiet)
    if dry_run:
        say("Dry run: nothing was written.", quiet=quiet)
    shown = [path for path in result.files if path.suffix in (".json", ".csv")]
    images = len(result.files) - len(shown)
    if images:
        say(f"wrote {images} images under {result.folder / 'images'}", quiet=quiet)
    if shown:
        name_files(shown, quiet=quiet)
