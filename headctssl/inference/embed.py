"""Embed: the encoder's feature vectors of files, DICOM folders or a dataset, under its contract."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from headctssl.console import name_files, progress
from headctssl.contract import Contract
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.errors import DataError, HeadCTSSLError, UsageError
from headctssl.finetuning.tasks import Features
from headctssl.finetuning.whole_head import encode, head_view, stored_views
from headctssl.inference.output import output_file, refuse_existing, remove_old
from headctssl.inference.sources import (
    Failure,
    exit_code,
    find_sources,
    prepared,
    print_failures,
    print_remarks,
    print_shared_names,
)
from headctssl.paths import atomic_path
from headctssl.planning.machine import available_cores, detect_machine
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.training.checkpoint import load_encoder

__all__ = ["EmbedResult", "embed"]

_BATCH = 8  # stored cases encoded at once


@dataclass(frozen=True)
class EmbedResult:
    """The vectors and what failed."""

    case_ids: tuple[str, ...]
    vectors: NDArray[np.float32]  # (n, C)
    failures: tuple[Failure, ...]
    file: Path | None  # None when every image failed

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 2 all failed."""
        return exit_code(len(self.case_ids), len(self.failures))


def embed(
    input: str | Path | None,  # noqa: A002  the flag's name
    weights: str | Path,
    output: str | Path,
    *,
    dataset_id: int | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    overwrite: bool = False,
    quiet: bool = False,
) -> EmbedResult:
    """Compute the encoder's features of every image at or below a path, or of every case of a dataset.

    Args:
        input: an image file, a DICOM folder, or a folder with images at any depth; None with `dataset_id`.
        weights: an encoder's or classifier's file or run folder.
        output: a .csv or .npz file, or a folder for embeddings.csv. A .npz holds `case_id` (n,) and `vector` (n, C).
        dataset_id: a raw dataset instead of `input`; preprocessed under the contract when that is missing.
        device: 'cpu', 'cuda', 'cuda:1'; found when None.
        num_workers: readers; found when None.
        precision: 'bf16' is about twice as fast where the device multiplies in it; vectors differ in the third digit.
        overwrite: replace an existing output; it is removed when every image failed.
        quiet: print errors and warnings only.

    Raises:
        UsageError: input, weights or output cannot be used, or the output exists and `overwrite` is False.
        DataError: there is no image, or the weights are damaged.
    """
    if (input is None) == (dataset_id is None):
        raise UsageError(
            "Embedding needs one source.",
            got="both -i and -d" if input is not None else "neither -i nor -d",
            expected="-i PATH or -d N",
            do="Give one of them.",
        )
    path = output_file(Path(output), "embeddings.csv", (".csv", ".npz"))
    refuse_existing([path], overwrite=overwrite)
    target = torch.device(detect_machine(device).device)
    encoder = load_encoder(weights, target)
    contract = encoder.contract
    assert contract is not None, "load_encoder attaches the contract"
    module = Features(encoder).eval()
    encode_views = functools.partial(encode, module, device=target, half=precision == "bf16")
    if dataset_id is not None:
        case_ids, vectors, failures = _dataset(dataset_id, encode_views, contract, target, num_workers, quiet)
    else:
        assert input is not None
        case_ids, vectors, failures = _files(Path(input), encode_views, contract, target, num_workers, quiet)
    print_failures(failures)
    if case_ids:
        _write(path, case_ids, vectors)
        name_files([path], quiet=quiet)
    else:
        remove_old([path])
    return EmbedResult(tuple(case_ids), vectors, tuple(failures), path if case_ids else None)


Encode = Callable[[Iterable[torch.Tensor]], torch.Tensor]
Found = tuple[list[str], NDArray[np.float32], list[Failure]]


def _files(
    root: Path, encode_views: Encode, contract: Contract, device: torch.device, num_workers: int | None, quiet: bool
) -> Found:
    sources = find_sources(root)
    print_shared_names(sources, quiet=quiet)
    workers = min(4, available_cores()) if num_workers is None else num_workers
    case_ids: list[str] = []
    rows: list[NDArray[np.float32]] = []
    failures: list[Failure] = []
    ready = prepared(sources, contract.storage, min(workers, len(sources) - 1))
    for source, found in progress(ready, "embed", len(sources), quiet=quiet):
        if isinstance(found, HeadCTSSLError):
            failures.append(Failure(source.case_id, found))
            continue
        print_remarks(found, quiet=quiet)
        case = found.case
        view = head_view(case.hu, case.head_box, case.spacing_mm, contract.input, device)
        case_ids.append(source.case_id)
        rows.append(encode_views([view])[0].numpy())
    vectors = np.array(rows, dtype=np.float32) if rows else np.zeros((0, 0), dtype=np.float32)
    return case_ids, vectors, failures


def _dataset(
    dataset_id: int,
    encode_views: Encode,
    contract: Contract,
    device: torch.device,
    num_workers: int | None,
    quiet: bool,
) -> Found:
    raw = load_raw_dataset(dataset_id)
    index = ensure_preprocessed(dataset_id, contract.storage, quiet=quiet, num_workers=num_workers)
    index = index.subset(raw.case_ids)
    stored = set(index.case_ids)
    failures = [Failure(case_id, _not_stored(case_id)) for case_id in raw.case_ids if case_id not in stored]
    if not stored:
        return [], np.zeros((0, 0), dtype=np.float32), failures
    workers = min(4, max(1, available_cores() - 1)) if num_workers is None else num_workers
    views = stored_views(index, contract.input, batch_size=_BATCH, num_workers=workers, device=device)
    batches = -(-len(index) // _BATCH)

    def watched() -> Iterator[torch.Tensor]:
        yield from progress(views, "embed batches", batches, quiet=quiet)

    return index.case_ids, encode_views(watched()).numpy(), failures


def _not_stored(case_id: str) -> DataError:
    return DataError(
        f"The case '{case_id}' could not be preprocessed.",
        got="no stored case",
        expected="a readable head CT",
        do="See preprocessing_report.json for the reason.",
    )


def _write(path: Path, case_ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, case_id=np.array(case_ids), vector=vectors)
            return
        with open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["case_id", *(f"feature_{i}" for i in range(vectors.shape[1]))])
            writer.writerows(
                [case_id, *(f"{v:.8g}" for v in row)] for case_id, row in zip(case_ids, vectors, strict=True)
            )
