"""Convert: scans as they come become cases of a raw dataset, with a verdict on each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from headctssl.dataset.where import parse_where
from headctssl.errors import DataError, UsageError
from headctssl.ingest.conversion import Conversion
from headctssl.ingest.converters import load_converter
from headctssl.ingest.growing import folder_of, growing
from headctssl.ingest.one_scan import Reading
from headctssl.ingest.privacy import key_path, subject_key
from headctssl.ingest.scan import Found
from headctssl.ingest.scan_filter import read_scan_filter
from headctssl.ingest.screening import Rules, parse_selection
from headctssl.ingest.selection import Selection
from headctssl.ingest.told import ConvertResult, print_result
from headctssl.paths import data_root

__all__ = ["ConvertResult", "convert"]


def convert(
    source: str | Path,
    dataset_id: int,
    *,
    source_format: str,
    name: str | None = None,
    labels: str | Path | None = None,
    scan_filter: str | Path | None = None,
    where: str | None = None,
    select: str | Selection = "all",
    keep_detail: bool = False,
    fill_gaps: bool = False,
    repair_intensity: bool = False,
    key: str | Path | None = None,
    dry_run: bool = False,
    num_workers: int | None = None,
    quiet: bool = False,
    overwrite: bool = False,
) -> ConvertResult:
    """Make a raw dataset of scans, or add them to an existing one.

    In this order: the scans of the source are found; headers that cannot be those of a head CT are
    rejected; the scan filter, the condition and the selection leave out what was not asked for; the rest is
    read in full, straightened, judged, and written as one NIfTI file each in Hounsfield units. Case,
    subject and session ids are keyed hashes, dates become days. Scans that fail are named with their
    reasons and do not stop the others. A scan that is in the dataset already, or was rejected before and has
    not changed, is not read again. Every finished scan is noted at once, so that the same call goes on
    where a killed one stopped.

    Args:
        source: what to convert: a folder or an image file.
        dataset_id: number of the dataset, new or existing.
        source_format: a name of `ingest.converters.CONVERTERS`.
        name: name of a new dataset; "HeadCT" when None.
        labels: CSV with labels and metadata by image, for formats that take one.
        scan_filter: CSV of allowed (Study Description, KVP, Convolution Kernel); see `read_scan_filter`.
        where: condition on the columns of cases.csv; see `parse_where`.
        select: which series of a study are kept: "all", "one", or settings of `Selection`.
        keep_detail: where a stack is resampled, space slices by its smallest gap (not under 0.5 mm).
        fill_gaps: interpolate where slices are missing.
        repair_intensity: make Hounsfield units of values that are recognised as something else.
        key: file of the secret key; `.subject_key` of the raw data root when None. The list of sources,
            ingest_sources.csv, is written beside it.
        dry_run: read and judge, write nothing.
        num_workers: processes; None = one per core.
        quiet: print nothing.
        overwrite: convert scans that are in the dataset already again.

    Raises:
        UsageError: unknown format, missing source, a rule that cannot be read, or a name that is not the
            existing dataset's.
        DataError: the source holds no scan, or the existing dataset, the labels or the key cannot be used;
            raised before any scan is read in full.
    """
    find_scans = load_converter(source_format)
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError("The source does not exist.", got=path, expected="a folder or file", do="Check the path.")
    rules = Rules(
        read_scan_filter(scan_filter) if scan_filter is not None else None,
        parse_where(where) if where is not None else None,
        select if isinstance(select, Selection) else parse_selection(select),
    )
    folder = folder_of(dataset_id, name)
    key_file = key_path(data_root("raw"), key)
    found = _find(find_scans, path, source_format, labels, {"num_workers": num_workers, "quiet": quiet})
    secret = subject_key(key_file, create=not dry_run)
    with growing(folder, found, secret, key_file, dry_run=dry_run) as data:
        reading = Reading(keep_detail, fill_gaps, repair_intensity)
        origin = "the source" if labels is None else Path(labels).name
        work = Conversion(data, rules, reading, dry_run=dry_run, origin=origin)
        work.run(found, num_workers=num_workers, quiet=quiet, overwrite=overwrite)
    result = work.result(found)
    print_result(result, (*found.remarks, *work.remarks), dry_run=dry_run, quiet=quiet)
    return result


def _find(
    find_scans: Callable[..., Found],
    path: Path,
    source_format: str,
    labels: str | Path | None,
    how: Mapping[str, object],
) -> Found:
    """Run the converter with what it takes."""
    if source_format == "dicom" and not path.is_dir():
        raise UsageError("The source is a file.", got=path, expected="a folder", do="Name the folder of the slices.")
    taken = inspect.signature(find_scans).parameters
    options = {name: value for name, value in how.items() if name in taken}
    if labels is not None:
        if "labels" not in taken:
            raise UsageError(
                f"--labels does not go with --from {source_format}.",
                got=labels,
                expected="--from folder",
                do="Convert without it, then fill the label columns of cases.csv by case id.",
            )
        options["labels"] = Path(labels).expanduser()
    found = find_scans(path, **options)
    if not found.scans and not found.rejected:
        there = "; ".join(entry.reason for entry in found.ignored)
        raise DataError(
            f"No scan was found in {path}.",
            got=there or "nothing",
            expected=f"what --from {source_format} reads",
            do="Check the path and the value of --from.",
        )
    return found
