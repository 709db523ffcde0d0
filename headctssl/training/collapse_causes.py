"""Collapse causes: which settings of a run are known to lead there, and what to do about each."""

from __future__ import annotations

from dataclasses import dataclass

from headctssl.planning.run_settings import RunSettings
from headctssl.settings import Settings

__all__ = ["Cause", "likely_causes"]

_FEW_SCANS = 8
_HIGH_RATE = 5.0


@dataclass(frozen=True)
class Cause:
    """What may have led to a collapse, and what to do."""

    what: str
    do: str


def likely_causes(settings: RunSettings, planned_rate: float) -> tuple[Cause, ...]:
    """Causes that the settings of a run suggest, the likeliest first; one of the data and length when none does.

    Args:
        settings: of the run.
        planned_rate: the learning rate that the rule gives for this method and batch.
    """
    causes = [*_of_teacher(settings.method), *_of_weights(settings.method), *_of_rate(settings, planned_rate)]
    batch = settings.training.batch_size
    if batch < _FEW_SCANS:
        causes.append(
            Cause(
                f"{batch} scans per step leave little to compare", f"raise training.batch_size to {_FEW_SCANS} or more"
            )
        )
    if not causes:
        changed = [text.partition("=")[0] for text in settings.overrides if text.startswith(("method.", "training.lr"))]
        if changed:
            causes.append(Cause(f"you set {', '.join(changed)}", "take it back"))
        else:
            causes.append(
                Cause(
                    "no setting stands out",
                    "lower training.lr, raise training.batch_size, or choose a method that compares no scans (mae)",
                )
            )
    return tuple(causes)


def _value(settings: Settings, name: str) -> float | None:
    """A number among a method's settings; None where the method has no such setting."""
    value = getattr(settings, name, None)
    return float(value) if isinstance(value, int | float) else None


def _of_teacher(method: Settings) -> list[Cause]:
    causes = []
    student, teacher = _value(method, "student_temperature"), _value(method, "teacher_temperature")
    if student is not None and teacher is not None and teacher >= student:
        default = type(method).model_fields["teacher_temperature"].default
        causes.append(
            Cause(
                f"method.teacher_temperature={teacher:g} is not below the student's {student:g}, so that targets "
                "become even over the prototypes",
                f"lower it to {default:g}",
            )
        )
    if _value(method, "koleo_weight") == 0 and getattr(method, "targets", "") == "centring":
        causes.append(
            Cause(
                "method.targets=centring with method.koleo_weight=0 leaves the centre alone to keep scans apart",
                "set method.koleo_weight=0.1 from 4 scans per step on, or method.targets=sinkhorn",
            )
        )
    momentum, center = _value(method, "teacher_momentum"), _value(method, "center_momentum")
    if momentum is not None and momentum < 0.5:
        causes.append(
            Cause(
                f"method.teacher_momentum={momentum:g} makes the teacher a copy of the student",
                "raise it to 0.99 or more",
            )
        )
    elif momentum is not None and center is not None and center > momentum:
        causes.append(
            Cause(
                f"method.center_momentum={center:g}: the centre follows slower than the teacher ({momentum:g}) moves",
                "lower it below method.teacher_momentum",
            )
        )
    return causes


def _of_weights(method: Settings) -> list[Cause]:
    """Weights of the terms that keep scans apart, and switches with the same effect."""
    causes = []
    for name, why in (
        ("sigreg_weight", "nothing spreads the embeddings"),
        ("separation_weight", "nothing keeps the cells of a scan apart"),
        ("contrastive_weight", "nothing drives scans apart"),
    ):
        value, default = _value(method, name), type(method).model_fields.get(name)
        if value is not None and default is not None and value < default.default / 10:
            causes.append(Cause(f"method.{name}={value:g}: {why}", f"set it to {default.default:g}"))
    if getattr(method, "head_norm", True) is False:
        causes.append(
            Cause(
                "method.head_norm=false: features of heads are much alike and only their difference can be compared",
                "set it to true",
            )
        )
    return causes


def _of_rate(settings: RunSettings, planned: float) -> list[Cause]:
    rate = settings.training.lr
    if rate <= _HIGH_RATE * planned:
        return []
    return [Cause(f"training.lr={rate:g} is {rate / planned:.0f} times the planned rate", f"set it to {planned:g}")]
