"""Resolve batch: step 9, what an objective must change for small batches and data.

A method's settings class holds the published numbers. Rules here apply to a method when it has the
field they name, so a new self-distillation method gets them without another line.
"""

from __future__ import annotations

from headctssl.errors import UsageError
from headctssl.planning import resolve_targets
from headctssl.planning.decisions import Asked, Ledger, given_field
from headctssl.settings import Settings

__all__ = ["MOST_PROTOTYPES_PER_SCAN", "for_batch"]

MOST_PROTOTYPES_PER_SCAN = 512
"""Prototypes per scan of a step above which a run is refused: 65,536 at batch 256 has 256, at batch 16 4,096."""

_PROTOTYPES_PER_SCAN = 64  # 16,384 at batch 256, 65,536 at batch 1,024
_PROTOTYPES_PER_CASE = 32
_FEWEST_PROTOTYPES = 256
_PUBLISHED_GAUSSIAN_BATCH = 256  # the batch that LeJEPA's weight belongs to
_LARGEST_GAUSSIAN_WEIGHT = 0.5
_FEWEST_SCANS_OF_KOLEO = 4
_ENOUGH_FOR_CENTRING = 64
_KOLEO = 0.1  # of DINOv2, for a method that has none of its own
_FEWEST_SCANS_TO_COMPARE = 2


def for_batch(
    ledger: Ledger,
    asked: Asked,
    method: Settings,
    *,
    batch_size: int,
    accumulation: int,
    num_cases: int,
) -> Settings:
    """Step 9. Prototypes, targets, temperatures, KoLeo, the Gaussian term, the next scan, where the method has them."""
    method = _prototypes(ledger, asked, method, batch_size, num_cases)
    resolve_targets.for_batch(ledger, asked, method)
    method = _koleo(ledger, asked, method, batch_size, accumulation)
    method = _gaussian(ledger, asked, method, batch_size)
    return _next_scan(ledger, asked, method, batch_size)


