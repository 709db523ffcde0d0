"""Predict: probabilities and numbers of a classifier for images that no dataset knows, under its contract."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.console import name_files, progress, say
from headctssl.contract import Contract, LabelSpec, column_slices
from headctssl.errors import HeadCTSSLError
from headctssl.finetuning.ensemble import Ensemble, Members, open_ensemble
from headctssl.finetuning.whole_head import encode, head_view
from headctssl.inference.output import output_file, refuse_existing, remove_old
from headctssl.inference.sources import (
    Failure,
    Ready,
    Source,
    exit_code,
    find_sources,
    prepared,
    print_failures,
    print_remarks,
    print_shared_names,
)
from headctssl.metrics.prediction_table import called_class, prediction_cells, prediction_columns
from headctssl.metrics.studies import Aggregate, Pooled, aggregated, group_scans
from headctssl.paths import atomic_path
from headctssl.planning.machine import available_cores, detect_machine
from headctssl.settings import JsonValue

__all__ = ["PredictResult", "predict"]


@dataclass(frozen=True)
class PredictResult:
    """What was predicted and what failed."""

    case_ids: tuple[str, ...]
    labels: tuple[str, ...]  # names
    specs: tuple[LabelSpec, ...]
    probabilities: NDArray[np.float64]  # (n, P), the columns of `column_slices`; continuous: the number
    failures: tuple[Failure, ...]
    file: Path | None  # None when every image failed
    studies: tuple[tuple[str, ...], ...] = ()  # where scans were brought together: case ids of each study
    study_probabilities: NDArray[np.float64] | None = None  # (studies, P)

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 2 all failed."""
        return exit_code(len(self.case_ids), len(self.failures))


