"""Resolve method: steps 12 and 13 and the sizes of heads, what an objective must change for small encoders and runs.

A method's settings class holds the published numbers. Rules here apply to a method when it has the
field they name, so a new self-distillation method gets them without another line.
"""

from __future__ import annotations

from headctssl.families import FamilySettings
from headctssl.planning.decisions import Asked, Ledger, given_field
from headctssl.planning.run_settings import TrainingSettings
from headctssl.settings import JsonValue, Settings, with_overrides

__all__ = ["for_length", "sizes"]

_REFERENCE_BATCH = 256  # the batch that the published momenta belong to
_TEACHER_TURNOVERS = 20.0  # how often the teacher must be able to renew itself within a run
_PREDICTED_TURNOVERS = 1.0  # the same where the student predicts its tokens and nothing else keeps them apart
_SLOWEST, _FASTEST = 0.9999, 0.9
_CHANNELS_PER_HEAD = {"decoder": 48, "predictor": 64}  # of what stands on a transformer's tokens


def sizes(asked: Asked, method_settings: type[Settings], encoder: FamilySettings, profile: str) -> Settings:
    """The method's defaults, its heads and decoders no larger than the encoder deserves, then the user's values.

    Rule: the hidden width of a projection head is at most 4 times the encoder's width (2048 for
    768, as published, and less for smaller encoders); a transformer's decoder or predictor is no
    wider than its encoder, with one head per 48 or 64 channels as published; the runs of phantoms
    and templates use one of 2 blocks. Source: arXiv 2502.02779; arXiv 2111.06377, table 1 (the decoder can be
    narrow, and for fine-tuning shallow: 1 block is as good as 8).
    """
    method = method_settings()
    fields = type(method).model_fields
    changes: dict[str, JsonValue] = {}
    width = encoder.embed_dim
    hidden = getattr(method, "head_hidden", None)
    if isinstance(hidden, int):
        changes["head_hidden"] = min(hidden, 4 * width)
    for part, channels in _CHANNELS_PER_HEAD.items():
        published = getattr(method, f"{part}_width", None)
        if isinstance(published, int) and encoder.drops_tokens and published > width:
            changes[f"{part}_width"] = width
            if f"{part}_heads" in fields:
                changes[f"{part}_heads"] = _heads(width, channels)
        if f"{part}_depth" in fields and profile != "real":
            changes[f"{part}_depth"] = 2
    return with_overrides(method, {**changes, **asked.section("method")}, "method.")


def for_length(ledger: Ledger, asked: Asked, method: Settings, training: TrainingSettings) -> Settings:
    """Step 12. Teacher momentum.

    Rule: m = m_published ^ (batch / 256), so that the teacher forgets per scan, not per step; but
    never so slow that it could renew itself fewer than 20 times within the run, once where its
    tokens are predicted, and always between .9 and .9999. It rises to 1 as published. Source:
    scaling of averages with the batch, arXiv 2307.13813, definition 1.2. Tokens that are predicted
    have neither centre nor prototypes to keep them apart: in 200 steps of jepa at batch 8 on the
    laptop phantom their spread fell from .49 to .16 with m = .9, to .24 by step 100 with .98, and
    stayed at .43 there with .995 (measured). Assumption: 20 renewals are enough, fewer leave the
    teacher where it was initialised; one leaves much of it there, but what it says stays apart.
    """
    field = type(method).model_fields.get("teacher_momentum")
    if field is None:
        return method
    published: float = field.default
    scaled = published ** (training.batch_size / _REFERENCE_BATCH)
    turnovers = _PREDICTED_TURNOVERS if hasattr(method, "predictor_width") else _TEACHER_TURNOVERS
    limit = 1.0 - turnovers / training.num_steps
    derived = round(min(max(min(scaled, limit), _FASTEST), _SLOWEST), 5)
    given = given_field(asked, method, "teacher_momentum")
    chosen = ledger.take(
        "teacher momentum",
        derived,
        given,
        f"published momentum to the power batch / 256, at least {turnovers:g} renewals in the run, within .9-.9999",
        "arXiv 2307.13813 (averages per scan); published value arXiv 2502.02779",
        f"batch {training.batch_size}, {training.num_steps} steps",
    )
    method = method.model_copy(update={"teacher_momentum": chosen})
    return _center(ledger, asked, method, published, chosen)


def _center(ledger: Ledger, asked: Asked, method: Settings, published_teacher: float, teacher: float) -> Settings:
    """Step 13. Centre momentum.

    Rule: the centre follows the teacher's outputs as many times faster than the teacher moves as in
    the published recipe (.9 beside .994: 17 times), at most at once. Source: with a teacher at .9 and
    a centre at .9 all outputs chose one prototype within 8 steps (measured). Assumption: the ratio is
    what matters.
    """
    published = getattr(method, "center_momentum", None)
    if not isinstance(published, float):
        return method
    ratio = (1.0 - published) / (1.0 - published_teacher)
    derived = round(max(0.0, min(published, 1.0 - ratio * (1.0 - teacher))), 4)
    given = given_field(asked, method, "center_momentum")
    chosen = ledger.take(
        "centre momentum",
        derived,
        given,
        "the centre moves as many times faster than the teacher as published, never slower than published",
        "arXiv 2104.14294, arXiv 2502.02779; collapse of short runs measured here",
        f"teacher momentum {teacher:g}",
    )
    return method.model_copy(update={"center_momentum": chosen})


def _heads(width: int, channels: int) -> int:
    """The number of heads nearest to one per so many channels that divides the width."""
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(width / h - channels))
