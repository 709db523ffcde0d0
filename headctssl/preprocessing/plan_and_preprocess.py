"""Plan and preprocess: fingerprint, plans, splits and stored cases of one or more datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from headctssl.console import say
from headctssl.contract import Contract, StorageRule, require_same
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.errors import ContractError, UsageError
from headctssl.paths import preprocessed_dataset
from headctssl.planning.fingerprint import extract_fingerprint
from headctssl.planning.planner import plan_experiment
from headctssl.planning.plans import Plans, SplitRule, load_plans, plans_path
from headctssl.planning.splits_file import ensure_splits
from headctssl.preprocessing.index import INDEX_NAME, CaseIndex
from headctssl.preprocessing.lock import BusyError, alone, wait_until_free
from headctssl.preprocessing.output import writing
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.report import REPORT_NAME, PreprocessingReport
from headctssl.preprocessing.stop import stoppable
from headctssl.settings import read_json

__all__ = ["ensure_preprocessed", "plan_and_preprocess", "storage_of_checkpoint"]

_HEADER = "headctssl_contract"  # key in the safetensors header, as training.checkpoint writes it
_WEIGHTS = ("encoder.safetensors", "classifier.safetensors")


def plan_and_preprocess(
    dataset_ids: Sequence[int],
    *,
    plans_name: str = "plans",
    like: str | Path | None = None,
    gpu_memory: float | None = None,
    replan: bool = False,
    verify: bool = False,
    num_workers: int | None = None,
    scheduler: str | None = None,
    part: int | None = None,
    parts: int | None = None,
    retries: int = 1,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[PreprocessingReport, ...]:
    """Fingerprint, plan and preprocess datasets; or preprocess them as a checkpoint needs it.

    Existing plans are kept unless `replan`, and the fingerprint is taken only when plans are made.
    Of the parts of a job array the first one plans, and the others wait for it.

    Args:
        dataset_ids: the numbers of the raw datasets.
        plans_name: `plans`, or another name for a second plan beside the first.
        like: a checkpoint or run folder: its storage rule is used and no plans are made.
        gpu_memory: GB that a training step of two scans must fit.
        replan: plan again although plans exist.
        verify: check sources and stored cases by their sums.
        num_workers: processes; one per core when None.
        scheduler: address of a dask.distributed scheduler that preprocesses; planning is done here.
        part: which part of the cases, see `preprocess`.
        parts: how many parts there are.
        retries: how often a case is tried again, see `preprocess`.
        overwrite: store every case anew.
        quiet: print nothing.

    Returns:
        One report per dataset; the cases left out are in `failures`.

    Raises:
        UsageError: `like` together with a planning flag, `replan` or `gpu_memory` with a part, or an unknown dataset;
            and see `preprocess`.
        DataError: a dataset is not usable, or every case of it failed.
        ContractError: the checkpoint has no contract.
        StoppedError: a signal came; the same call goes on.
    """
    store = partial(
        preprocess,
        num_workers=num_workers,
        scheduler=scheduler,
        part=part,
        parts=parts,
        retries=retries,
        verify=verify,
        overwrite=overwrite,
        quiet=quiet,
    )
    planning = (("--gpu_memory", gpu_memory is not None), ("--replan", replan))
    if like is None:
        _require_one_plan(planning, part)
        planned = ((n, _planned(n, plans_name, gpu_memory, replan, num_workers, quiet)) for n in dataset_ids)
        return tuple(store(n, rule=plans.storage, layout=plans.layout) for n, plans in planned)
    _require_no_planning((("-p", plans_name != "plans"), *planning))
    rule = storage_of_checkpoint(Path(like))
    say(f"storage rule of the checkpoint: {rule.storage_id}", quiet=quiet)
    return tuple(_preprocess_like(n, rule, store, quiet) for n in dataset_ids)


def _require_one_plan(flags: Iterable[tuple[str, bool]], part: int | None) -> None:
    """Refuse flags that only the part which happens to plan could follow."""
    for flag, given in flags:
        if given and part is not None:
            raise UsageError(
                f"{flag} has no effect with --part.",
                got=f"{flag} and --part",
                expected="one of them: parts of one array must have one plan",
                do=f"Plan first: headct_extract_fingerprint and headct_plan_experiment {flag}; then start the parts.",
            )


def _require_no_planning(flags: Iterable[tuple[str, bool]]) -> None:
    """Refuse flags of plans where a checkpoint says what is stored."""
    for flag, given in flags:
        if given:
            raise UsageError(
                f"{flag} has no effect with --like.",
                got=f"--like and {flag}",
                expected="one of them",
                do="With --like the checkpoint's storage rule is used and no plans are made.",
            )


def _preprocess_like(
    dataset_id: int, rule: StorageRule, store: Callable[..., PreprocessingReport], quiet: bool
) -> PreprocessingReport:
    """Store one dataset under the rule of a checkpoint, and give it splits."""
    own = _with_own_masks(dataset_id, rule)
    report = store(dataset_id, rule=own)
    if (preprocessed_dataset(dataset_id) / own.storage_id / INDEX_NAME).is_file():  # not before all parts are done
        _default_splits(dataset_id, own, quiet)
    return report


def _planned(
    dataset_id: int, plans_name: str, gpu_memory: float | None, replan: bool, num_workers: int | None, quiet: bool
) -> Plans:
    """The plans, which are made when they are missing: by one command, others wait for it."""
    folder = preprocessed_dataset(dataset_id)
    # An unknown dataset or another modality is told before anything is written.
    name = load_raw_dataset(dataset_id).folder.name
    with writing(folder), stoppable(f"Planning of {name}"):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if replan or not plans_path(dataset_id, plans_name).is_file():
                extract_fingerprint(dataset_id, num_workers=num_workers, quiet=quiet)
            plans = plan_experiment(dataset_id, plans_name, gpu_memory=gpu_memory, replan=replan, quiet=quiet)
    return plans


def ensure_preprocessed(
    dataset_id: int, rule: StorageRule, *, quiet: bool = False, num_workers: int | None = None
) -> CaseIndex:
    """The stored cases of a dataset under a rule; preprocesses when some were never tried, and says so.

    Also makes splits.json when it is missing, and gives added cases their place in it. Needs no plans. Where another
    run preprocesses the dataset it is waited for.

    Args:
        dataset_id: the number of the dataset.
        rule: the storage rule, of plans or of a checkpoint's contract; the masks are those of the dataset's plans.
        quiet: print nothing.
        num_workers: processes; one per core when None.

    Raises:
        HeadCTSSLError: see `preprocess`; ContractError when the folder holds cases of another rule.
    """
    rule = _with_own_masks(dataset_id, rule)
    while True:
        try:
            return _ensure(dataset_id, rule, quiet, num_workers)
        except BusyError:  # the processes of a distributed run, or several runs, find it missing at the same time
            wait_until_free(preprocessed_dataset(dataset_id), quiet=quiet)


def _ensure(dataset_id: int, rule: StorageRule, quiet: bool, num_workers: int | None) -> CaseIndex:
    storage = preprocessed_dataset(dataset_id) / rule.storage_id
    if not (storage / INDEX_NAME).is_file():
        say(f"dataset {dataset_id} is not preprocessed as {rule.storage_id} yet: doing it now", quiet=quiet)
        preprocess(dataset_id, rule=rule, num_workers=num_workers, quiet=quiet)
    index = CaseIndex.open(storage)
    if len(index):
        require_same("storage", index.storage_digest, rule.digest(), "Run headct_plan_and_preprocess with --overwrite.")
    added = _never_tried(dataset_id, index, rule)
    if added:
        say(
            f"dataset {dataset_id}: {added} cases were added since it was preprocessed as {rule.storage_id}: "
            "doing them now",
            quiet=quiet,
        )
        preprocess(dataset_id, rule=rule, num_workers=num_workers, quiet=quiet)
        index = CaseIndex.open(storage)
    _default_splits(dataset_id, rule, quiet)
    return index


def _with_own_masks(dataset_id: int, rule: StorageRule) -> StorageRule:
    """The rule with the masks of the dataset's own plans, where these store the same voxels.

    Which masks lie beside the voxels is no matter of a checkpoint: with the masks of the dataset it
    was trained on, every scan of this one would be stored once more.
    """
    if not plans_path(dataset_id).is_file():
        return rule
    own = load_plans(dataset_id).storage
    return own if own.with_masks(rule.masks) == rule else rule


def _never_tried(dataset_id: int, index: CaseIndex, rule: StorageRule) -> int:
    """How many cases of the raw dataset are neither stored nor among the failures of the last preprocessing."""
    tried = set(index.case_ids)
    path = preprocessed_dataset(dataset_id) / REPORT_NAME
    if path.is_file():
        report = read_json(path, PreprocessingReport, do="Make it anew with headct_preprocess.")
        if report.storage_id == rule.storage_id:
            tried |= {failure.case_id for failure in report.failures}
    return len(set(load_raw_dataset(dataset_id).case_ids) - tried)


def _default_splits(dataset_id: int, rule: StorageRule, quiet: bool) -> None:
    """Make splits.json from the stored cases when it is missing, by the default rule; else add those it lacks."""
    folder = preprocessed_dataset(dataset_id)
    index = CaseIndex.open(folder / rule.storage_id)
    ensure_splits(load_raw_dataset(dataset_id), folder, SplitRule(), index.case_ids, quiet=quiet)


def storage_of_checkpoint(path: Path) -> StorageRule:
    """The storage rule in the contract of a checkpoint.

    Args:
        path: a safetensors file, a contract.json, or the folder of a run.

    Raises:
        UsageError: the path does not exist.
        ContractError: there is no contract, or it does not fit this version.
    """
    if not path.exists():
        raise UsageError(
            "The checkpoint does not exist.", got=path, expected="a file or run folder", do="Check the path."
        )
    candidates = [path / name for name in (*_WEIGHTS, "contract.json")] if path.is_dir() else [path]
    file = next((c for c in candidates if c.is_file()), path)
    text = file.read_text(encoding="utf-8") if file.suffix == ".json" else _header(file)
    if text is None:
        raise ContractError(
            f"{path} carries no contract, so nobody knows how its input must be made.",
            got="no contract",
            expected=f"a run folder, or one of {', '.join(_WEIGHTS)}",
            do="Name a checkpoint that headct_pretrain or headct_finetune wrote.",
        )
    try:
        return Contract.model_validate_json(text).storage
    except ValidationError as error:
        raise ContractError(
            f"The contract of {path} does not fit this version of headctssl.",
            got=error.errors()[0]["msg"],
            expected="a contract of format 1",
            do="Use the version that wrote it.",
        ) from None


def _header(file: Path) -> str | None:
    """The contract in the header of a safetensors file: 8 bytes length, then JSON; None when there is none."""
    if not file.is_file() or file.suffix != ".safetensors":
        return None
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 0 < length <= file.stat().st_size:
            return None
        try:
            header = json.loads(handle.read(length))
        except ValueError:
            return None
    contract = header.get("__metadata__", {}).get(_HEADER) if isinstance(header, dict) else None
    return contract if isinstance(contract, str) else None
