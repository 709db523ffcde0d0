"""Convert: make a raw dataset from image files or DICOM folders, or add to one; a verdict per scan."""

from __future__ import annotations

import argparse
import functools

from headctssl.cli.common import add_common, add_datasets
from headctssl.cli.main import run_command
from headctssl.ingest.converters import CONVERTERS

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `headct_convert`."""
    formats = "; ".join(f"{name}: {entry.description}" for name, entry in CONVERTERS.items())
    parser.add_argument("source", metavar="SOURCE", help="folder or image file to convert")
    add_datasets(parser)
    parser.add_argument("--from", dest="source_format", choices=sorted(CONVERTERS), required=True, help=formats)
    parser.add_argument("--name", default=None, help="name of a new dataset; HeadCT when not given")
    parser.add_argument(
        "--labels",
        default=None,
        metavar="CSV",
        help="labels, metadata and masks by image, with a column 'image' or 'case_id'; for --from folder",
    )
    parser.add_argument(
        "--keep_detail",
        action="store_true",
        help="space the slices of uneven or tilted stacks by their smallest gap, not their median gap",
    )
    parser.add_argument("--fill_gaps", action="store_true", help="interpolate where slices are missing")
    parser.add_argument(
        "--repair_intensity",
        action="store_true",
        help="make Hounsfield units of values recognised as HU plus a constant, Cormack units or a misread sign",
    )
    parser.add_argument(
        "--scan_filter",
        default=None,
        metavar="CSV",
        help="allow-list with the columns Study Description, KVP, Convolution Kernel; other scans are left out",
    )
    parser.add_argument(
        "--where",
        default=None,
        metavar="EXPR",
        help='keep scans whose columns satisfy this, such as "slice_thickness_mm <= 2.5 and contrast is unknown"',
    )
    parser.add_argument(
        "--select",
        default="all",
        metavar="RULE",
        help="series kept of each study: all (default), one, or settings such as kernel=soft,thickness=thinnest,"
        "orientation=axial,per_study=1",
    )
    parser.add_argument(
        "--key",
        default=None,
        metavar="FILE",
        help="secret key of the hashed ids, made when missing; .subject_key of headctssl_raw when not given",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="read and judge every scan, show what would be kept and why, write nothing",
    )
    add_common(parser, num_workers=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Convert; 0 done, 1 some scans were rejected, 2 all were."""
    from headctssl.ingest.convert import convert
    from headctssl.ingest.report import REPORT_FILE

    result = convert(
        args.source,
        args.dataset_id,
        source_format=args.source_format,
        name=args.name,
        labels=args.labels,
        scan_filter=args.scan_filter,
        where=args.where,
        select=args.select,
        keep_detail=args.keep_detail,
        fill_gaps=args.fill_gaps,
        repair_intensity=args.repair_intensity,
        key=args.key,
        dry_run=args.dry_run,
        num_workers=args.num_workers,
        quiet=args.quiet,
        overwrite=args.overwrite,
    )
    if not args.dry_run and (result.folder / REPORT_FILE).is_file():
        from headctssl.reporting.report import report_at_end

        report_at_end(result.folder, quiet=args.quiet)
    return result.exit_code


main = functools.partial(run_command, "convert")
