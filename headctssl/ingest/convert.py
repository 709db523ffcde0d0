"""Convert: scans as they come become cases of a raw dataset, with a verdict on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from headctssl.console import name_files, progress, say, table
from headctssl.dataset.image_io import read, read_series, write_nifti
from headctssl.dataset.manifest import DatasetInfo, cases_from_images, write_raw_dataset
from headctssl.dataset.parallel import map_items
from headctssl.dataset.table import read_table, table_faults
from headctssl.errors import DataError, HeadCTSSLError, UsageError
from headctssl.ingest.converters import load_converter
from headctssl.ingest.privacy import KEY_FILE, keyed_hash, subject_key
from headctssl.ingest.scan import Found, Ignored, Scan
from headctssl.ingest.verdict import IngestReport, ScanVerdict, judge
from headctssl.paths import data_root, dataset_folder_name, find_dataset
from headctssl.settings import read_json, write_json

__all__ = ["ConvertResult", "convert"]

DEFAULT_NAME = "HeadCT"
"""Not the source's name: folder names of exports can identify patients."""

SAVE_EVERY = 500
"""Scans between two writings of cases.csv: what a killed conversion loses at most."""


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


@dataclass
class _Dataset:
    """The dataset that scans are added to, and what has been done so far."""

    folder: Path
    info: DatasetInfo
    cases: pd.DataFrame  # as it was found
    report: IngestReport  # as it was found
    key: bytes
    jobs: list[_Job] = field(default_factory=list)
    done: dict[int, _Outcome] = field(default_factory=dict)  # by position of the job
    rejected: dict[int, ScanVerdict] = field(default_factory=dict)

    def outcomes(self) -> list[_Outcome]:
        return [self.done[k] for k in sorted(self.done)]

    def rejections(self) -> list[ScanVerdict]:
        return [self.rejected[k] for k in sorted(self.rejected)]

    def check(self) -> None:
        """Raise for what would make the table unusable, before hours of work.

        Raises:
            DataError: the table there is, or a cell that a scan brings, has a fault.
        """
        faults = list(table_faults(self.cases, self.info.labels))
        if faults:
            told = faults[0].to_error(len(faults) - 1)
            what = f"{self.folder.name} cannot be added to. {told.what}"
            raise DataError(what, got=told.got, expected=told.expected, do=told.do)
        rows = [_identified({**_ids(job), **dict(job.scan.columns)}, job.scan, self.key) for job in self.jobs]
        faults = list(table_faults(_add_rows(self.cases, rows), self.info.labels))
        if faults:
            sources = {job.case_id: job.scan.source for job in self.jobs}
            first = faults[0]
            raise replace(first, case_id=sources.get(first.case_id, first.case_id)).to_error(len(faults) - 1)

    def save(self) -> list[Path]:
        """Write dataset.json and cases.csv with what is done; nothing when nothing is."""
        if not self.done:
            return []
        rows = [_identified(self.done[k].cells, self.jobs[k].scan, self.key) for k in sorted(self.done)]
        return list(write_raw_dataset(self.folder, self.info, _add_rows(self.cases, rows)))


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
    units; case, subject and session ids are keyed hashes (see `ingest.privacy.subject_key`). Scans that
    fail are named with their reasons and do not stop the others; a scan that is in the dataset
    already is skipped. cases.csv is written every 500 scans and also when the work is interrupted,
    so that the same call again goes on.

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
        DataError: the source holds no scan, or the existing dataset or the labels cannot be used;
            raised before any scan is read in full.
    """
    find_scans = load_converter(source_format)
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError("The source does not exist.", got=path, expected="a folder or file", do="Check the path.")
    found = _find(find_scans, path, source_format, labels)
    data = _open_or_new(dataset_id, name, found, create_key=not dry_run)
    jobs, skipped = _jobs(found.scans, data, overwrite=overwrite)
    data.jobs = [replace(job, keep_detail=keep_detail, target=None if dry_run else job.target) for job in jobs]
    data.check()
    files: list[Path] = []
    with _saved_at_the_end(data, found.rejected, files, dry_run=dry_run):
        _work(data, num_workers, dry_run=dry_run, quiet=quiet)
    accepted = tuple(outcome.verdict for outcome in data.outcomes())
    rejected = (*found.rejected, *data.rejections())
    result = ConvertResult(data.folder, accepted, rejected, tuple(skipped), found.ignored, tuple(files))
    _print(result, found.remarks, dry_run=dry_run, quiet=quiet)
    return result


@contextmanager
def _saved_at_the_end(
    data: _Dataset, rejected: Sequence[ScanVerdict], files: list[Path], *, dry_run: bool
) -> Iterator[None]:
    """Write the table and the report when the block ends, also by Ctrl-C or an error; names go into `files`."""
    try:
        yield
    finally:
        if not dry_run:
            files += [data.folder / outcome.cells["image"] for outcome in data.outcomes()]
            files += data.save()
            if data.folder.exists():
                verdicts = [*(outcome.verdict for outcome in data.outcomes()), *rejected, *data.rejections()]
                files.append(_report(data, verdicts))


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


def _open_or_new(dataset_id: int, name: str | None, found: Found, *, create_key: bool) -> _Dataset:
    """The dataset to add to. Labels of the source are added to its description."""
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
    old = folder / "ingest_report.json"
    report = read_json(old, IngestReport, do="Move the file away.") if old.exists() else IngestReport()
    key = subject_key(data_root("raw") / KEY_FILE, create=create_key)
    if not (folder / "dataset.json").exists():
        title = folder_name.partition("_")[2]
        # With the label columns: the scans that bring them may all be rejected.
        empty = pd.DataFrame(columns=["case_id", "image", *(spec.name for spec in found.labels)], dtype=str)
        info = DatasetInfo(name=title, description="Made by headct_convert.", labels=found.labels)
        return _Dataset(folder, info, empty, report, key)
    info = read_json(folder / "dataset.json", DatasetInfo, do="Repair it: headct_verify_dataset tells more.")
    csv = folder / "cases.csv"
    cases = read_table(csv) if csv.exists() else cases_from_images(folder)
    known = {spec.name for spec in info.labels}
    added = tuple(spec for spec in found.labels if spec.name not in known)
    info = info.model_copy(update={"labels": (*info.labels, *added)})
    for spec in added:
        if spec.name not in cases.columns:
            cases[spec.name] = ""
    return _Dataset(folder, info, cases, report, key)


def _jobs(scans: Sequence[Scan], data: _Dataset, *, overwrite: bool) -> tuple[list[_Job], list[Ignored]]:
    """What is to do, and what is in the dataset (or in the source) already."""
    there = data.cases.reindex(columns=["case_id", "image"], fill_value="")  # a missing column is told by `check`
    present = {str(c) for c, i in there.itertuples(index=False) if i and (data.folder / i).exists()}
    jobs: list[_Job] = []
    skipped: list[Ignored] = []
    taken: dict[str, str] = {}
    for scan in scans:
        case_id = f"case_{keyed_hash(data.key, scan.identity)}"
        if case_id in taken:
            skipped.append(Ignored(scan.source, f"the same scan as {taken[case_id]}"))
        elif case_id in present and not overwrite:
            skipped.append(Ignored(scan.source, f"in the dataset already as {case_id}"))
        else:
            jobs.append(_Job(scan, case_id, data.folder / "images" / f"{case_id}.nii.gz"))
        taken.setdefault(case_id, scan.source)
    return jobs, skipped


def _work(data: _Dataset, num_workers: int | None, *, dry_run: bool, quiet: bool) -> None:
    """Convert every scan into `data.done` and `data.rejected`."""
    jobs = data.jobs
    for position, result in progress(map_items(_convert_one, jobs, num_workers), "converted", len(jobs), quiet=quiet):
        job = jobs[position]
        if isinstance(result, HeadCTSSLError):
            data.rejected[position] = ScanVerdict(
                source=job.scan.source, case_id=job.case_id, status="reject", reasons=(_reason(result, job.scan),)
            )
        elif result.verdict.status == "reject":
            data.rejected[position] = result.verdict
        else:
            data.done[position] = result
            if len(data.done) % SAVE_EVERY == 0 and not dry_run:
                data.save()


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
        **_ids(job),
        "quality": "review" if status == "review" else "",
        "gantry_tilt_deg": f"{volume.info.tilt_deg:g}",
        **dict(volume.info.metadata),
        **dict(scan.columns),
    }
    return _Outcome(verdict, cells)


def _ids(job: _Job) -> dict[str, str]:
    return {"case_id": job.case_id, "image": f"images/{job.case_id}.nii.gz"}


def _reason(error: HeadCTSSLError, scan: Scan) -> str:
    """An error in one line, without the path above the source, which may name people."""
    parts = [error.what, f"Got: {error.got}." if error.got else "", f"Expected: {error.expected}."]
    text = " ".join(part for part in [*parts, error.do or ""] if part)
    return text.replace(str(scan.path), scan.source)


def _identified(cells: dict[str, str], scan: Scan, key: bytes) -> dict[str, str]:
    """The cells with subject and session ids, which are keyed hashes too."""
    subject = f"subject_{keyed_hash(key, 'subject:' + scan.subject)}" if scan.subject else ""
    session = f"session_{keyed_hash(key, 'session:' + scan.session)}" if scan.session else ""
    return {**cells, "subject_id": subject, "session_id": session}


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
    _inherit_splits(records, {row["case_id"] for row in rows})
    columns = list(dict.fromkeys([*cases.columns, *(name for row in rows for name in row)]))
    body = [[record.get(name, "") for name in columns] for record in records.values()]
    return pd.DataFrame(body, columns=columns, dtype=str)


def _inherit_splits(records: dict[str, dict[str, str]], new: set[str]) -> None:
    """Give new rows without a split the one of their subject: no subject may be in two splits."""
    of_subject: dict[str, str] = {}
    for record in records.values():
        if record.get("split") and record.get("subject_id"):
            of_subject.setdefault(record["subject_id"], record["split"])
    for case_id in new:
        record = records[case_id]
        if not record.get("split") and record.get("subject_id") in of_subject:
            record["split"] = of_subject[record["subject_id"]]


def _report(data: _Dataset, verdicts: Sequence[ScanVerdict]) -> Path:
    """Write ingest_report.json: the new verdicts take the place of older ones on the same scan."""
    path = data.folder / "ingest_report.json"
    seen = {(v.source, v.case_id) for v in verdicts} | {("", v.case_id) for v in verdicts if v.case_id}
    kept = [v for v in data.report.scans if (v.source, v.case_id) not in seen and ("", v.case_id) not in seen]
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