def predict(
    input: str | Path,  # noqa: A002  the flag's name
    weights: str | Path,
    output: str | Path,
    *,
    aggregate: Aggregate | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> PredictResult:
    """Predict every image at or below a path.

    Images are read, straightened, cropped and resampled as the classifier's contract says, seen whole, and
    encoded in float32. An image that cannot be used is named and left out; the others go through. Of one that may be no
    head CT, as `headct_convert` judges it, a warning says so.

    Args:
        input: an image file, a DICOM folder, or a folder with images at any depth.
        weights: a classifier's file or fine-tuning folder; of a task with several folds the mean of all is taken.
        output: a .csv or .json file, or a folder for predictions.csv.
        aggregate: 'mean', 'max', or 'attention' of a classifier that has learnt it, which is then the default: also one
            prediction per study, in a second file whose name ends in ``_studies``. DICOM series of one patient and one
            study go together; any other image is its own study.
        device: 'cpu', 'cuda', 'cuda:1'; found when None.
        num_workers: reading threads; one per core, at most 4, when None.
        overwrite: replace an existing output; predictions by study of an earlier call, which would no longer fit, are
            removed or replaced too. When every image failed, both are removed.
        quiet: print errors and warnings only.

    Raises:
        UsageError: input, weights or output cannot be used, or the output exists and `overwrite` is False.
        DataError: there is no image, or the weights are damaged.
        ContractError: the weights are not a classifier's.
    """
    path = output_file(Path(output), "predictions.csv", (".csv", ".json"))
    studies_path = path.with_name(f"{path.stem}_studies{path.suffix}")
    refuse_existing([path, studies_path], overwrite=overwrite)
    ensemble = open_ensemble(weights)
    aggregate = ensemble.choose(aggregate)
    contract = ensemble.contract
    sources = find_sources(Path(input))
    target = torch.device(detect_machine(device).device)
    classifiers = ensemble.build(target)
    workers = min(4, available_cores()) if num_workers is None else num_workers
    images = sum(source.fault is None for source in sources)
    say(f"{images} images, {_kind(ensemble)} of {', '.join(s.name for s in contract.labels)}", quiet=quiet)
    print_shared_names(sources, quiet=quiet)
    ready = prepared(sources, contract.storage, min(workers, len(sources) - 1))
    encoded = _encode(progress(ready, "predict", len(sources), quiet=quiet), classifiers, contract, target, quiet)
    specs = contract.labels
    outputs = torch.cat(encoded.rows) if encoded.rows else torch.zeros(0, ensemble.width * len(ensemble.files))
    table = ensemble.predictions(outputs)
    print_failures(encoded.failures)
    names, case_ids = tuple(spec.name for spec in specs), tuple(encoded.case_ids)
    result = PredictResult(case_ids, names, specs, table, tuple(encoded.failures), path if case_ids else None)
    if not case_ids:
        remove_old([path, studies_path])
        return result
    studies_path.unlink(missing_ok=True)
    _write(path, case_ids, specs, table)
    files = [path]
    if aggregate is not None:
        result = _by_study(result, encoded.studies, aggregate, lambda groups: ensemble.of_studies(outputs, groups))
        assert result.study_probabilities is not None, "just made"
        files.append(studies_path)
        first = [group[0] for group in result.studies]
        _write(studies_path, first, specs, result.study_probabilities, [len(group) for group in result.studies])
    name_files(files, quiet=quiet)
    return result


@dataclass
class _Encoded:
    """What the classifiers say of the images that could be used, and the others."""

    case_ids: list[str] = field(default_factory=list)
    studies: list[tuple[str, str]] = field(default_factory=list)  # patient and study; '' = unknown
    rows: list[Tensor] = field(default_factory=list)  # (1, outputs) each
    failures: list[Failure] = field(default_factory=list)


def _encode(
    images: Iterable[tuple[Source, Ready | HeadCTSSLError]],
    classifiers: Members,
    contract: Contract,
    device: torch.device,
    quiet: bool,
) -> _Encoded:
    """Run the classifiers on images as they become ready, one by one."""
    done = _Encoded()
    for source, found in images:
        if isinstance(found, HeadCTSSLError):
            done.failures.append(Failure(source.case_id, found))
            continue
        print_remarks(found, quiet=quiet)
        case = found.case
        view = head_view(case.hu, case.head_box, case.spacing_mm, contract.input, device)
        done.case_ids.append(source.case_id)
        done.studies.append(source.study)
        done.rows.append(encode(classifiers, [view], device))
    return done


def _kind(ensemble: Ensemble) -> str:
    count = len(ensemble.files)
    preset = ensemble.contract.preset
    return f"{preset} classifier" if count == 1 else f"mean of the {preset} classifiers of {count} folds"


def _by_study(
    result: PredictResult, studies: Sequence[tuple[str, str]], how: Aggregate, pooled: Pooled
) -> PredictResult:
    """The same with one prediction per study."""
    groups = group_scans(result.case_ids, [study[0] for study in studies], [study[1] for study in studies])
    if how == "attention":
        table = pooled(groups)
    else:
        table = np.array([aggregated(result.specs, result.probabilities[group], how) for group in groups])
    members = tuple(tuple(result.case_ids[row] for row in group) for group in groups)
    return replace(result, studies=members, study_probabilities=table)


def _write(
    path: Path,
    case_ids: Sequence[str],
    specs: Sequence[LabelSpec],
    table: NDArray[np.float64],
    num_scans: Sequence[int] | None = None,
) -> None:
    """Write predictions; of studies with `num_scans`, each under the case id of its first scan."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        if path.suffix.lower() == ".json":
            rows = [
                {"case_id": case_id, **({} if num_scans is None else {"num_scans": num_scans[k]}), **_entry(specs, row)}
                for k, (case_id, row) in enumerate(zip(case_ids, table, strict=True))
            ]
            json.dump({"format": 1, "predictions": rows}, handle, indent=2)
            handle.write("\n")
        else:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["case_id", *([] if num_scans is None else ["num_scans"]), *prediction_columns(specs)])
            for k, (case_id, row) in enumerate(zip(case_ids, table, strict=True)):
                counted = [] if num_scans is None else [str(num_scans[k])]
                writer.writerow([case_id, *counted, *prediction_cells(specs, row)])


def _entry(specs: Sequence[LabelSpec], row: NDArray[np.float64]) -> dict[str, JsonValue]:
    """One image of predictions.json: `probabilities` by label or by class; `classes` called and `values` where any."""
    probabilities: dict[str, JsonValue] = {}
    classes: dict[str, JsonValue] = {}
    values: dict[str, JsonValue] = {}
    for spec, where in zip(specs, column_slices(specs), strict=True):
        numbers = row[where]
        if spec.has_classes:
            probabilities[spec.name] = dict(zip(spec.classes, numbers.tolist(), strict=True))
            classes[spec.name] = spec.classes[int(called_class(spec, numbers[None])[0])]
        elif spec.type == "continuous":
            values[spec.name] = float(numbers[0])
        else:
            probabilities[spec.name] = float(numbers[0])
    entry: dict[str, JsonValue] = {"probabilities": probabilities}
    return entry | ({"classes": classes} if classes else {}) | ({"values": values} if values else {})
