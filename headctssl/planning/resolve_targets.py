"""Resolve targets: what keeps the answers of a batch apart, and how sharply they are compared: part of step 9, and 14.

A method's settings class holds the published numbers. Rules here apply to a method when it has the
field they name, so a new method gets them without another line.
"""

from __future__ import annotations

from dataclasses import dataclass

from headctssl.planning.decisions import Asked, Ledger
from headctssl.settings import Settings

__all__ = ["for_batch", "queue"]

_MOST_ROWS = 2048


@dataclass(frozen=True)
class _Kept:
    """A published value that holds at every batch, and why a small one does not change it."""

    field: str
    what: str
    source: str
    because: str


_KEPT = (
    # DINO on the laptop phantom, 200 steps of 8 scans, effective rank of whole heads: 3.5 with centring and KoLeo, 2.9
    # with Sinkhorn-Knopp and KoLeo, 1.1 with centring alone.
    _Kept(
        "targets",
        "targets",
        "arXiv 2104.14294 (centring), arXiv 2304.07193 (Sinkhorn-Knopp)",
        "neither collapsed at batch 8 with KoLeo, measured here",
    ),
    _Kept(
        "student_temperature", "student temperature", "arXiv 2104.14294, arXiv 2304.07193", "the same in both recipes"
    ),
    # At batch 8, 200 steps: .04 and .07 told scans apart, .5 made them one.
    _Kept(
        "teacher_temperature",
        "teacher temperature",
        "arXiv 2502.02779 (.04), arXiv 2304.07193 (.07)",
        "neither .04 nor .07 collapsed at batch 8, .5 did, measured here",
    ),
    # The gradient of NT-Xent is that of the cosines times 1 - p, p the chance given to the right view. For a pair that
    # is found with ease among 8 scans that is .65 at .5, and 6e-4 at .1.
    _Kept(
        "temperature",
        "contrastive temperature",
        "arXiv 2412.17041, arXiv 2111.14791",
        "a lower one leaves batches below 64 without a gradient",
    ),
    _Kept(
        "head_momentum",
        "projector's teacher momentum",
        "arXiv 2410.09890 and its public code",
        "only the projector has a teacher, which renews itself in ten steps whatever the batch",
    ),
)


def for_batch(ledger: Ledger, asked: Asked, method: Settings) -> None:
    """How targets are kept apart, and temperatures, as far as the method has them: they hold at every batch.

    Args:
        ledger: where decisions are written.
        asked: what the user set.
        method: its settings.
    """
    for kept in _KEPT:
        field = type(method).model_fields.get(kept.field)
        if field is not None:
            given = getattr(method, kept.field) if asked.has(f"method.{kept.field}") else None
            ledger.take(kept.what, field.default, given, "as published, at every batch", kept.source, kept.because)


def queue(ledger: Ledger, asked: Asked, method: Settings, *, rows: int) -> Settings:
    """Step 14. Queue of Sinkhorn-Knopp; the momentum of the teacher must be settled.

    Rule: with fewer rows (scans times global views) than prototypes, so many rows of earlier steps
    are kept that there are as many as prototypes, but not more than 2,048, and none older than
    1 / (1 - m) steps, m the teacher's momentum at the first step; centring needs none. Source: arXiv
    2006.09882, section 3.1 (a queue for batches that are small beside K); arXiv 2304.07193 trains with
    2,048 rows and 65,536 prototypes. The limit is measured: rows of a teacher that is gone form a heap
    of their own, and all of a step get the prototypes that these leave. In 200 steps of dinov2 at
    batch 8 on the laptop phantom, m = .9, the head's outputs spread .15 with 496 rows, .72 with 160,
    .43 with 80 and .49 with none. Assumption: the order of age that was best there holds for a slower
    teacher; only runs below some 600 steps at batch 8 are so short that it matters.

    Args:
        ledger: where the decision is written.
        asked: what the user set.
        method: its settings.
        rows: global views of a step.
    """
    prototypes, momentum = getattr(method, "prototypes", None), getattr(method, "teacher_momentum", 1.0)
    if not isinstance(prototypes, int) or "queue" not in type(method).model_fields:
        return method
    shared_out = getattr(method, "targets", None) == "sinkhorn"
    kept = max(0, min(prototypes, _MOST_ROWS) - rows)
    if momentum < 1.0:
        kept = min(kept, rows * round(1.0 / (1.0 - momentum)))
    chosen = ledger.take(
        "queue of outputs",
        kept if shared_out else 0,
        asked.count("method.queue", least=0),
        "Sinkhorn-Knopp: as many rows of earlier steps as the rows of a step fall short of the prototypes, or of"
        " 2,048; none older than 1 / (1 - teacher momentum) steps",
        "arXiv 2006.09882, section 3.1; arXiv 2304.07193; the oldest row measured here",
        f"{rows} rows per step, {prototypes} prototypes, teacher momentum {momentum:g}"
        if shared_out
        else "centring needs none",
    )
    return method.model_copy(update={"queue": chosen})
