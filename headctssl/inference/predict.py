"""Predict: probabilities of a classifier for images that no dataset knows, under its contract."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headctssl.console import name_files, progress, say
from headctssl.errors import HeadCTSSLError
from headctssl.finetuning.tasks import classifier_from
from headctssl.finetuning.whole_head import encode, head_view
from headctssl.inference.sources import (
    Failure,
    exit_code,
    find_sources,
    output_file,
    prepared,
    print_failures,
)
from headctssl.paths import atomic_path
from headctssl.planning.machine import available_cores, detect_machine
from headctssl.training.checkpoint import load_weights

__all__ = ["PredictResult", "predict"]


@dataclass(frozen=True)
class PredictResult:
    """What was predicted and what failed."""

    case_ids: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float64]  # (n, L)
    failures: tuple[Failure, ...]
    file: Path | None  # None when every image failed

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 2 all failed."""
        return exit_code(len(self.case_ids), len(self.failures))


def predict(
    input: str | Path,  # noqa: A002  the flag's name
    weights: str | Path,
    output: str | Path,
    *,
    device: str | None = None,
    num_workers: int | None = None,
    quiet: bool = False,
) -> PredictResult:
    """Predict every image at or below a path.

    Images are read, straightened, cropped and resampled as the classifier's contract says, seen whole, and
    encoded in float32. An image that cannot be used is named and left out; the others go through.

    Args:
        input: an image file, a DICOM folder, or a folder with images at any depth.
        weights: a classifier's file or fine-tuning folder.
        output: a .csv or .json file, or a folder for predictions.csv.
        device: 'cpu', 'cuda', 'cuda:1'; found when None.
        num_workers: reading threads; one per core, at most 4, when None.
        quiet: print errors only.

    Raises:
        UsageError: input, weights or output cannot be used.
        DataError: there is no image, or the weights are damaged.
        ContractError: the weights are not a classifier's.
    """
    path = output_file(Path(output), "predictions.csv", (".csv", ".json"))
    loaded = load_weights(weights, "classifier")
    contract = loaded.contract
    sources = find_sources(Path(input))
    target = torch.device(detect_machine(device).device)
    classifier = classifier_from(contract, loaded.tensors).to(target)
    workers = min(4, available_cores()) if num_workers is None else num_workers
    say(
        f"{len(sources)} images, {contract.preset} classifier of {', '.join(s.name for s in contract.labels)}",
        quiet=quiet,
    )
    case_ids: list[str] = []
    rows: list[NDArray[np.float64]] = []
    failures: list[Failure] = []
    ready = prepared(sources, contract.storage, min(workers, len(sources) - 1))
    for source, found in progress(ready, "predict", len(sources), quiet=quiet):
        if isinstance(found, HeadCTSSLError):
            failures.append(Failure(source.case_id, found))
            continue
        for note in found.notes:
            say(f"{source.case_id}: {note}", quiet=quiet)
        case = found.case
        view = head_view(case.hu, case.head_box, case.spacing_mm, contract.input, target)
        logits = encode(classifier, [view], target)[0]
        case_ids.append(source.case_id)
        rows.append(torch.sigmoid(logits.double() / contract.temperature).numpy())
    names = tuple(spec.name for spec in contract.labels)
    table = np.array(rows, dtype=np.float64).reshape(-1, len(names))
    print_failures(failures)
    if case_ids:
        _write(path, case_ids, names, table)
        name_files([path], quiet=quiet)
    return PredictResult(tuple(case_ids), names, table, tuple(failures), path if case_ids else None)


def _write(path: Path, case_ids: Sequence[str], names: Sequence[str], table: NDArray[np.float64]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        if path.suffix.lower() == ".json":
            rows = [
                {"case_id": case_id, "probabilities": dict(zip(names, row, strict=True))}
                for case_id, row in zip(case_ids, table.tolist(), strict=True)
            ]
            json.dump({"format": 1, "predictions": rows}, handle, indent=2)
            handle.write("\n")
        else:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["case_id", *names])
            writer.writerows(
                [case_id, *(f"{p:.6g}" for p in row)] for case_id, row in zip(case_ids, table, strict=True)
            )