def _prototypes(ledger: Ledger, asked: Asked, method: Settings, batch_size: int, num_cases: int) -> Settings:
    """Step 9a. Prototypes.

    Rule: K = the largest power of two that is at most 65,536, 64 per scan of a step and 32 per
    training case, but at least 256. A K set by the user is refused above 512 per scan of a step.
    Source: dinov2 issues 143, 173, 272, 298, 314, 492 (K = 65,536 at batch 16: flat loss or NaN);
    4,096-16,384 is advised for batches up to 256. Assumption: what counts is how many scans of a
    step can vote for a prototype, so K follows the batch.
    """
    published = getattr(method, "prototypes", None)
    if not isinstance(published, int):
        return method
    most = min(65_536, _PROTOTYPES_PER_SCAN * batch_size, _PROTOTYPES_PER_CASE * num_cases)
    derived = _power_of_two(max(_FEWEST_PROTOTYPES, most))
    given = asked.count("method.prototypes", least=2)
    if given is not None and given > MOST_PROTOTYPES_PER_SCAN * batch_size:
        need = -(-given // MOST_PROTOTYPES_PER_SCAN)
        raise UsageError(
            "So many prototypes cannot be learned at this batch size: the loss stays flat or becomes NaN.",
            got=f"method.prototypes={given} at a batch of {batch_size}",
            expected=f"at most {MOST_PROTOTYPES_PER_SCAN * batch_size} ({MOST_PROTOTYPES_PER_SCAN} per scan of a step)",
            do=f"Set method.prototypes={derived}, or a batch of {need} or more with training.batch_size={need}.",
        )
    chosen = ledger.take(
        "prototypes K",
        derived,
        given,
        "power of two, at most 65,536, 64 per scan of a step and 32 per case, at least 256",
        "dinov2 issues 143, 173, 272, 298, 314, 492; arXiv 2304.07193",
        f"batch {batch_size}, {num_cases} cases",
    )
    return method.model_copy(update={"prototypes": chosen})


def _koleo(ledger: Ledger, asked: Asked, method: Settings, batch_size: int, accumulation: int) -> Settings:
    """Step 9c. KoLeo.

    Rule: the published weight; a method that has none of its own gets DINOv2's .1 below 64 scans per
    step, unless the batch is accumulated, which KoLeo forbids; 0 below 4 scans per step. Source: arXiv
    2304.07193, section 4; dinov2 issues 143 and 272; at batch 8 DINO with centring alone let every scan
    look the same within 60 steps (spread of features .007, effective rank 1.1), with KoLeo it did not
    (.23 and 3.5 after 200; measured on the laptop phantom). Assumptions: 64 scans, HeadCT-Foundation's
    batch per device, are enough for centring; the nearest of fewer than three others says nothing of
    density.
    """
    field = type(method).model_fields.get("koleo_weight")
    if field is None:
        return method
    needed = batch_size < _ENOUGH_FOR_CENTRING and accumulation == 1
    weight = field.default or (_KOLEO if needed else 0.0)
    chosen = ledger.take(
        "weight of KoLeo",
        weight if batch_size >= _FEWEST_SCANS_OF_KOLEO else 0.0,
        given_field(asked, method, "koleo_weight"),
        "as published; where that is none, .1 below 64 scans per step; 0 below 4",
        "arXiv 2304.07193, section 4; collapse at batch 8 measured here",
        f"batch {batch_size}, accumulation {accumulation}",
    )
    return method.model_copy(update={"koleo_weight": chosen})


def _gaussian(ledger: Ledger, asked: Asked, method: Settings, batch_size: int) -> Settings:
    """Step 9d. Weight of the Gaussian term.

    Rule: weight / (1 - weight) = published ratio x 256 / batch, never below the published weight and
    at most .5. Source: the statistic is a sum over the scans of the batch (arXiv 2511.08544,
    algorithm 1), so what it costs to collapse shrinks with the batch; at batch 8 and .05 the
    embeddings collapsed within 100 steps (3.21 of at most 3.27), at .5 they did not (1.3; measured
    on the laptop phantom). Assumption: 256 scans as the batch that the published weight belongs to.
    """
    field = type(method).model_fields.get("sigreg_weight")
    if field is None:
        return method
    published: float = field.default
    ratio = published / (1.0 - published) * _PUBLISHED_GAUSSIAN_BATCH / batch_size
    derived = min(_LARGEST_GAUSSIAN_WEIGHT, max(published, ratio / (1.0 + ratio)))
    chosen = ledger.take(
        "weight of the Gaussian term",
        round(derived, 3),
        given_field(asked, method, "sigreg_weight"),
        "its ratio to the prediction term grows as the batch shrinks from 256, at most to 1",
        "arXiv 2511.08544, algorithm 1; collapse at batch 8 measured here",
        f"batch {batch_size}",
    )
    return method.model_copy(update={"sigreg_weight": chosen})


def _next_scan(ledger: Ledger, asked: Asked, method: Settings, batch_size: int) -> Settings:
    """Step 9e. Comparison with the next scan.

    Rule: the published weight, 0 with a single scan per step. Source: arXiv 2410.09890, section 3.2:
    crops are compared with the grid of another volume, and with one there is none. Assumption: what
    is compared within a scan is enough to go on with.
    """
    field = type(method).model_fields.get("inter_weight")
    if field is None:
        return method
    chosen = ledger.take(
        "weight of the next scan",
        field.default if batch_size >= _FEWEST_SCANS_TO_COMPARE else 0.0,
        given_field(asked, method, "inter_weight"),
        "as published, 0 with a single scan per step",
        "arXiv 2410.09890, section 3.2",
        f"batch {batch_size}",
    )
    return method.model_copy(update={"inter_weight": chosen})


def _power_of_two(value: int) -> int:
    return 1 << (value.bit_length() - 1)
