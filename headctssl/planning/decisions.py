"""Decisions: the ledger in which planner and resolve write what they decide, and what the user asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from headctssl.errors import UsageError, unknown_name
from headctssl.planning.plans import Decision
from headctssl.settings import JsonValue, Settings

__all__ = ["Asked", "Ledger", "given_field"]

T = TypeVar("T")

SECTIONS = ("encoder", "method", "monitor", "training", "views")


class Ledger:
    """Decisions in the order they are taken."""

    def __init__(self) -> None:
        self._decisions: list[Decision] = []

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions so far."""
        return tuple(self._decisions)

    def note(self, what: str, value: object, rule: str, source: str, because: str) -> None:
        """Write one decision down.

        Args:
            what: what was decided.
            value: the value, turned into text.
            rule: the rule in words.
            source: paper, measurement or convention.
            because: what in this dataset, machine or call led to the value.
        """
        self._decisions.append(Decision(what=what, value=str(value), rule=rule, source=source, because=because))

    def take(self, what: str, value: T, given: T | None, rule: str, source: str, because: str) -> T:
        """Write one decision down and return the value: the user's where one was given, else the rule's.

        Args:
            what: what was decided.
            value: what the rule gives.
            given: what the user set, or None.
            rule: the rule in words.
            source: paper, measurement or convention.
            because: what led the rule to its value.
        """
        if given is None:
            self.note(what, value, rule, source, because)
            return value
        self.note(what, given, rule, "set by the user", f"you set it; the rule gives {value}: {because}")
        return given


class Asked:
    """The settings a user asked for, by section."""

    def __init__(self, overrides: Mapping[str, JsonValue]) -> None:
        self._overrides = dict(overrides)
        for key in self._overrides:
            section, dot, _ = key.partition(".")
            if not dot or section not in SECTIONS:
                raise unknown_name("setting", key, [f"{s}.NAME" for s in SECTIONS])
        if self.has("training.num_steps") and self.has("training.num_epochs"):
            raise UsageError(
                "The length of the run is given twice.",
                got="training.num_steps and training.num_epochs",
                expected="one of them",
                do="Remove one.",
            )

    def has(self, key: str) -> bool:
        """Whether the user set `section.key`."""
        return key in self._overrides

    def section(self, name: str) -> dict[str, JsonValue]:
        """What the user set in one section, keys without the section's name."""
        return {k.partition(".")[2]: v for k, v in self._overrides.items() if k.partition(".")[0] == name}

    def count(self, key: str, least: int = 1) -> int | None:
        """A whole number the user set, or None.

        Raises:
            UsageError: the value is no whole number, or below `least`.
        """
        if key not in self._overrides:
            return None
        value = self._overrides[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(
                f"The setting '{key}' does not accept this value.",
                got=value,
                expected=f"a whole number of {least} or more",
                do="Correct the value after --set.",
            )
        return value

    def real(self, key: str) -> float | None:
        """A number above 0 the user set, or None.

        Raises:
            UsageError: the value is no number above 0.
        """
        if key not in self._overrides:
            return None
        value = self._overrides[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UsageError(
                f"The setting '{key}' does not accept this value.",
                got=value,
                expected="a number above 0",
                do="Correct the value after --set.",
            )
        return float(value)


def given_field(asked: Asked, method: Settings, name: str) -> float | None:
    """The user's value of a number among a method's settings, which have checked it already; None without one."""
    return float(getattr(method, name)) if asked.has(f"method.{name}") else None
