"""Asked: which settings the user may set for a fine-tuning run; one that would have no effect is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from headctssl.errors import UsageError
from headctssl.finetuning.mirror import mirror_of
from headctssl.finetuning.phases import head_steps
from headctssl.finetuning.settings import Adaptation, FinetuneSettings
from headctssl.finetuning.situation import Situation
from headctssl.settings import JsonValue, with_overrides

__all__ = ["by_study", "check_asked", "check_processes", "check_start", "check_studies", "with_asked"]

_NOT_IN_FROZEN = (
    "views.",
    "lora.",
    "head.kind",
    "task.head_lr_scale",
    "task.validate_every",
    "task.schedule",
    "task.head_share",
    "task.layer_decay",
    "training.accumulation",
    "training.precision",
    "training.compile",
    "training.recompute",
    "training.on_nonfinite",
    "training.nonfinite_limit",
    "training.rewind_every",
    "training.most_rewinds",
    "training.log_every",
    "training.checkpoint_every",
)
"""Without effect where the encoder is frozen and sees unaugmented heads in float32; the adaptation says which head."""

_NEVER = ("views.local_", "views.augment_local")
"""Without effect in fine-tuning, which draws global views only."""

_NOT_IN: dict[Adaptation, tuple[str, ...]] = {
    "full": (*_NEVER, "lora.", "task.cache_gb", "task.whitening"),
    "lora": (*_NEVER, "task.cache_gb", "task.whitening"),
    "linear": (*_NOT_IN_FROZEN, "task.cache_gb", "head.heads"),
    "attentive": (*_NOT_IN_FROZEN, "task.whitening"),
}


def check_asked(keys: Iterable[str], *, adapt: Adaptation, pretrained: bool) -> None:
    """Refuse dotted keys that this run does not have or would ignore.

    Args:
        keys: what `--set` names.
        adapt: what learns.
        pretrained: whether a checkpoint says which encoder it is.

    Raises:
        UsageError: a key does not belong here.
    """
    sections = ("training", "views", "head", "task", "lora", *(() if pretrained else ("encoder",)))
    for key in keys:
        section, dot, _ = key.partition(".")
        if section not in sections or not dot:
            known = ", ".join(f"{s}.*" for s in sections)
            hint = " The encoder is fixed by its checkpoint." if section == "encoder" else ""
            raise UsageError(
                f"The setting '{key}' cannot be set for this run.{hint}",
                got=key,
                expected=f"one of {known}",
                do="Remove it, or correct its name.",
            )
        if key.startswith(_NOT_IN[adapt]):
            others = [name for name, refused in _NOT_IN.items() if not key.startswith(refused)]
            elsewhere = f", or use --adapt {' or '.join(others)}" if others else ""
            raise UsageError(
                f"The setting '{key}' has no effect with --adapt {adapt}.",
                got=key,
                expected="a setting that changes this run",
                do=f"Remove it{elsewhere}.",
            )


def check_start(situation: Situation, overrides: Mapping[str, JsonValue]) -> None:
    """Refuse to spare an encoder that knows nothing yet.

    Args:
        situation: start and adaptation.
        overrides: what is asked for.

    Raises:
        UsageError: a schedule or LoRA that begins from random weights.
    """
    spares = overrides.get("task.schedule") in ("warmup", "sawtooth", "valley")
    if situation.pretrained or not (spares or situation.adapt == "lora"):
        return
    raise UsageError(
        "An encoder that begins from random weights has to learn from the first step, at its full rate.",
        got="-w scratch with " + ("--adapt lora" if situation.adapt == "lora" else f"{overrides['task.schedule']}"),
        expected="a pretrained encoder: these spare its weights",
        do="Give a checkpoint to -w, or leave out task.schedule and --adapt lora.",
    )


def by_study(overrides: Mapping[str, JsonValue]) -> bool:
    """Whether the run learns from the scans of a study together."""
    return overrides.get("head.scans") == "attention"


def check_studies(sizes: Sequence[int]) -> None:
    """Refuse attention over scans where no study has two of them.

    Args:
        sizes: scans of every labelled training study.

    Raises:
        UsageError: all have one scan.
    """
    if max(sizes, default=0) < 2:
        raise UsageError(
            "Attention over scans needs training studies of several scans.",
            got=f"head.scans=attention, {len(sizes)} labelled training studies of one scan",
            expected="cases of one subject that share a session_id in cases.csv, and agree in a label",
            do="Fill in the columns subject_id and session_id, or remove head.scans.",
        )


def check_processes(settings: FinetuneSettings, number: int) -> None:
    """Refuse several processes where they would hold different numbers of scans, which no BatchNorm is made for.

    Args:
        settings: of the run.
        number: processes.

    Raises:
        UsageError: studies are learnt from through the training loop.
    """
    if number > 1 and settings.head.scans == "attention" and settings.adapt in ("full", "lora"):
        raise UsageError(
            "Attention over scans cannot be learnt in several processes with a network that learns: their studies have"
            " different numbers of scans.",
            got=f"head.scans=attention, --adapt {settings.adapt}, {number} processes",
            expected="one process, or --adapt linear or attentive",
            do="Start it without torchrun, or with another --adapt.",
        )


def with_asked(settings: FinetuneSettings, overrides: Mapping[str, JsonValue]) -> FinetuneSettings:
    """The settings with what is asked for in place of what was derived.

    Args:
        settings: as derived.
        overrides: dotted keys.

    Raises:
        UsageError: a key or value that the settings do not have, or one that leaves itself or the run without effect.
    """
    changed = with_overrides(settings, overrides)
    training = changed.training
    if changed.head.batch_norm and training.batch_size // training.accumulation < 2:
        raise UsageError(
            "The head's BatchNorm needs two scans in a forward pass.",
            got=f"training.batch_size={training.batch_size} over training.accumulation={training.accumulation}",
            expected="at least 2",
            do="Set another batch size, or head.batch_norm=false.",
        )
    if changed.task.whitening is not None and not changed.num_validation:
        raise UsageError(
            "Without validation cases nothing can choose between features as they are and whitened ones.",
            got=f"task.whitening={changed.task.whitening:g}, 0 validation cases",
            expected="validation cases, or task.whitening=null",
            do="Use a fold that has validation cases, or remove the --set.",
        )
    if changed.views.flip_lr and changed.head.scans == "attention":
        raise UsageError(
            "Views cannot be flipped where the scans of a study are learnt from together: each would be flipped by"
            " itself, and the study's label would be of neither side.",
            got="views.flip_lr=true with head.scans=attention",
            expected="one of them",
            do="Remove one --set.",
        )
    if changed.views.flip_lr:
        mirror_of(settings.labels)
    elif "views.flip_probability" in overrides:
        raise UsageError(
            "The setting 'views.flip_probability' has no effect: views are flipped left and right or not at all.",
            got="views.flip_probability without views.flip_lr",
            expected="views.flip_lr=true beside it",
            do="Add --set views.flip_lr=true, or remove it.",
        )
    _check_effects(changed, overrides)
    return changed


def _check_effects(settings: FinetuneSettings, overrides: Mapping[str, JsonValue]) -> None:
    """Refuse what the other settings leave without effect, and phases that leave nothing of the run."""
    task, training = settings.task, settings.training
    alone = head_steps(task, training.num_steps)
    idle = {
        "lora.": (settings.adapt != "lora", "--adapt lora"),
        "task.head_share": (alone == 0, "task.schedule=sawtooth or valley"),
        "task.max_ratio": (task.balance != "weights", "task.balance=weights"),
        "head.heads": (settings.head.kind != "attentive", "head.kind=attentive"),
        "head.scan_width": (settings.head.scans != "attention", "head.scans=attention"),
        "task.most_scans": (settings.head.scans != "attention", "head.scans=attention"),
    }
    for key in overrides:
        for prefix, (is_idle, needs) in idle.items():
            if key.startswith(prefix) and is_idle:
                raise UsageError(
                    f"The setting '{key}' has no effect here.",
                    got=key,
                    expected=needs,
                    do=f"Add {needs}, or remove it.",
                )
    if alone + training.warmup_steps >= training.num_steps and alone:
        raise UsageError(
            "The phases of the schedule leave no step for learning after the warm-up.",
            got=f"{alone} steps of the head alone and {training.warmup_steps} of warm-up in {training.num_steps}",
            expected=f"{alone + training.warmup_steps + 1} steps or more",
            do="Set more training.num_epochs, or a smaller task.head_share.",
        )
